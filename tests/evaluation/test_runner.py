"""Somebody's own evaluations, given by dotted path: they are run, kept, and run again only when asked."""

import json

import pytest

from dps_hf.evaluation.runner import find_evaluations, print_figures, run_evaluations
from dps_hf.evaluation.subject import Subject


MODULE = """
from dps_hf.evaluation.figures import mean, share

calls = []


def counts(subject):
    calls.append("counts")
    return {"all": share([True] * subject.items), "half": share([True, False])}


def measures(subject):
    calls.append("measures")
    return {"draws": mean(subject.rng("draws").random(subject.items))}


def same_name():
    pass


same_name.__name__ = "counts"
number = 3
EVALUATIONS = (counts, measures)
"""


@pytest.fixture(scope="module")
def my_evaluations(tmp_path_factory):
    """A module outside the package."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_evaluations.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import my_evaluations

        yield my_evaluations


@pytest.fixture
def subject(tiny_model, tiny_processor):
    return Subject(tiny_model, tiny_processor, 4, 0, {"guidance_scale": 1.0, "do_sample": False})


def test_an_evaluation_outside_the_package_is_run_and_kept(my_evaluations, subject, tmp_path, capsys):
    my_evaluations.calls.clear()
    output = tmp_path / "figures.json"
    report = run_evaluations(subject, "mine", ["my_evaluations.counts"], output)
    assert report["counts"]["all"] == {"value": 1.0, "n": 4, "ci95": [0.5101, 1.0]}
    assert json.loads(output.read_text()) == report
    report = run_evaluations(subject, "mine", ["my_evaluations"], output)
    assert my_evaluations.calls == ["counts", "measures"], "a finished evaluation is not run again"
    assert run_evaluations(subject, "mine", ["my_evaluations.counts"], output, fresh=True).keys() == report.keys()
    assert my_evaluations.calls == ["counts", "measures", "counts"]
    print_figures(report)
    assert "counts.all" in capsys.readouterr().out


def test_a_subject_of_the_same_seed_draws_the_same_numbers(my_evaluations, subject):
    assert my_evaluations.measures(subject) == my_evaluations.measures(subject)


def test_figures_of_other_settings_are_never_mixed(my_evaluations, subject, tmp_path):
    output = tmp_path / "figures.json"
    run_evaluations(subject, "mine", ["my_evaluations"], output)
    subject.items = 5
    for fields in ({}, {"fresh": True}):
        with pytest.raises(
            ValueError, match=r"other items\. Give another --output, or --fresh and all tasks .* measures"
        ):
            run_evaluations(subject, "mine", ["my_evaluations.counts"], output, **fields)
    assert run_evaluations(subject, "mine", ["my_evaluations"], output, fresh=True)["recipe"]["items"] == 5


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "at least one evaluation, such as my_package.my_evaluation"),
        (["json"], "the module json, which has no EVALUATIONS"),
        (["my_evaluations.number"], "my_evaluations.number is 3"),
        (["my_evaluations.nothing"], "tasks must be the dotted path"),
        (["my_evaluations.counts", "my_evaluations.same_name"], "two are called counts"),
    ],
)
def test_a_path_that_is_no_evaluation_is_refused(my_evaluations, paths, message):
    with pytest.raises(ValueError, match=message):
        find_evaluations(paths)
