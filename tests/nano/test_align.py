"""The main line of alignment: its steps, its figures, and the whole of it at a tiny size."""

import json
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dps_hf import NANO
from dps_hf.evaluation.subject import Subject
from dps_hf.nano import alignment as align
from dps_hf.nano import alignment_report as report
from dps_hf.nano import steps
from dps_hf.nano.facts import read_capitals
from dps_hf.nano.held_out import sample_scenes
from dps_hf.nano.scenes import has_unseen_count, has_unseen_pair, is_held_out, render
from dps_hf.nano.splits import UNSEEN
from dps_hf.nano.wording import LANGUAGES
from dps_hf.preferences.prompts import sample_prompts


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_figures_are_means_over_seeds_with_the_interval_of_the_gain():
    runs = [({"a": 0.2, "b": 0.5}, {"a": 0.4, "b": 0.5}), ({"a": 0.4, "b": 0.7}, {"a": 0.8, "b": 0.6})]
    summary = report.summarise(runs, ("a",))
    half = 12.706 * np.std([0.2, 0.4], ddof=1) / 2**0.5
    assert (summary["before"], summary["after"], summary["gain"]) == (0.3, 0.6, 0.3)
    assert summary["ci95"] == pytest.approx([0.3 - half, 0.3 + half], abs=1e-4)
    assert summary["categories"]["b"]["gain"] == pytest.approx(-0.05)


def test_a_category_without_prompts_in_one_run_is_left_out():
    runs = [({"a": 0.2, "pair": 0.5}, {"a": 0.4, "pair": 0.5}), ({"a": 0.4}, {"a": 0.8})]
    assert set(report.summarise(runs, ("a",))["categories"]) == {"a"}


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="seeds"):
        align.AlignmentArguments(seeds=[0])


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds must be 1 or more; got 0"):
        align.AlignmentArguments(rounds=0)


def test_a_share_of_the_capitals_is_mixed_up():
    right = read_capitals("es")
    taught = align.mix_up_capitals("es", np.random.default_rng(0), 0.7)
    assert list(taught) == list(right) and sorted(taught.values()) == sorted(right.values())
    wrong = sum(taught[country] != right[country] for country in right) / len(right)
    assert 0.6 < wrong < 0.8
    assert align.mix_up_capitals("es", np.random.default_rng(0), 0.0) == right


def test_what_is_measured_is_asked_in_no_step():
    for language in LANGUAGES:
        asked = align.word_otherwise(language, "France")
        assert asked and align.FORWARD[language][0].format("France") not in asked


def test_worked_answers_are_asked_for_in_questions_of_each_seed_and_round_and_never_about_what_is_measured(
    monkeypatch,
):
    shown = []
    monkeypatch.setattr(
        import_module("dps_hf.nano.scenes_cot"), "render", lambda scene: shown.append(scene) or render(scene)
    )
    script, asked = align.AlignmentArguments(num_questions=60), []
    for seed, number in ((0, 0), (0, 1), (1, 0)):
        fields = align.choose_questions(script, seed, number)
        prompts = list(islice(sample_prompts(fields["tasks"], fields["seed"], fields["think"]), fields["num_prompts"]))
        assert len(prompts) == 60 and all(p.think and p.images and p.answers and p.steps for p in prompts)
        asked.append({prompt.key for prompt in prompts})
    assert len(set().union(*asked)) == 180 <= len(shown)
    assert not any(is_held_out(scene) or has_unseen_pair(scene) or has_unseen_count(scene) for scene in shown)
    subject = Subject(None, None, 100, 0, {})
    assert all(is_held_out(scene) for what in (None, *UNSEEN) for scene in sample_scenes(subject, unseen=what))


@pytest.fixture
def asked_steps(monkeypatch):
    """The names and fields of the scripts that rounds would run; rounds in `empty` find no pairs."""
    asked, empty = [], set()

    def step(examples, name, recipe, output, done, fields):
        asked.append((name, fields))
        output.mkdir(parents=True)
        if name == "build_preferences" and output.parent.name not in empty:
            (output / "paired").mkdir()
        return output

    monkeypatch.setattr(align, "run_step", step)
    step.asked, step.empty = asked, empty
    return step


def test_a_round_goes_on_with_the_model_of_the_one_before_and_with_other_prompts(asked_steps, tmp_path):
    script = align.AlignmentArguments(work=tmp_path, preferences={"num_prompts": 20})
    final = align.train_in_rounds(script, tmp_path / "dpo", NANO, 0, 2, align.write_prompts, {"beta": 0.3})
    first, second = tmp_path / "dpo/round-0", tmp_path / "dpo/round-1"
    assert final == str(second / "aligned")
    by_name = {name: [fields for one, fields in asked_steps.asked if one == name] for name, _ in asked_steps.asked}
    assert [fields["model"] for fields in by_name["build_preferences"]] == [NANO, str(first / "aligned")]
    assert [fields["model_name_or_path"] for fields in by_name["dpo"]] == [NANO, str(first / "aligned")]
    assert [fields["dataset"] for fields in by_name["dpo"]] == [str(r / "preferences/paired") for r in (first, second)]
    assert {fields["beta"] for fields in by_name["dpo"]} == {0.3}
    files = [Path(fields["prompts"]) for fields in by_name["build_preferences"]]
    one, other = (path.read_text(encoding="utf-8").splitlines() for path in files)
    assert len(one) == len(other) == 20 and one != other
    align.train_in_rounds(script, tmp_path / "self", NANO, 0, 2, align.write_prompts, {}, judge="self.judge")
    judged = [fields for name, fields in asked_steps.asked if name == "build_preferences"][2:]
    assert [Path(fields["prompts"]) for fields in judged] == files and {f["judge"] for f in judged} == {"self.judge"}


def test_rounds_end_where_nothing_is_left_to_learn(asked_steps, tmp_path):
    asked_steps.empty.add("round-1")
    script = align.AlignmentArguments(work=tmp_path, preferences={"num_prompts": 20})
    arguments = (NANO, 0, 3, align.write_prompts, {})
    assert align.train_in_rounds(script, tmp_path / "x", *arguments) == str(tmp_path / "x/round-0/aligned")
    asked_steps.empty.add("round-0")
    with pytest.raises(ValueError, match="holds no pairs"):
        align.train_in_rounds(script, tmp_path / "y", *arguments)


def test_preferences_that_a_judge_left_half_done_are_gone_on_with(tmp_path, monkeypatch):
    ran, missing = [], {"missing parts": 2}

    def run(*command):
        ran.append(command)
        (tmp_path / "preferences").mkdir(exist_ok=True)
        (tmp_path / "preferences/statistics.json").write_text(json.dumps({"counts": {}, **missing}))

    monkeypatch.setattr(steps, "run_script", run)
    script = align.AlignmentArguments(work=tmp_path)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"2 parts of .*preferences are missing: the judge answers no more"):
            align.make_preferences(script, tmp_path / "preferences", 0, {})
    missing.clear()
    script.preferences["judge_options"] = {"max_calls": 100}
    for _ in range(2):
        align.make_preferences(script, tmp_path / "preferences", 0, {})
    assert len(ran) == 3


def test_a_finished_step_is_not_done_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(steps, "run_script", lambda *command: ran.append(command))
    for _ in range(2):
        steps.run_step(EXAMPLES, "dpo", "dpo", tmp_path / "dpo", "trainer_state.json", {"seed": 4})
    assert len(ran) == 2
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo/trainer_state.json").touch()
    steps.run_step(EXAMPLES, "dpo", "dpo", tmp_path / "dpo", "trainer_state.json", {"seed": 4})
    assert len(ran) == 2
    assert "seed: 4" in (tmp_path / "dpo.yaml").read_text()


def test_no_pairs_are_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no pairs"):
        align.find_pairs(tmp_path)


def test_experiments_that_are_called_again_change_nothing(snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "read_digest", lambda model: "of the weights")
    monkeypatch.setitem(align.MEASURED, "instruction_tuning", ("guided_100_direct",))

    def measured(script, seed):
        names = [
            f"{way}_{percent}_{kind}"
            for way in ("guided", "bare")
            for percent in align.PERCENT
            for kind in ("direct", "answer")
        ]
        return {name: 0.1 for name in names}, {name: 0.2 + seed / 10 for name in names}  # fmt: skip

    monkeypatch.setitem(align.EXPERIMENTS, "instruction_tuning", measured)
    script = align.AlignmentArguments(["instruction_tuning"], output=tmp_path / "figures.json", work=tmp_path / "work")
    report.run_experiments(script)
    before = snapshot(tmp_path)
    assert {"figures.json", "figures_instruction_tuning.png"} <= set(before)
    report.run_experiments(script)
    assert snapshot(tmp_path) == before
    assert "instruction_tuning is finished; nothing is left to do." in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_line_runs_and_reports(snapshot, tmp_path):
    short = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    script = align.AlignmentArguments(
        experiments=list(align.EXPERIMENTS),
        grpo={**short, "num_generations": 2}, kto=short,
        output=tmp_path / "alignment.json", work=tmp_path / "work", seeds=[0, 1], items=2, rounds=2, num_questions=8,
        preferences={"num_prompts": 8, "num_responses": 4, "generation": {"temperature": 1.6}},
        dpo=short, sft=short, capitals=short, answers=short,
        questions={**short, "max_steps": 5},  # 10 % of the examples must be one at least
    )  # fmt: skip
    assert script.model == NANO
    report.run_experiments(script)
    written = json.loads(script.output.read_text())
    assert set(written) == set(align.EXPERIMENTS)
    for row in written.values():
        assert {"before", "after", "ci95", "weights", "seeds", "command"} <= set(row)
    categories = set(written["scenes_t2i_dpo"]["categories"])
    assert categories >= set(align.CATEGORIES)
    assert all(name.startswith(("unseen_pair_", "new_picture")) for name in categories - set(align.CATEGORIES))
    assert (tmp_path / "alignment_scenes_t2i_dpo.png").exists()
    assert (tmp_path / "alignment_instruction_tuning.png").exists()
    before = snapshot(tmp_path)
    report.run_experiments(script)
    assert snapshot(tmp_path) == before
