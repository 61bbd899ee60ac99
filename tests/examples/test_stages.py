"""The three stages of a DPS of published parts, by the shipped recipes, on shrunk parts of the same classes."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig, TrlParser

from dps_hf.components import find_untrained_parts
from dps_hf.inference import ask, load


RECIPES = Path(__file__).parents[2] / "examples/recipes"
FOLDERS = ["smollm2_360m", "smollm2_1.7b"]
COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
SCRIPTS = {"connector": "train.py", "mixture": "train.py", "instructions": "sft.py"}
SMALL = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "eval_steps": 20,
    "save_steps": 20,
    "logging_steps": 1,
    "warmup_steps": 0,
    "evaluation_share": 0.1,
    "prompt_dropout": 0.0,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


def parse(module, script: str, path: Path) -> tuple:
    others = (TrainingArguments,) if script == "train.py" else (SFTConfig, ModelConfig)
    parser = TrlParser((module.ScriptArguments, *others))
    if script == "sft.py":
        parser.set_defaults(assistant_only_loss=True)  # as the script does
    return parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true"])


@pytest.fixture
def stage(example, tmp_path, monkeypatch):
    """Runs a stage by its recipe with some fields changed; returns its folder and its losses."""
    monkeypatch.chdir(tmp_path)

    def run(folder: str, name: str, **fields) -> tuple[Path, list[float]]:
        recipe = yaml.safe_load((RECIPES / folder / f"{name}.yaml").read_text()) | SMALL | fields
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        module = example(SCRIPTS[name])
        module.main(*parse(module, SCRIPTS[name], path))
        log = json.loads((tmp_path / recipe["output_dir"] / "trainer_state.json").read_text())["log_history"]
        return tmp_path / recipe["output_dir"], [row["loss"] for row in log if "loss" in row]

    return run


@pytest.fixture
def my_data(tmp_path) -> Path:
    """What a user has: a folder of captioned pictures, LLaVA's conversations, others for tuning, and words."""
    captions = tmp_path / "data/captions"
    captions.mkdir(parents=True)
    rows, talks, instructions = [], [], []
    for i, colour in enumerate(COLOURS * 40):
        Image.new("RGB", (20, 16), colour).save(captions / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": colour})
        talk = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": colour}]
        talks.append({"image": f"{i}.png", "conversations": talk})
        talk = [talk[0], {"from": "gpt", "value": f"It is {colour}."}]
        instructions.append({"image": f"{i}.png", "conversations": talk})
    (captions / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (captions.parent / "talks.json").write_text(json.dumps(talks))
    (captions.parent / "instructions.json").write_text(json.dumps(instructions))
    words = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]] * 60
    (captions.parent / "texts.jsonl").write_text("\n".join(json.dumps({"messages": one}) for one in words))
    return captions.parent


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_recipe_of_stages_is_understood(folder, name, example):
    module = example(SCRIPTS[name])
    script, training, *_ = parse(module, SCRIPTS[name], RECIPES / folder / f"{name}.yaml")
    assert script.dataset and script.train
    assert Path(training.output_dir) == Path("runs", folder, name)


@pytest.mark.parametrize("script", ["train.py", "sft.py", "dpo.py", "kto.py", "grpo.py"])
def test_bf16_is_no_mistake_on_a_cpu(script, tmp_path, monkeypatch, capsys):
    model = "--model" if script == "train.py" else "--model_name_or_path"
    judged = ["--judge", "dps_hf.nano.exact_judge.exact_judge", "--prompts", "mine.txt"]
    data = judged if script == "grpo.py" else ["--dataset", "mine.jsonl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, model, "no/such/folder", *data, "--bf16", "true", "--output_dir", "out"])
    Path("mine.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello", "rejected": "Bye"}')
    Path("mine.txt").write_text("a red heart")
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPES.parent / script), run_name="__main__")
    said = capsys.readouterr().err
    assert "no/such/folder" in said and "bf16" not in said


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_stage_starts_from_what_the_stage_before_makes(folder):
    recipes = {name: yaml.safe_load((RECIPES / folder / f"{name}.yaml").read_text()) for name in SCRIPTS}
    assert recipes["mixture"]["model"] == recipes["connector"]["output_dir"]
    assert recipes["instructions"]["model_name_or_path"] == recipes["mixture"]["output_dir"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_three_stages_by_the_shipped_recipes_make_a_model_that_learns(
    folder, stage, my_data, shrunk_parts, example, tmp_path
):
    parts = {"text": shrunk_parts["text"], "vision": shrunk_parts["vision"], "image_tokenizer": shrunk_parts["codes"]}
    captions = {"path": str(my_data / "captions"), "captions": {"describe": {"prompts": ["Colour?"]}}}
    talks, instructions = (
        {"path": str(my_data / f"{name}.json"), "image_folder": str(my_data / "captions")}
        for name in ("talks", "instructions")
    )
    texts = {"path": str(my_data / "texts.jsonl"), "weight": 1}
    rates = {"connector": 1e-2, "new_tokens": 1e-2}

    first, losses = stage(folder, "connector", **parts, model=None, dataset=captions, train=rates | {"decoder": 0})
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # the frozen decoder is random here
    assert find_untrained_parts(load(first, device="cpu")[0].config) == []

    mixture = [captions | {"weight": 2}, talks | {"weight": 2}, texts]
    second, losses = stage(
        folder, "mixture", dataset=mixture, train={"decoder": 3e-3, "new_tokens": 3e-3, "connector": 3e-3}
    )
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    log = json.loads((second / "trainer_state.json").read_text())["log_history"]
    assert {"eval_captions_loss", "eval_talks_loss", "eval_texts_loss"} <= {name for row in log for name in row}

    third, losses = stage(
        folder, "instructions", dataset=instructions, train={"decoder": 3e-3}, lora_dropout=0.0, num_train_epochs=2
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    merge = example("merge_adapter.py")
    merge.main(merge.ScriptArguments(str(third), str(tmp_path / "merged")), ModelConfig())
    model, processor = load(tmp_path / "merged", device="cpu")
    assert find_untrained_parts(model.config) == []
    pictures = [Image.new("RGB", (16, 16), colour) for colour in COLOURS]
    assert len(ask(model, processor, ["Colour?"] * len(pictures), pictures, max_new_tokens=8)) == len(COLOURS)
