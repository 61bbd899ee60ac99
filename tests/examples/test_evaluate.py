"""A tiny random model is scored: figures for every task, honest intervals, finished tasks kept."""

import json
from pathlib import Path

import pytest
from PIL import Image
from trl import TrlParser

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
    "emoji_t2i": {"nn50"},
    "emoji_t2i_unguided": {"nn50"},
    "emoji_t2i_guided_by_3": {"nn50"},
    "facts": {"en", "de", "es", "zh"},
    "image_tokenizer": {"psnr_db"},
    "right_vs_shuffled_words": {"right", "shuffled", "gap"},
    "features": {"image_r1", "text_r1"},
    "reference": {"emoji_art_nn50"},
}

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
        assert {name for name in report[task] if not name.startswith(("unseen_pair_", "new_picture"))} == names, task
        for name, figure in report[task].items():
            assert set(figure) == {"value", "n", "ci95"}, f"{task}.{name}"
            assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1], f"{task}.{name}"
            assert figure["n"] == 4 or name.startswith(("answer_", "unseen_pair_", "new_picture")), f"{task}.{name}"


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


def test_temperature_zero_is_greedy(evaluate):
    script = evaluate.ScriptArguments(temperature=0.0)
    config = evaluate.GenerationConfig(guidance_scale=2.0)
    assert evaluate.choose_sampling(script, config) == {"guidance_scale": 2.0, "do_sample": False}


def test_the_recipe_measures_dps_nano(evaluate):
    path = Path(evaluate.__file__).parent / "recipes/nano/evaluate.yaml"
    [script] = TrlParser(evaluate.ScriptArguments).parse_args_and_config(["--config", str(path)])
    assert (script.tasks, script.items, script.temperature, script.guidance) == ([NANO_TASKS], 500, 0, 1.5)
    assert script.output == Path("model_cards/results/dps-nano.json")
