"""The options of any trl script, on data of one's own: each runs a few steps of `train.py` or `sft.py`."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig, TrlParser

from dps_hf.inference import load
from dps_hf.training.datasets import DataArguments, make_training_data


SCRIPTS = ["train.py", "sft.py"]
TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 0,
}


@pytest.fixture
def captions(tmp_path) -> str:
    """A folder of captioned pictures, one of which cannot be read."""
    folder = tmp_path / "captions"
    folder.mkdir()
    rows = []
    for i in range(40):
        colour = ["red", "green", "blue", "white"][i % 4]
        Image.new("RGB", (20, 16), colour).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": colour})
    (folder / "7.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture
def words(tmp_path) -> str:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    (tmp_path / "words.jsonl").write_text("\n".join([json.dumps({"messages": chat})] * 20))
    return str(tmp_path / "words.jsonl")


@pytest.fixture
def train(example, saved_model, tmp_path):
    """Runs a script on the tiny model by a recipe."""

    def run(script: str, output: str = "run", **fields) -> Path:
        name = "model" if script == "train.py" else "model_name_or_path"
        recipe = {**TRAINING, name: saved_model, "output_dir": str(tmp_path / output), **fields}
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        module = example(script)
        others = (TrainingArguments,) if script == "train.py" else (SFTConfig, ModelConfig)
        parser = TrlParser((module.ScriptArguments, *others))
        module.main(*parser.parse_args_and_config(["--config", str(path)]))
        return tmp_path / output

    return run


def read_log(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_log(folder) if name in row]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_share_of_ones_own_data_is_held_out_and_bad_rows_are_listed(script, train, captions):
    output = train(script, dataset=captions, evaluation_share=0.2, num_train_epochs=1, max_steps=-1)
    assert len(logged(output, "eval_loss")) >= 2
    [bad] = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert bad["row"] == 7 and "picture" in bad["reason"]


def test_a_share_is_held_out_from_a_training_that_does_not_evaluate(saved_model, words, tmp_path):
    model, processor = load(saved_model, device="cpu")
    training = TrainingArguments(str(tmp_path), eval_strategy="no", use_cpu=True, seed=0)
    records, held_out = make_training_data(DataArguments(words, evaluation_share=0.2), training, model, processor)
    assert len(records) == 16 and held_out == {}
    assert len(make_training_data(DataArguments(words), training, model, processor)[0]) == 20


@pytest.mark.parametrize("script", SCRIPTS)
def test_data_and_tasks_are_learned_together_and_evaluated_apart(script, train, words, example):
    output = train(
        script,
        dataset=words,
        dataset_weight=1,
        tasks={"dps_hf.nano.tasks.facts": 1},
        evaluation_dataset=words,
        evaluation_records=2,
    )
    assert logged(output, "eval_words_loss") and logged(output, "eval_facts_loss")


def test_records_of_data_come_among_those_of_tasks_each_once_in_an_epoch(words):
    from dps_hf.data.mixture import Mixture
    from dps_hf.training.datasets import _Beside

    mixture = Mixture({"dps_hf.nano.tasks.facts": 1}, length=200, block=2)
    mixed = _Beside(mixture, [{"number": i} for i in range(50)], weight=3)
    records = [mixed[i] for i in range(200)]
    numbers = [record.get("number") for record in records]
    assert 0.6 < sum(number is not None for number in numbers) / 200 < 0.9
    for start in range(0, 200, 50):
        epoch = [number for number in numbers[start : start + 50] if number is not None]
        assert len({*epoch}) == len(epoch) > 20
    assert all((a is None) == (b is None) for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    assert records == [mixed[i] for i in range(200)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_data_are_streamed(script, train, captions, words):
    stream = {"path": captions, "streaming": True}
    output = train(script, dataset=stream, evaluation_dataset={"path": words, "streaming": True})
    assert len(logged(output, "loss")) == 4 and logged(output, "eval_loss")
    with pytest.raises(ValueError, match="streamed needs max_steps"):
        train(script, "endless", dataset=stream, max_steps=-1, eval_strategy="no")


def test_live_and_ahead_encoding_come_to_the_same_losses(train, captions):
    ahead, live = (
        logged(train("sft.py", how, dataset=captions, encode_drawings=how, eval_strategy="no"), "loss")
        for how in ("ahead", "live")
    )
    assert ahead == pytest.approx(live, rel=1e-5)


@pytest.mark.parametrize("lora", [{}, {"use_peft": True, "lora_r": 2}])
def test_packed_records_are_learned(train, captions, lora):
    output = train("sft.py", dataset=captions, packing=True, assistant_only_loss=True, **lora)
    assert len(logged(output, "loss")) == 4 and logged(output, "eval_loss")


def test_padded_records_are_learned_by_train(train, captions):
    assert len(logged(train("train.py", dataset=captions, packing=False), "loss")) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_learned_of_a_conversation_can_be_chosen(script, train, words):
    answers, all_text = (
        logged(train(script, str(only), dataset=words, assistant_only_loss=only, eval_strategy="no"), "loss")[0]
        for only in (True, False)
    )
    assert answers != all_text


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_best_model_is_loaded_and_only_so_many_checkpoints_are_kept(script, train, words):
    fields = {"load_best_model_at_end": True, "save_total_limit": 1, "learning_rate": 1.0, "max_steps": 8}
    output = train(script, dataset=words, evaluation_dataset=words, **fields)
    state = json.loads((output / "trainer_state.json").read_text())
    losses = logged(output, "eval_loss")
    assert state["best_metric"] == min(losses) and len([*output.glob("checkpoint-*")]) <= 2
    with pytest.raises(ValueError, match="metric_for_best_model must be one of eval_words_loss, eval_facts_loss"):
        tasks = {"tasks": {"dps_hf.nano.tasks.facts": 1}, "evaluation_records": 2}
        train(script, "several", dataset=words, evaluation_dataset=words, load_best_model_at_end=True, **tasks)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_accumulation_and_bfloat16_run(script, train, captions, lora):
    if lora and script == "train.py":
        pytest.skip("trains whole models")
    fields = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "bf16": True}
    fields |= {"use_peft": True, "lora_r": 2} if lora else {}
    rates = {"connector": 1e-3, "new_tokens": 1e-3}
    output = train(script, dataset=captions, train=rates, eval_strategy="no", **fields)
    assert all(0 < loss < 100 for loss in logged(output, "loss"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_figures_and_samples_reach_tensorboard(script, train, captions):
    pytest.importorskip("tensorboard")
    output = train(script, dataset=captions, report_to="tensorboard", samples=2)
    assert [*output.rglob("events.out.tfevents*")] and [*(output / "samples").glob("*.png")]


@pytest.mark.parametrize("packing", [True, False])
def test_features_ahead_and_live_come_to_the_same_losses(train, captions, packing):
    ahead, live = (
        logged(
            train("sft.py", how, dataset=captions, vision_features=how, packing=packing, eval_strategy="no"), "loss"
        )
        for how in ("ahead", "live")
    )
    assert ahead == pytest.approx(live, rel=1e-2)


def test_features_of_pictures_that_do_not_repeat_are_refused(train, captions):
    with pytest.raises(ValueError, match="those of tasks do not"):
        train("sft.py", tasks={"dps_hf.nano.tasks.facts": 1}, vision_features="ahead")
    with pytest.raises(ValueError, match="vision_features must be 'ahead' or 'live'; got 'once'"):
        train("sft.py", dataset=captions, vision_features="once")
    with pytest.raises(ValueError, match="needs a frozen vision tower"):
        train("sft.py", dataset=captions, vision_features="ahead", train={"vision_tower": 1e-4})
