"""Curves against data and parameters: which decoders are trained, and what becomes of their figures."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from trl import TrlParser


@pytest.fixture
def trained(example, saved_model, snapshot, tmp_path, monkeypatch):
    """The fields that each training was given; the trainings themselves are left out."""
    curves, recipes, threads = example("nano/curves.py"), [], []

    def run(command, check, env):
        script, arguments = Path(command[1]).name, list(map(str, command[2:]))
        if script == "train.py":
            recipes.append(yaml.safe_load(Path(arguments[1]).read_text()))
            folder = Path(recipes[-1]["output_dir"])
            threads.append(env["OMP_NUM_THREADS"])
            log = [{"eval_facts_loss": 3.0}, {"loss": 2.0}, {"eval_facts_loss": 1.0, "eval_facts_runtime": 5.0}]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
            return
        figures = Path(arguments[arguments.index("--output") + 1])
        if figures.exists():  # finished tasks are kept
            return
        report = {"parameters": 10**6 * len(recipes)}
        for name in curves.FIGURES.values():
            task, _, metric = name.partition(".")
            report.setdefault(task, {})[metric] = {"value": 0.5, "ci95": [0.4, 0.6], "n": 4}
        figures.write_text(json.dumps(report))

    monkeypatch.setattr(subprocess, "run", run)
    training = {"text_config": {"model_type": "llama"}, "max_steps": 100, "per_device_train_batch_size": 2}
    paths = {"output": tmp_path / "curves.json", "work": tmp_path / "work", "model": saved_model}
    script = curves.ScriptArguments(**paths, jobs=3, training=training)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    curves.main(script)
    before = snapshot(tmp_path)
    curves.main(script)
    assert snapshot(tmp_path) == before
    assert threads == ["2"] * 5
    return recipes, tmp_path / "curves.json"


def test_each_decoder_is_trained_once_on_its_share_of_the_data_and_in_its_width(trained):
    recipes, output = trained
    trained_on = sorted((one["num_records"], one["text_config"]["hidden_size"]) for one in recipes)
    assert trained_on == [(20, 256), (60, 256), (200, 128), (200, 192), (200, 256)]
    assert all(Path(one["vision"], "model.safetensors").exists() for one in recipes)
    assert all(one["text_config"]["num_attention_heads"] * 64 == one["text_config"]["hidden_size"] for one in recipes)
    report = json.loads(output.read_text())
    assert [one["percent"] for one in report["percent"]] == [10, 30, 100]
    assert len(report["parameters"]) == 3
    assert all(one["losses"] == {"facts": 1} for one in report["percent"])
    assert output.with_suffix(".png").exists()


def test_a_training_that_fails_ends_all(example, saved_model, tmp_path, monkeypatch):
    curves, ran = example("nano/curves.py"), []

    def run(command, check, env):
        ran.append(command)
        time.sleep(0.2)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    training = {"text_config": {"model_type": "llama"}, "max_steps": 100, "per_device_train_batch_size": 2}
    paths = {"output": tmp_path / "curves.json", "work": tmp_path / "work", "model": saved_model}
    with pytest.raises(subprocess.CalledProcessError):
        curves.main(curves.ScriptArguments(**paths, jobs=1, training=training))
    assert len(ran) < 5 and not (tmp_path / "curves.json").exists()


def test_the_recipe_is_understood(example, tmp_path):
    curves, train = example("nano/curves.py"), example("train.py")
    recipe = yaml.safe_load((Path(train.__file__).parent / "recipes/nano/curves.yaml").read_text())
    fields = curves.ScriptArguments(**recipe).training
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**fields, "output_dir": str(tmp_path)}))
    parser = TrlParser((train.ScriptArguments, TrainingArguments))
    _, training = parser.parse_args_and_config(["--config", str(tmp_path / "train.yaml"), "--use_cpu"])
    assert training.max_steps == fields["max_steps"]
