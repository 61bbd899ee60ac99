"""The training scripts, run on tiny parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import AutoTokenizer, SiglipVisionConfig, SiglipVisionModel, TrainingArguments
from trl import TrlParser
from two_processes import launch

from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.training.resuming import find_last_checkpoint


ROOT = Path(__file__).parents[2]
TRAINING = {
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}


@pytest.fixture
def recipe(tmp_path, tiny_tokenizer):
    """A recipe for `train.py` whose parts are tiny; pictures have 64 pixels, as the tasks draw them."""
    tiny_tokenizer.save_pretrained(tmp_path / "text")
    SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=32,
            vision_use_head=False,
        )
    ).save_pretrained(tmp_path / "tower")
    DPSImageTokenizer(
        DPSImageTokenizerConfig(image_size=64, patch_size=16, hidden_sizes=(8, 8), num_res_blocks=1, levels=(4, 4))
    ).save_pretrained(tmp_path / "codes")
    fields = {
        "text_config": {
            "model_type": "llama",
            "vocab_size": 8,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
        },
        "text_tokenizer": str(tmp_path / "text"),
        "vision": str(tmp_path / "tower"),
        "image_tokenizer": str(tmp_path / "codes"),
        "tasks": {
            "dps_hf.nano.tasks.scenes_t2i": 1,
            "dps_hf.nano.tasks.scenes_i2t": 1,
            "dps_hf.nano.tasks.scenes_edit": 1,
            "dps_hf.nano.tasks.facts": 1,
        },
        "evaluation_records": 4,
        "prompt_dropout": 0.5,
        **TRAINING,
    }

    def write(name: str, **overrides) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**fields, "output_dir": str(tmp_path / name), **overrides}))
        return path

    return write


def command(script: str, recipe: Path) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / script), "--config", str(recipe)]


def losses(output_dir: Path) -> dict[int, float]:
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return {row["step"]: row["loss"] for row in log if "loss" in row}


def run(script: str, recipe: Path) -> None:
    result = subprocess.run(command(script, recipe), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture
def call_again(example, snapshot, capsys):
    """Runs the command of a finished training in this process: it must say so and change nothing."""

    def run(script: str, recipe: Path) -> None:
        module, folder = example(script), Path(yaml.safe_load(recipe.read_text())["output_dir"])
        before = snapshot(folder)
        module.main(
            *TrlParser((module.ScriptArguments, TrainingArguments)).parse_args_and_config(["--config", str(recipe)])
        )
        assert f"The training in {folder} is finished" in capsys.readouterr().out
        assert snapshot(folder) == before

    return run


def test_training_saves_a_model_its_processor_and_its_curves(recipe, tmp_path, call_again):
    run("train.py", recipe("run", max_steps=2, eval_strategy="steps", eval_steps=2))
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "processor_config.json", "modeling_dps.py", "curves.png"} <= written
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_scenes_t2i_shuffled_words_loss" in row for row in log)
    call_again("train.py", tmp_path / "run.yaml")


def test_training_goes_on_with_another_image_tokenizer(recipe, tmp_path):
    run("train.py", recipe("run", max_steps=1))
    codes = DPSImageTokenizerConfig(
        image_size=64, patch_size=16, hidden_sizes=(8, 8), num_res_blocks=1, levels=(4, 2), colour_levels=(4, 2)
    )
    DPSImageTokenizer(codes).save_pretrained(tmp_path / "codes")
    run("train.py", recipe("on", max_steps=1, model=str(tmp_path / "run")))
    before, after = (json.loads((tmp_path / name / "processor_config.json").read_text()) for name in ("run", "on"))
    assert (before["grid_size"], after["grid_size"], after["num_codes"]) == (2, 2, 8)


def test_how_pictures_become_square_is_chosen_and_saved(recipe, tmp_path, example):
    run("train.py", recipe("run", max_steps=1, eval_strategy="no", fit="pad-edge", drawing_fit="stretch"))
    processor = json.loads((tmp_path / "run" / "processor_config.json").read_text())["image_processor"]
    assert (processor["fit"], processor["drawing_fit"]) == ("pad-edge", "stretch")
    train = example("train.py")
    with pytest.raises(ValueError, match=r"fit must be one of crop, .*; got 'cut'"):
        script = train.ScriptArguments(model=str(tmp_path / "run"), fit="cut")
        train.main(script, TrainingArguments(str(tmp_path / "other"), use_cpu=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config": {"model_type": "lama"}}, "model_type that transformers knows, such as llama; .*lama"),
        (
            {"text_config": {"model_type": "llama"}, "vision": "x"},
            "Give the folder of image_tokenizer, or model",
        ),
    ],
)
def test_what_a_model_cannot_be_made_of_is_named(example, tmp_path, fields, message):
    train = example("train.py")
    with pytest.raises(ValueError, match=message):
        train.main(train.ScriptArguments(**fields), TrainingArguments(str(tmp_path), use_cpu=True))


def test_every_part_of_dps_nano_has_its_recipe_and_comes_after_what_it_needs():
    command = ["make", "--always-make", "--dry-run", "--file=examples/nano/nano.mk", f"python={sys.executable}"]
    planned = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    recipes = [line.rsplit("--config ", 1)[1] for line in planned.splitlines() if "--config " in line]
    assert all((ROOT / path).exists() for path in recipes)
    place = {Path(path).stem: index for index, path in enumerate(recipes)}
    assert place["model"] == len(recipes) - 1 == 3
    needs = yaml.safe_load((ROOT / "examples/recipes/nano/model.yaml").read_text())
    for field, name in (("text_tokenizer",) * 2, ("image_tokenizer",) * 2, ("vision", "vision_tower")):
        made = yaml.safe_load((ROOT / "examples/recipes/nano" / f"{name}.yaml").read_text())["output_dir"]
        assert made == needs[field] and place[name] < place["model"]


@pytest.mark.slow
@pytest.mark.parametrize("rates", [{}, {"decoder": 1e-3, "new_tokens": 1e-2, "connector": 3e-3, "vision_tower": 0}])
def test_a_killed_training_resumes_to_the_same_losses(rates, recipe, tmp_path):
    chances = {
        "train": rates,
        "prompt_dropout": 0.3,
        "code_dropout": 0.5,
        "extra_loss": "dps_hf.nano.name_alignment.name_alignment_loss",
    }
    chances |= {"eval_strategy": "steps", "eval_steps": 2}  # as often as it is saved, which must change nothing
    run("train.py", recipe("whole", **chances))
    killed = recipe("killed", **chances)
    process = subprocess.Popen(
        command("train.py", killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    deadline = time.monotonic() + 300
    while find_last_checkpoint(tmp_path / "killed") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert find_last_checkpoint(tmp_path / "killed"), "there is nothing to go on from"
    assert not (tmp_path / "killed" / "model.safetensors").exists(), "it had finished before it was killed"
    run("train.py", killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does_wherever_the_pictures_are(kind, recipe, tmp_path):
    fields = {
        "tasks": {"dps_hf.nano.tasks.scenes_i2t": 1, "dps_hf.nano.tasks.scenes_t2i": 1, "dps_hf.nano.tasks.facts": 2},
        "per_device_train_batch_size": 1,
    }
    fields |= {
        "extra_loss": "dps_hf.nano.name_alignment.name_alignment_loss",
        "extra_loss_steps": 3,
        "code_smoothing": 0.1,
        "prompt_dropout": 0.0,
        "learning_rate": 0.003,
    }
    run("train.py", recipe("one", **fields, gradient_accumulation_steps=2))
    script = str(ROOT / "examples/train.py")
    result = subprocess.run(
        launch(kind, script, "--config", str(recipe("two", **fields))), capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-5000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) and list(two.values()) == pytest.approx(list(one.values()), abs=1e-3)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["architectures"] == ["DPSForConditionalGeneration"]


def test_an_image_tokenizer_trains_from_its_recipe(tmp_path, call_again):
    fields = yaml.safe_load((ROOT / "examples/recipes/nano/image_tokenizer.yaml").read_text())
    fields |= {**TRAINING, "output_dir": str(tmp_path / "codes"), "max_steps": 2, "num_evaluation_pictures": 4}
    fields |= {"eval_steps": 2, "per_device_eval_batch_size": 4}
    (tmp_path / "codes.yaml").write_text(yaml.safe_dump(fields))
    run("train_image_tokenizer.py", tmp_path / "codes.yaml")
    assert DPSImageTokenizer.from_pretrained(tmp_path / "codes").config.codebook_size == 4096
    call_again("train_image_tokenizer.py", tmp_path / "codes.yaml")


@pytest.fixture
def class_folders(tmp_path) -> Path:
    """Pictures of several shapes in folders of classes, without captions; one is no picture."""
    for i in range(12):
        (tmp_path / "pictures" / f"class_{i % 3}").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (24 + 4 * i, 40), (20 * i, 100, 50))
        picture.save(tmp_path / "pictures" / f"class_{i % 3}" / f"{i}.png")
    (tmp_path / "pictures" / "class_0" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.mark.parametrize("streams", [False, True])
def test_an_image_tokenizer_trains_on_a_folder_of_pictures(streams, class_folders, tmp_path, example, capsys):
    module = example("train_image_tokenizer.py")
    fields = {"image_size": 32, "patch_size": 4, "hidden_sizes": [8, 8], "num_res_blocks": 1, "levels": [4, 4]}
    fields = {**TRAINING, "output_dir": str(tmp_path / "codes"), "model": fields, "drawing_fit": "stretch"}
    fields |= {"dataset": str(class_folders), "evaluation_share": 0.25, "max_skipped": 0.2}
    if streams:
        held_out = str(class_folders / "class_1")
        fields |= {"dataset": {"path": str(class_folders), "streaming": True}, "evaluation_dataset": held_out}
    (tmp_path / "codes.yaml").write_text(yaml.safe_dump(fields))
    parser = TrlParser((module.ScriptArguments, TrainingArguments))
    module.main(*parser.parse_args_and_config(["--config", str(tmp_path / "codes.yaml")]))
    assert DPSImageTokenizer.from_pretrained(tmp_path / "codes").config.image_size == 32
    printed = capsys.readouterr().out
    assert "pictures (images: image)" in printed and "eval_psnr_db" in printed
    assert f"1 rows without a readable picture are listed in {tmp_path / 'codes' / 'skipped.jsonl'}" in printed
    assert "unreadable picture" in (tmp_path / "codes" / "skipped.jsonl").read_text()


def test_an_image_tokenizer_needs_pictures_from_one_place(example):
    arguments = example("train_image_tokenizer.py").ScriptArguments
    for fields, got in (({}, "neither"), ({"dataset": "mine", "tasks": {"a.b": 1}}, "both")):
        with pytest.raises(ValueError, match=f"Either dataset or tasks must be given; got {got}"):
            arguments(**fields)
    with pytest.raises(ValueError, match=r"drawing_fit must be one of .*; got 'zoom'"):
        arguments(dataset="mine", drawing_fit="zoom")


def test_a_vision_tower_trains_from_its_recipe(tmp_path, call_again):
    fields = yaml.safe_load((ROOT / "examples/recipes/nano/vision_tower.yaml").read_text())
    fields |= {
        **TRAINING,
        "output_dir": str(tmp_path / "tower"),
        "max_steps": 2,
        "teacher_steps": 2,
        "eval_strategy": "no",
    }
    (tmp_path / "tower.yaml").write_text(yaml.safe_dump(fields))
    run("nano/train_vision_tower.py", tmp_path / "tower.yaml")
    assert SiglipVisionModel.from_pretrained(tmp_path / "tower").config.image_size == 64
    call_again("nano/train_vision_tower.py", tmp_path / "tower.yaml")


def test_the_text_tokenizer_reads_all_languages_plans_edits_and_hints(example):
    script = example("train_text_tokenizer.py")
    fields = yaml.safe_load((ROOT / "examples/recipes/nano/text_tokenizer.yaml").read_text())
    text = "\n".join(script.read_texts(script.ScriptArguments(**{**fields, "records": 1200})))
    for words in ("small red", "kleiner roter", "rojo pequeño", "红色的小", "Hauptstadt", "¿Cuál es", "首都"):
        assert words in text, words
    for words in ("<think>row ", "Remove the ", " into a", " Hint: I see "):
        assert words in text, words
    assert "A picture:" not in text, "held-out words"


def test_a_text_tokenizer_learns_from_texts_of_ones_own(example, tmp_path, monkeypatch):
    (tmp_path / "my_texts.py").write_text('def names():\n    return ["red panda", "polar bear", "grey whale"] * 50\n')
    monkeypatch.syspath_prepend(tmp_path)
    script = example("train_text_tokenizer.py")
    script.main(
        script.ScriptArguments(str(tmp_path / "text"), texts=["my_texts.names"], vocab_size=288, codebook_size=8)
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert len(tokenizer) == 288 and tokenizer.decode(tokenizer("red panda").input_ids) == "red panda"
    assert len(tokenizer.encode("panda")) < len("panda")
