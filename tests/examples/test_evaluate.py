"""A tiny random model is scored: figures for every task, honest intervals, finished tasks kept."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import TrainingArguments
from trl import TrlParser

from dps_hf.command_line import set_training_defaults
from dps_hf.nano import emoji
from dps_hf.nano.evaluation import EVALUATIONS


FIGURES = {
    "scenes_t2i": {"one_object", "two_objects", "counting", "position", "unseen_pair", "unseen_count"},
    "scenes_t2i_unguided": {"one_object", "two_objects", "counting", "position", "unseen_pair", "unseen_count"},
    "scenes_t2i_plan": {"counting", "position"},
    "scenes_t2i_plan_unguided": {"counting", "position"},
    "scenes_i2t": {"one_object", "exact", "unseen_pair", "unseen_count"},
    "scenes_i2t_languages": {"de", "es", "zh", *(f"new_wording_{language}" for language in ("en", "de", "es", "zh"))},
    "scenes_cot": {
        "answer",
        "direct",
        "unseen_pair",
        "unseen_count",
        "answer_attribute",
        "answer_count",
        "answer_exists",
    },  # the kinds of 4 questions
    "scenes_edit": {"exact", "direct"},
    "scenes_edit_unguided": {"exact", "direct"},
    "emoji_i2t": {f"{way}{name}" for way in ("", "direct_") for name in (*emoji.QUESTIONS, "mean")},
    "emoji_t2i": {"nn50", "drawn"},
    "emoji_t2i_unguided": {"nn50", "drawn"},
    "emoji_t2i_guided_by_3": {"nn50", "drawn"},
    "facts": {"en", "de", "es", "zh"},
    "image_tokenizer": {"psnr_db"},
    "right_vs_shuffled_words": {"right", "shuffled", "gap"},
    "features": {"image_r1", "text_r1"},
    "reference": {"emoji_art_nn50"},
    "everyday_wishes": {"people", "held_out_wording"},
    "everyday_questions": {"people", "held_out_wording", "think_people", "think_held_out_wording"},
    "everyday_descriptions": {"one_object", "exact", "sized"},
    "talk": {"direct", "think"},
}
# Figures of some of the items: which ones there are depends on the items.
PARTS = ("unseen_pair_", "new_picture", "people_", "think_people_")

NANO_TASKS = "dps_hf.nano.evaluation"


@pytest.fixture(scope="module")
def evaluate(example):
    return example("evaluate.py")


@pytest.fixture(scope="module")
def output(evaluate, saved_model, tmp_path_factory):
    """What `evaluate.py --items 4` writes."""
    path = tmp_path_factory.mktemp("results") / "tiny.json"
    sheet = "dps_hf.nano.sheets.draw_sheet"
    evaluate.main(evaluate.ScriptArguments([NANO_TASKS], model=saved_model, output=path, items=4, sheet=sheet))
    return path


def test_every_task_gives_its_figures(output):
    report = json.loads(output.read_text())
    assert set(FIGURES) == {evaluation.__name__ for evaluation in EVALUATIONS}
    for task, names in FIGURES.items():
        assert {name for name in report[task] if not name.startswith(PARTS)} == names, task
        for name, figure in report[task].items():
            assert set(figure) == {"value", "n", "ci95"}, f"{task}.{name}"
            assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1], f"{task}.{name}"
            assert figure["n"] == 4 or name.startswith(("answer_", *PARTS)), f"{task}.{name}"


def test_report_says_how_it_came_about(output):
    report = json.loads(output.read_text())
    assert report["parameters"] > 0
    assert report["command"].startswith("python ")
    sampling = {"guidance_scale": 3.0, "temperature": 1.0, "top_k": 7, "top_p": 1.0, "do_sample": True}
    assert sampling.items() <= report["recipe"].items()
    assert {"items", "seed", "weights", "torch", "transformers"} <= set(report["recipe"])


def test_drawings_are_put_on_a_page(output):
    with Image.open(output.with_suffix(".png")) as sheet:
        assert sheet.width > 1000 and sheet.height > 400


def test_finished_tasks_are_kept(evaluate, output, saved_model):
    before = json.loads(output.read_text())
    left = {name: value for name, value in before.items() if name != "facts"}
    left["emoji_t2i"]["nn50"]["value"] = 0.123
    before["command"] = left["command"] = "python examples/evaluate.py --items 4"
    output.write_text(json.dumps(left))
    tasks = [f"{NANO_TASKS}.emoji_t2i", f"{NANO_TASKS}.facts"]
    evaluate.main(evaluate.ScriptArguments(tasks, saved_model, output, items=4))
    after = json.loads(output.read_text())
    assert after["facts"] == before["facts"], "the same items give the same figures"
    assert after["command"] == before["command"], "a task that was added took the name of all"
    assert after["emoji_t2i"]["nn50"]["value"] == 0.123, "a finished task was scored again"


def test_a_task_is_scored_afresh_and_the_others_stay(evaluate, output, saved_model):
    before = json.loads(output.read_text())
    stale = json.loads(output.read_text())
    stale["facts"]["en"]["value"] = stale["features"]["text_r1"]["value"] = 0.123
    output.write_text(json.dumps(stale))
    again = {"model": saved_model, "output": output, "items": 4, "tasks": [f"{NANO_TASKS}.facts"], "fresh": True}
    evaluate.main(evaluate.ScriptArguments(**again))
    after = json.loads(output.read_text())
    assert after["facts"] == before["facts"] and after["features"]["text_r1"]["value"] == 0.123
    output.write_text(json.dumps(before))
    message = r"other items\. Give another --output, or --fresh and all tasks that it holds: scenes_t2i"
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.ScriptArguments(**{**again, "items": 5}))


def test_figures_of_another_recipe_are_never_mixed(evaluate, output, saved_model):
    with pytest.raises(ValueError, match=r"other items, guidance_scale\. Give another --output"):
        evaluate.main(evaluate.ScriptArguments([NANO_TASKS], saved_model, output, items=5, guidance=2.0))


JUDGE = """
from dps_hf.judges.verdict import Verdict


def whiteness(cases):
    return [Verdict({"white": 0.5}, "", "whiteness", case.origin) for case in cases]
"""


@pytest.fixture
def folder(tmp_path):
    """Pictures with captions, as people have them."""
    colours = ("red", "blue", "green", "black", "white", "yellow")
    (tmp_path / "squares").mkdir()
    for colour in colours:
        Image.new("RGB", (20, 16), colour).save(tmp_path / "squares" / f"{colour}.png")
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} square"} for colour in colours]
    (tmp_path / "squares" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "squares"


def test_a_folder_of_captioned_pictures_is_measured_and_judged(evaluate, saved_model, folder, monkeypatch, capsys):
    for library in ("sacrebleu", "rouge_score", "pycocoevalcap"):
        pytest.importorskip(library)
    (folder.parent / "my_own_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    output = folder.parent / "squares.json"
    options = {"model": saved_model, "output": output, "dataset": str(folder), "judge": "my_own_judge.whiteness"}
    evaluate.main(evaluate.ScriptArguments(**options))
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert "The records hold 6 captions, 6 drawings." in printed
    assert list(report["seconds"]) == ["captions", "drawings", "retrieval", "right_words", "judgements"]
    assert report["judgements"]["drawings"] == {"value": 0.5, "n": 6, "ci95": [0.5, 0.5]}
    assert report["recipe"]["dataset"] == "squares" and str(folder) not in json.dumps(report["recipe"])
    for task in report["seconds"]:
        for figure in report[task].values():
            assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] + 1e-6 and figure["n"] == 6
    with Image.open(output.with_suffix(".png")) as sheet:
        assert sheet.height > 400

    evaluate.main(evaluate.ScriptArguments(**options))
    assert "batch" not in capsys.readouterr().out and json.loads(output.read_text()) == report, "nothing is run again"
    Image.new("RGB", (20, 16), "pink").save(folder / "red.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "red.png", "text": "another"}')
    with pytest.raises(ValueError, match="other dataset_fingerprint"):
        evaluate.main(evaluate.ScriptArguments(**options))


def test_what_a_training_held_out_can_be_measured(evaluate, saved_model, folder, capsys):
    pytest.importorskip("sacrebleu")
    output = folder.parent / "part.json"
    options = {"model": saved_model, "output": output, "dataset": {"path": str(folder)}, "evaluation_share": 0.34}
    evaluate.main(evaluate.ScriptArguments(**options))
    printed = capsys.readouterr().out
    assert "The records hold 2 captions, 2 drawings." in printed
    assert "6 rows: 4 for training, 2 held out with the seed 0." in printed


def test_the_training_scripts_and_recipes_have_the_seed_that_is_supposed(evaluate):
    examples, seed = Path(evaluate.__file__).parent, evaluate.ScriptArguments().training_seed
    for script in ("train", "train_image_tokenizer", "sft", "dpo", "kto", "grpo"):
        assert "set_training_defaults(parser)" in (examples / f"{script}.py").read_text(), script
    parser = TrlParser(TrainingArguments)
    set_training_defaults(parser)
    [training] = parser.parse_args_and_config([])
    assert training.seed == seed and training.dataloader_pin_memory == torch.accelerator.is_available()
    for path in examples.glob("recipes/**/*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        if "evaluation_share" in recipe:
            assert recipe["seed"] == seed, path


def test_a_data_set_is_named_on_the_command_line_or_described_in_a_recipe(evaluate, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: [{path: mine, split: test}, theirs]\n")
    for arguments, dataset in (
        (["--dataset", "mine"], "mine"),
        (["--config", str(recipe)], [{"path": "mine", "split": "test"}, "theirs"]),
    ):
        [script] = TrlParser(evaluate.ScriptArguments).parse_args_and_config(arguments)
        assert script.dataset == dataset


def test_a_judge_without_a_data_set_is_refused(evaluate):
    with pytest.raises(ValueError, match="judge scores answers to a dataset"):
        evaluate.ScriptArguments(judge="my.judge")


def test_temperature_zero_is_greedy(evaluate):
    script = evaluate.ScriptArguments(temperature=0.0)
    config = evaluate.GenerationConfig(guidance_scale=2.0)
    assert evaluate.choose_sampling(script, config) == {"guidance_scale": 2.0, "do_sample": False}


def test_the_recipe_measures_dps_nano(evaluate):
    path = Path(evaluate.__file__).parent / "recipes/nano/evaluate.yaml"
    [script] = TrlParser(evaluate.ScriptArguments).parse_args_and_config(["--config", str(path)])
    assert (script.tasks, script.items, script.temperature, script.guidance) == ([NANO_TASKS], 500, 0, 1.5)
    assert script.output == Path("model_cards/results/dps-nano.json")
