"""Trainings that were stopped go on, and others are not mistaken for them."""

import shutil
from dataclasses import dataclass, field, replace

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from dps_hf.training.resuming import find_checkpoint, find_last_checkpoint, is_finished


COMPLETE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def written(folder, files) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text("{}" if name.endswith(".json") else "")
    return str(folder)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, files in ((9, COMPLETE), (20, COMPLETE), (100, COMPLETE[:2]), (120, COMPLETE), ("30-backup", COMPLETE)):
        written(tmp_path / f"checkpoint-{step}", files)
    (tmp_path / "checkpoint-120" / "trainer_state.json").write_text('{"log_history": [')
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert find_last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "files",
    [
        ("adapter_model.safetensors", *COMPLETE[1:]),
        ("model.safetensors", "optimizer.bin", *COMPLETE[2:]),  # FSDP with full state dicts
        ("adapter_model.safetensors", "optimizer.bin", *COMPLETE[2:]),
        ("latest", "trainer_state.json"),  # DeepSpeed
        ("pytorch_model_fsdp_0", "optimizer_0", *COMPLETE[2:]),  # FSDP with sharded state dicts
        ("model.safetensors.index.json", *COMPLETE[1:]),
    ],
)
def test_adapters_shards_and_what_fsdp_writes_are_checkpoints_too(tmp_path, files):
    for name in files:
        assert find_last_checkpoint(tmp_path) is None
        whole = written(tmp_path / "checkpoint-3", [name])
    assert find_last_checkpoint(tmp_path) == whole


@dataclass
class Script:
    dataset: str | None = None
    judge_options: dict = field(default_factory=dict)


def test_a_training_goes_on_only_with_the_settings_it_began_with(tmp_path):
    def go_on(**fields):
        fields = {"output_dir": str(tmp_path), "use_cpu": True, "learning_rate": 1e-3, **fields}
        return find_checkpoint(TrainingArguments(**fields), Script())

    assert go_on(learning_rate=1e-2) is None
    assert go_on() is None, "what failed before its first checkpoint binds nobody"
    whole = written(tmp_path / "checkpoint-9", COMPLETE)
    assert go_on() == go_on(logging_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=8) == whole
    with pytest.raises(ValueError, match=r"output_dir .* other learning_rate .learning_rate was 0.001 and is 0.01"):
        go_on(learning_rate=1e-2)


@pytest.mark.parametrize("asked", ["nothing", "checkpoint-9", "half", "."])
def test_a_path_that_holds_no_whole_checkpoint_is_refused(tmp_path, asked):
    written(tmp_path / "half", COMPLETE[:3])
    training = TrainingArguments(str(tmp_path / "out"), use_cpu=True, resume_from_checkpoint=str(tmp_path / asked))
    for function in (is_finished, find_checkpoint):
        with pytest.raises(ValueError, match=r"resume_from_checkpoint must be a whole checkpoint, .* got .*"):
            function(training, Script())
    assert not (tmp_path / "out").exists()


def test_going_on_is_asked_for_by_true_and_forbidden_by_false(tmp_path):
    def go_on(asked):
        return find_checkpoint(TrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint=asked), Script())

    assert go_on("false") is None
    for asked in ("true", True, "last"):
        with pytest.raises(ValueError, match=f"resume_from_checkpoint is {asked}, and .* holds no whole checkpoint"):
            go_on(asked)
    whole = written(tmp_path / "checkpoint-9", COMPLETE)
    assert go_on("true") == go_on(True) == go_on("last") == go_on(None) == whole
    with pytest.raises(ValueError, match=r"resume_from_checkpoint is false, and .* holds a training that has begun"):
        go_on("false")


def test_a_training_that_was_cut_short_may_end_earlier_but_not_before_where_it_is(tmp_path):
    def go_on(**fields):
        return find_checkpoint(TrainingArguments(str(tmp_path), use_cpu=True, **fields), Script())

    assert go_on(max_steps=100) is None
    whole = written(tmp_path / "checkpoint-40", COMPLETE)
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text('{"global_step": 40, "epoch": 2.0}')
    assert go_on(max_steps=50) == go_on(max_steps=40) == go_on(num_train_epochs=3) == whole
    for shorter in ({"max_steps": 39}, {"num_train_epochs": 1.9}):
        with pytest.raises(
            ValueError, match=r"must not be less than what .*checkpoint-40 has behind it, 40 steps or 2 ep"
        ):
            go_on(**shorter)


def test_a_training_does_not_go_on_with_other_data_under_the_same_name(tmp_path):
    training = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    for text in ("a", "b"):
        Dataset.from_dict({"text": [text]}).save_to_disk(tmp_path / text)
    (tmp_path / "a").rename(tmp_path / "data")
    script = Script(str(tmp_path / "data"), {"model": "judge", "max_calls": 1})
    find_checkpoint(training, script)
    whole = written(tmp_path / "out" / "checkpoint-9", COMPLETE)
    assert find_checkpoint(training, replace(script, judge_options={"model": "judge", "max_calls": 9})) == whole
    with pytest.raises(ValueError, match="other judge_options"):
        find_checkpoint(training, replace(script, judge_options={"model": "another"}))
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "b").rename(tmp_path / "data")
    with pytest.raises(ValueError, match="other fingerprint of the dataset"):
        find_checkpoint(training, script)
