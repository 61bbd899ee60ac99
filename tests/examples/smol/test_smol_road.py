"""The road of `make smol` on a tiny random language model in place of the published one."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import LlamaForCausalLM, TrainingArguments
from trl import ModelConfig, SFTConfig

from dps_hf.nano import emoji


ROOT = Path(__file__).parents[3]
SHORT = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="session")
def base(make_text_config, tiny_tokenizer, tmp_path_factory):
    """The folder of a tiny random language model."""
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(make_text_config(max_position_embeddings=512)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parts(example, base, tmp_path_factory):
    """What `make_model.py` makes of it."""
    output = tmp_path_factory.mktemp("smol") / "parts"
    example("smol/make_model.py").main(str(output), str(base))
    return output


def test_the_data_are_pictures_with_captions_and_the_answers_of_the_model(example, parts, tmp_path, monkeypatch):
    script = example("smol/make_data.py")
    answers = iter(["Paris. It lies on the Seine.", "It is 3.5", "Yes! And no."])
    monkeypatch.setattr(script, "QUESTIONS", tmp_path / "questions.txt")
    (tmp_path / "questions.txt").write_text("Where?\nHow much?\nReally?\n")

    def ask(model, processor, questions, **options):
        return [type("Answer", (), {"text": next(answers)}) for _ in questions]

    monkeypatch.setattr(script.dps_hf, "ask", ask)
    script.main(str(parts), tmp_path / "data", 3)
    for split in ("train", "validation"):
        folder = tmp_path / "data" / ("train" if split == "train" else "held_out")
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert [row["text"] for row in rows] == [pair.names["en"] for pair in emoji.select_pairs(split)[:3]]
        assert Image.open(folder / rows[0]["file_name"]).size == (64, 64)
    text = [json.loads(line) for line in (tmp_path / "data" / "text.jsonl").read_text().splitlines()]
    assert text == [{"prompt": "Where?", "completion": "Paris."}, {"prompt": "Really?", "completion": "Yes!"}]


def test_no_held_out_picture_and_no_held_out_question_is_trained(example):
    script = example("smol/make_data.py")
    trained = {(pair.codepoints, pair.style) for pair in emoji.select_pairs("train")}
    assert not trained & {(pair.codepoints, pair.style) for pair in emoji.select_pairs("validation")}
    lines = (script.QUESTIONS.parent / "knowledge.jsonl").read_text().splitlines()
    asked = {json.loads(line)["prompt"].casefold() for line in lines}
    learned = script.QUESTIONS.read_text().splitlines()
    assert not asked & {question.casefold() for question in learned}
    assert not any("france" in question.casefold() for question in learned)


def test_the_page_shows_names_drawings_and_answers(example, parts, tmp_path):
    held_out = tmp_path / "held_out"
    example("smol/make_data.py").write_pictures("validation", held_out, 3)
    figures = tmp_path / "names.json"
    figure = {"value": 0.25, "ci95": [0.1, 0.4], "n": 12}
    figures.write_text(json.dumps({"seconds": {"questions": 1.0}, "questions": {"exact": figure}}))
    page = tmp_path / "page.html"
    example("smol/make_page.py").main(str(parts), held_out, page, [figures], "What <b> is it?", 3, 2)
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 3 + 2 * 2
    assert "0.100 to 0.400" in html and "What &lt;b&gt; is it?" in html
    names = [json.loads(line)["text"] for line in (held_out / "metadata.jsonl").read_text().splitlines()]
    assert all(re.search(f"<b>{re.escape(name)}</b>", html) for name in names)
    assert "capital of France" in html
    assert "25.0% of 12 held-out pictures" in html and "always the same is right for 33.3%" in html


def test_the_recipes_have_only_fields_of_the_script_that_their_page_names(example):
    folder = ROOT / "examples/recipes/smol"
    rows = re.findall(r"^\| `([\w.]+)` \| `examples/([\w./]+)` \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(path.name for path in folder.glob("*.yaml"))
    libraries = {"train.py": (TrainingArguments,), "sft.py": (SFTConfig, ModelConfig), "evaluate.py": ()}
    for name, script in rows:
        known = {field.name for one in (example(script).ScriptArguments, *libraries[script]) for field in fields(one)}
        assert set(yaml.safe_load((folder / name).read_text())) <= known, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_road_goes_from_a_language_model_to_a_page_and_files_for_llama_cpp(base, tmp_path):
    """All stages with the shipped recipes, each for two steps."""
    out, recipes = tmp_path / "runs", tmp_path / "recipes"
    recipes.mkdir()
    for recipe in (ROOT / "examples/recipes/smol").glob("*.yaml"):
        settings = yaml.safe_load(recipe.read_text().replace("runs/smol", str(out)))
        settings |= SHORT if "max_steps" in settings else {"items": 4}
        (recipes / recipe.name).write_text(yaml.safe_dump(settings))
    variables = {"python": sys.executable, "out": out, "recipes": recipes}
    variables |= {"model_args": f"--base {base}", "data_args": "--limit 6"}
    command = ["make", "--file=examples/smol/smol.mk", *(f"{name}={value}" for name, value in variables.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def make(*targets):
        return subprocess.run([*command, *targets], cwd=ROOT, env=environment, capture_output=True, text=True)

    done = make(f"{out}/data/text.jsonl")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [{"prompt": "hello", "completion": "Hello."}, {"prompt": "Name a fruit.", "completion": "An apple."}]
    (out / "data/text.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )  # random words are no answers
    done = make()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(list((out / "gguf").glob("*.gguf"))) == 2
    assert "data:image/png;base64," in (out / "page.html").read_text()
    figures = json.loads((out / "names.json").read_text())
    assert figures["questions"]["exact"]["n"] == 4
    assert json.loads((out / "knowledge.json").read_text())["questions"]["contained"]["n"] == 4

    again = make().stdout
    assert "Nothing to be done" in again or "up to date" in again
