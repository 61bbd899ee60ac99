"""Trainings that can be stopped at any moment, and folders that know what made them."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dps_hf.data.sources import read_saved
from dps_hf.files import write_whole
from dps_hf.judges.resolve import verdict_options


SETTINGS = "settings.json"  # what the work in a folder was made with

STATE = "trainer_state.json"  # of a checkpoint, and of the end

# The files that `Trainer` writes into a checkpoint, under the names they may have: an adapter's, FSDP's, DeepSpeed's. The
# state comes last, so that a kill leaves them incomplete.
CHECKPOINT_FILES = (
    (
        "model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json", "pytorch_model_fsdp_0",
        "latest",
    ),
    ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest"),
    ("scheduler.pt", "latest"),
    ("trainer_state.json",),
)  # fmt: skip

# Of the trainer's arguments, what makes another run of it. Batches may be cut otherwise on another machine, and more be logged.
LEARNING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "seed",
    "loss_type", "loss_weights", "beta", "label_smoothing", "num_generations", "generation_kwargs",
)  # fmt: skip

# Of these, what says how long it is: a training may be made longer.
LENGTH = ("max_steps", "num_train_epochs")


def is_finished(training: TrainingArguments, *others: Any) -> bool:
    """Whether `output_dir` holds the end of this very training, in which case it says so; nothing is written.

    Args:
        others: as in [`resumed`], which raises the same errors.
    """
    finished = _find_progress(training, others)[0]
    if finished and training.process_index == 0:
        print(
            f"The training in {training.output_dir} is finished; nothing is left to do. Raise max_steps or "
            "num_train_epochs to make it longer."
        )
    PartialState().wait_for_everyone()  # none goes on to change what another one has yet to look at
    return finished


def resumed(training: TrainingArguments, *others: Any) -> str | None:
    """The checkpoint to go on from, `None` at first; writes down which training this is.

    It is the last one in `output_dir`, or the one that `resume_from_checkpoint` names.

    Args:
        others: the script's and the model's arguments; budget and pace of a judge may change.

    Raises:
        ValueError: `output_dir` holds a training of other settings or data, which are named: its model would be taken for the new
            one. Or it is longer than what is asked for, or there is nothing to make a longer one of. Or
            `resume_from_checkpoint` is no checkpoint.
    """
    _, checkpoint, settings = _find_progress(training, others)
    folder = Path(training.output_dir)
    if checkpoint:
        print(f"Going on from {checkpoint}.")
    if training.process_index == 0:
        kept = _read_json(Path(checkpoint).parent / SETTINGS) if checkpoint else None
        if kept and (changed := [name for name in LENGTH if kept.get(name, settings[name]) != settings[name]]):
            lengths = "; ".join(f"{name} was {kept[name]} and is {settings[name]}" for name in changed)
            print(f"{lengths}: from here on, the learning rate follows the schedule of the new length.")
        (folder / STATE).unlink(missing_ok=True)  # what it says is finished is no more
        write_whole(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    return checkpoint


def train_and_save(trainer: Trainer, *others: Any, save: Callable[[], None] | None = None) -> None:
    """Trains from where [`resumed`] says to the end, and saves the model and then the state.

    The state comes last: its file in `output_dir` is what [`is_finished`] goes by.

    Args:
        others: as in [`resumed`].
        save: in place of the trainer's own `save_model`.
    """
    trainer.add_callback(_StopAtEnd())
    try:
        trainer.train(resume_from_checkpoint=resumed(trainer.args, *others))
    except _NothingLeft:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    (save or trainer.save_model)()
    trainer.save_state()


class _NothingLeft(Exception):
    """The checkpoint to go on from is of the last step."""


class _StopAtEnd(TrainerCallback):
    """Ends a training that was killed between its last checkpoint and its end; the library would take one more step."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step >= state.max_steps:
            raise _NothingLeft


def _find_progress(training: TrainingArguments, others: tuple) -> tuple[bool, str | None, dict[str, str]]:
    """Whether a training is finished, the checkpoint to go on from if not, and what makes it this training."""
    settings = _settings(training, others)
    folder, asked = Path(training.output_dir), str(training.resume_from_checkpoint)
    state, checkpoint = _read_json(folder / STATE), last_checkpoint(folder)
    kept = _read_json(folder / SETTINGS) or dict(settings)
    names_one = asked.lower() not in ("none", "true", "last", "false")
    if names_one:
        if not _is_complete(Path(asked)):
            raise ValueError(
                f"resume_from_checkpoint must be a whole checkpoint, with weights, optimizer, scheduler and state; got "
                f"{asked}. Leave it out to go on from the last one in output_dir."
            )
        settings["resume_from_checkpoint"] = str(Path(asked).resolve())
    if state or checkpoint:  # what failed before its first checkpoint binds nobody
        _check_settings(folder, settings, kept, "output_dir")

    if names_one and kept.get("resume_from_checkpoint") != settings["resume_from_checkpoint"]:
        state, checkpoint = None, asked
        beside = Path(asked).resolve().parent
        _check_settings(beside, settings, _read_json(beside / SETTINGS) or settings, "resume_from_checkpoint")
    elif names_one:
        checkpoint = asked
    elif asked.lower() in ("true", "last") and not (checkpoint or state):
        raise ValueError(
            f"resume_from_checkpoint is {asked}, and {folder} holds no whole checkpoint. Leave it out to begin."
        )

    same_length = all(kept.get(name) == settings[name] for name in LENGTH)
    if state and same_length:
        return True, None, settings
    if asked.lower() == "false" and (state or checkpoint):
        raise ValueError(
            f"resume_from_checkpoint is {asked}, and {folder} holds a training that has begun. Give another output_dir to "
            "begin anew, or remove this one."
        )
    reached = state or (_read_json(Path(checkpoint) / STATE) if checkpoint else None)
    if not reached or (same_length and not names_one):
        return False, checkpoint, settings
    left = _steps_asked(training, reached) - reached["global_step"]
    if left < 0:
        length = "max_steps" if training.max_steps > 0 else "num_train_epochs"
        raise ValueError(
            f"{length} must not be less than what {checkpoint or folder} has behind it, {reached['global_step']} steps "
            f"or {reached['epoch']:g} epochs; got {getattr(training, length)}. Raise it, or give another output_dir."
        )
    if state and left and not checkpoint:
        raise ValueError(
            f"output_dir must hold a checkpoint for a training to be made longer; {folder} holds one that ended after "
            f"{state['global_step']} steps without. Give another output_dir, or remove this one and set save_strategy to "
            "steps."
        )
    return bool(state) and not left, checkpoint, settings


def _settings(training: TrainingArguments, others: tuple) -> dict[str, str]:
    """What makes a training this one, in words."""
    settings = {name: getattr(training, name) for name in LEARNING if hasattr(training, name)}
    settings |= {field.name: getattr(one, field.name) for one in others for field in fields(one)}
    settings["judge_options"] = verdict_options(settings.pop("judge_options", {}))
    if settings.get("dataset"):  # which may be another one under the same name
        settings["fingerprint of the dataset"] = read_saved(settings["dataset"])._fingerprint
    return {name: str(value) for name, value in settings.items()}


def _steps_asked(training: TrainingArguments, reached: dict) -> int:
    """The steps of a training that has reached a state."""
    if training.max_steps > 0 or not reached["epoch"]:
        return training.max_steps
    return math.ceil(training.num_train_epochs * reached["global_step"] / reached["epoch"] - 1e-6)


def _read_json(path: Path) -> dict | None:
    """What a file holds; `None` where there is none, or a kill left a half."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint of a run, or `None`. One that a kill left half written is passed over."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in Path(output_dir).glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal() and _is_complete(path)]
    if not found:
        return None
    return str(max(found, key=lambda path: int(steps[path])))


def _is_complete(checkpoint: Path) -> bool:
    whole = all(any((checkpoint / name).exists() for name in names) for names in CHECKPOINT_FILES)
    return whole and _read_json(checkpoint / STATE) is not None


def keep_settings(folder: Path, settings: dict, field: str) -> None:
    """Writes down what `folder` was made with, so that what lies there is not taken for the work of other settings.

    Args:
        field: by which the folder was given.

    Raises:
        ValueError: the folder holds work of other settings, which are named.
    """
    settings = {name: str(value) for name, value in settings.items()}
    path = folder / SETTINGS
    _check_settings(folder, settings, json.loads(path.read_text()) if path.exists() else settings, field)
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def _check_settings(folder: Path, settings: dict[str, str], kept: dict[str, str], field: str) -> None:
    """Raises [`keep_settings`]' error; what may change is left out: the length, and where to go on from."""
    free = (*LENGTH, "resume_from_checkpoint")
    if changed := [name for name in settings if name not in free and kept.get(name) != settings[name]]:
        now = "; ".join(f"{name} was {kept.get(name)} and is {settings[name]}" for name in changed)
        raise ValueError(
            f"{field} must be a folder of its own: {folder} holds work with other {', '.join(changed)} ({now}). "
            "Give another one, or remove it."
        )
