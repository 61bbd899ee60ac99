"""Errors for the user end in one sentence, and bugs in a traceback."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from trl import TrlParser

from dps_hf.command_line import run_script, show_errors
from dps_hf.data.rows import read_settings
from dps_hf.files import write_whole
from dps_hf.inference import ask, load
from dps_hf.resolve import resolve


@dataclass
class ScriptArguments:
    """
    share: between 0 and 1.
    """

    share: float = 0.5

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1;\ngot {self.share}.")


def exit_with_sentence(capsys, function, *arguments) -> str:
    with pytest.raises(SystemExit) as exit:
        function(*arguments)
    assert exit.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "Traceback" not in printed
    return printed


@pytest.fixture
def start(monkeypatch):
    """Runs a script with these words on the command line."""

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        run_script(main, TrlParser(ScriptArguments))

    return run


def test_a_wrong_setting_ends_in_one_sentence(start, capsys):
    assert "share must be from 0 to 1; got 2.0." in exit_with_sentence(capsys, start, print, "--share", "2")


def test_a_value_of_the_wrong_type_ends_in_one_sentence(start, tmp_path, capsys):
    assert "--share: invalid float value: 'half'." in exit_with_sentence(capsys, start, print, "--share", "half")
    (tmp_path / "mine.yaml").write_text("share: half")
    assert "--share: invalid" in exit_with_sentence(capsys, start, print, "--config", str(tmp_path / "mine.yaml"))


def test_help_begins_with_a_short_usage(start, capsys):
    with pytest.raises(SystemExit):
        start(print, "--help")
    assert capsys.readouterr().out.startswith("usage: script.py [--config RECIPE] [--FIELD VALUE ...]\n")


def test_a_recipe_that_is_missing_wrong_or_has_an_unknown_field_ends_in_one_sentence(start, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    assert "mine.yaml" in exit_with_sentence(capsys, start, print, "--config", str(recipe))
    recipe.write_text("share: [0.5")
    assert "line 1" in exit_with_sentence(capsys, start, print, "--config", str(recipe))
    recipe.write_text("sahre: 0.5")
    assert "has no field sahre. Correct" in exit_with_sentence(capsys, start, print, "--config", str(recipe))
    assert "has no field sahre. Correct" in exit_with_sentence(capsys, start, print, "--sahre", "0.5")


def test_an_error_that_the_package_raises_ends_in_one_sentence(start, capsys):
    wrong = exit_with_sentence(capsys, start, lambda script: resolve("no_such_module.judge", "judge"))
    assert "judge must be the dotted path" in wrong


def test_an_error_of_several_lines_of_code_ends_in_one_sentence(start, capsys):
    settings = {"path": "mine", "weight": -1}
    assert "above 0; got -1" in exit_with_sentence(capsys, start, lambda script: read_settings(settings))


def test_a_file_that_is_not_there_ends_in_one_sentence(start, capsys):
    sentence = exit_with_sentence(capsys, start, lambda script: Path("mine.txt").read_text())
    assert "there is no file or folder 'mine.txt'" in sentence


def test_a_script_may_return_an_exit_status(start):
    assert start(lambda script: 0) is None
    with pytest.raises(SystemExit) as exit:
        start(lambda script: 3)
    assert exit.value.code == 3


def test_a_model_that_is_not_there_ends_in_one_sentence(start, capsys, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    sentence = exit_with_sentence(capsys, start, lambda script: load(nowhere))
    assert f"The model '{nowhere}' is no folder here" in sentence


@pytest.mark.parametrize(
    "bug",
    [
        lambda: np.zeros(3) + np.zeros(4),  # a ValueError of numpy
        lambda: int("three"),  # a ValueError of Python
        lambda: write_whole(3, "text"),  # an AttributeError in the package
        lambda: ask(None, None, ["?"]),
        lambda: {}["missing"],
    ],
)
def test_a_bug_keeps_its_traceback(start, bug):
    with pytest.raises((ValueError, AttributeError, KeyError)):
        start(lambda script: bug())


def test_errors_can_be_shown_around_any_code(capsys):
    def fail():
        with show_errors():
            ScriptArguments(2)

    with pytest.raises(ValueError, match="share"):
        fail()  # this test is neither the package nor a script
