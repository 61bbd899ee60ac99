"""Sentences about pictures: what is learned, what is asked, and what is said of it."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk
from PIL import Image
from trl import ModelConfig, SFTConfig, TrlParser

from dps_hf.inference import Answer


@pytest.fixture
def tables(tmp_path) -> list[str]:
    """Parquet files for training and development, which have one sentence in common."""

    def table(name: str, identifiers: list[str]) -> str:
        rows = [
            {
                "identifier": identifier,
                "sentence": f"There is a box {identifier}",
                "label": identifier < "c",
                "image": Image.new("RGB", (400, 100), "grey"),
            }
            for identifier in identifiers
        ]
        Dataset.from_list(rows).to_parquet(str(tmp_path / name))
        return str(tmp_path / name)

    return [table("train.parquet", ["a", "a", "b", "d", "c"]), table("dev.parquet", ["c", "c", "e", "a1"])]


@pytest.fixture
def script(example, saved_model, tables, tmp_path, monkeypatch):
    """The arguments; trainings are left out, and whoever is asked answers "true" where there are pictures."""
    nlvr = example("nano/nlvr.py")

    def run(command, check):
        shutil.copytree(saved_model, Path(command[-1]).parent, dirs_exist_ok=True)
        Path(command[-1]).with_name("trainer_state.json").touch()

    def ask(model, processor, questions, pictures, progress):
        if pictures is None:
            return [Answer("", "perhaps")] * len(questions)
        assert [[box.size for box in seen] for seen in pictures] == [[(100, 100)] * 3] * len(questions)
        return [Answer("", "true")] * len(questions)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(nlvr, "ask", ask)
    train, dev = tables
    return nlvr, nlvr.ScriptArguments(train=train, dev=dev, output=tmp_path / "nlvr.json", work=tmp_path / "work")


@pytest.fixture
def tuned(script):
    """The report, and the records that each model learned from."""
    nlvr, arguments = script
    nlvr.main(arguments)
    records = [load_from_disk(arguments.work / name / "records") for name in ("sentences_alone", "with_pictures")]
    return json.loads(arguments.output.read_text()), *records


def test_an_example_that_is_asked_is_never_learned_and_each_is_asked_once(tuned):
    report, _, seen = tuned
    learned = [messages[0]["content"][-1]["text"] for messages in seen["messages"]]
    assert learned == [f"There is a box {name} True or false?" for name in ("a", "a", "b", "d")]
    assert report["learned"] == {"examples": 3, "rows": 4}
    values = {name: report[name]["value"] for name in ("majority", "sentences_alone", "with_pictures")}
    # Of three, one is true: commoner in training, and what the one with pictures says.
    assert values == {"majority": 0.3333, "sentences_alone": 0, "with_pictures": 0.3333}
    assert report["with_pictures"]["n"] == 3


def test_one_model_sees_three_boxes_and_the_other_none(tuned):
    _, alone, seen = tuned
    assert [len(images) for images in alone["images"]] == [0] * 4
    assert [[picture.size for picture in images] for images in seen["images"]] == [[(100, 100)] * 3] * 4
    answers = [messages[-1]["content"][0]["text"] for messages in seen["messages"]]
    assert answers == ["true", "true", "true", "false"]


def test_models_of_other_data_are_not_taken_for_these(script):
    nlvr, arguments = script
    nlvr.main(arguments)
    with pytest.raises(ValueError, match="holds work with other train"):
        nlvr.main(dataclasses.replace(arguments, train=arguments.dev))


def test_a_label_that_is_no_boolean_is_refused(script):
    with pytest.raises(ValueError, match="label must be true or false; got 'false'"):
        script[0].write_answer({"label": "false"})


def test_the_recipe_is_understood(example, tmp_path):
    nlvr, sft = example("nano/nlvr.py"), example("sft.py")
    recipe = yaml.safe_load((Path(sft.__file__).parent / "recipes/nano/nlvr.yaml").read_text())
    fields = nlvr.ScriptArguments(train="a", dev="b", **recipe).sft
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**fields, "output_dir": str(tmp_path)}))
    parser = TrlParser((sft.ScriptArguments, SFTConfig, ModelConfig))
    script, training, _ = parser.parse_args_and_config(["--config", str(tmp_path / "sft.yaml"), "--use_cpu"])
    assert script.train == {"vision_tower": 3e-4} and training.num_train_epochs == fields["num_train_epochs"]
