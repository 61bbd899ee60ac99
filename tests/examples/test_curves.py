"""Curves against data and parameters: which decoders are trained, and what becomes of their figures."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def trained(example, tmp_path, monkeypatch):
    """The fields that each training was given; the trainings themselves are left out."""
    curves, recipes = example("curves.py"), []

    def run(command, check):
        script, arguments = Path(command[1]).name, list(map(str, command[2:]))
        if script == "train.py":
            recipes.append(yaml.safe_load(Path(arguments[1]).read_text()))
            Path(recipes[-1]["output_dir"], "model.safetensors").touch()
            return
        report = {"parameters": 10**6 * len(recipes)}
        for name in curves.FIGURES.values():
            task, _, metric = name.partition(".")
            report.setdefault(task, {})[metric] = {"value": 0.5, "ci95": [0.4, 0.6], "n": 4}
        Path(arguments[arguments.index("--output") + 1]).write_text(json.dumps(report))

    monkeypatch.setattr(subprocess, "run", run)
    training = {"text_config": {"model_type": "llama"}, "max_steps": 100, "per_device_train_batch_size": 2}
    script = curves.ScriptArguments(output=tmp_path / "curves.json", work=tmp_path / "work", training=training)
    for _ in range(2):
        curves.main(script)
    return recipes, tmp_path / "curves.json"


def test_each_decoder_is_trained_once_on_its_share_of_the_data_and_in_its_width(trained):
    recipes, output = trained
    trained_on = [(one["num_records"], one["text_config"]["hidden_size"]) for one in recipes]
    assert trained_on == [(20, 256), (60, 256), (200, 256), (200, 128), (200, 192)]
    assert all(one["text_config"]["num_attention_heads"] * 64 == one["text_config"]["hidden_size"] for one in recipes)
    report = json.loads(output.read_text())
    assert [one["percent"] for one in report["percent"]] == [10, 30, 100]
    assert len(report["parameters"]) == 3
    assert output.with_suffix(".png").exists()


def test_the_recipe_holds_what_the_script_takes(example):
    curves = example("curves.py")
    recipe = yaml.safe_load((Path(curves.__file__).parent / "recipes" / "nano_curves.yaml").read_text())
    assert curves.ScriptArguments(**recipe).training["max_steps"] > 0
