"""Resumes trainings that were stopped, and records in a folder which settings made its contents."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dps_hf.data.sources import compute_fingerprint
from dps_hf.files import write_whole
from dps_hf.judges.resolve import keep_verdict_options
from dps_hf.training.pushing import PushToHub


SETTINGS = "settings.json"  # the settings that made the contents of a folder

STATE = "trainer_state.json"  # of a checkpoint, or of a finished training

# The files that `Trainer` writes into a checkpoint, under all names they may have: an adapter's, FSDP's, DeepSpeed's.
# The state is written last, so a checkpoint without it is incomplete.
CHECKPOINT_FILES = (
    (
        "model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json", "pytorch_model_fsdp_0",
        "latest",
    ),
    ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest"),
    ("scheduler.pt", "latest"),
    ("trainer_state.json",),
)  # fmt: skip

# The trainer's arguments that decide what is learned. Others, such as batch sizes and logging, may change on resuming.
LEARNING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "seed",
    "loss_type", "loss_weights", "beta", "label_smoothing", "num_generations", "generation_kwargs",
)  # fmt: skip

# Of these, the length: a training may be made longer.
LENGTH = ("max_steps", "num_train_epochs")


def is_finished(training: TrainingArguments, *others: Any) -> bool:
    """Whether `output_dir` holds this training, finished. If so, prints it. Nothing is written.

    Args:
        others: as in [`find_checkpoint`], which raises the same errors.
    """
    finished = _find_progress(training, others)[0]
    if finished and training.process_index == 0:
        print(
            f"The training in {training.output_dir} is finished; nothing is left to do. Raise max_steps or "
            "num_train_epochs to make it longer."
        )
    PartialState().wait_for_everyone()  # no process may change the folder before all have looked at it
    return finished


def find_checkpoint(training: TrainingArguments, *others: Any) -> str | None:
    """The checkpoint to resume from, or `None` for a new training. Saves the settings of the training.

    It is the last checkpoint in `output_dir`, or the one that `resume_from_checkpoint` names.

    Args:
        others: the script's and the model's arguments. The budget and the pace of a judge may change.

    Raises:
        ValueError: `output_dir` holds a training with other settings or data, which the error names. Or that training
            is longer than requested, or it should be longer and has no checkpoint. Or `resume_from_checkpoint` is no
            checkpoint.
    """
    _, checkpoint, settings = _find_progress(training, others)
    folder = Path(training.output_dir)
    if checkpoint:
        print(f"Resuming from {checkpoint}.")
    if training.process_index == 0:
        kept = _read_json(Path(checkpoint).parent / SETTINGS) if checkpoint else None
        if kept and (changed := [name for name in LENGTH if kept.get(name, settings[name]) != settings[name]]):
            lengths = "; ".join(f"{name} was {kept[name]} and is {settings[name]}" for name in changed)
            print(f"{lengths}: from here on, the learning rate follows the schedule of the new length.")
        (folder / STATE).unlink(missing_ok=True)  # the training is no longer finished
        write_whole(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    return checkpoint


def train_and_save(trainer: Trainer, *others: Any, save: Callable[[], None] | None = None) -> None:
    """Trains to the end, from the checkpoint that [`find_checkpoint`] returns, and saves the model and then the state.

    The state is saved last, because [`is_finished`] looks for its file in `output_dir`.

    Args:
        others: as in [`find_checkpoint`].
        save: is called instead of the trainer's own `save_model`.
    """
    pushing = PushToHub(trainer) if trainer.args.push_to_hub else None
    if pushing:
        trainer.add_callback(pushing)
    trainer.add_callback(_StopAtEnd())
    try:
        trainer.train(resume_from_checkpoint=find_checkpoint(trainer.args, *others))
    except _NothingLeft:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    (save or trainer.save_model)()
    trainer.save_state()
    if pushing:
        pushing.push_at_end()


class _NothingLeft(Exception):
    """The checkpoint to resume from is of the last step."""


class _StopAtEnd(TrainerCallback):
    """Ends a training that was killed after its last checkpoint. The library would train one more step."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step >= state.max_steps:
            raise _NothingLeft


def _find_progress(training: TrainingArguments, others: tuple) -> tuple[bool, str | None, dict[str, str]]:
    """Whether a training is finished, the checkpoint to resume from if not, and its settings."""
    settings = _describe(training, others)
    folder, asked = Path(training.output_dir), str(training.resume_from_checkpoint)
    state, checkpoint = _read_json(folder / STATE), find_last_checkpoint(folder)
    kept = _read_json(folder / SETTINGS) or dict(settings)
    names_one = asked.lower() not in ("none", "true", "last", "false")
    if names_one:
        if not _is_complete(Path(asked)):
            raise ValueError(
                "resume_from_checkpoint must be a whole checkpoint, with weights, optimizer, scheduler and state; "
                f"got {asked}. Leave it out to go on from the last one in output_dir."
            )
        settings["resume_from_checkpoint"] = str(Path(asked).resolve())
    if state or checkpoint:  # a training that failed before its first checkpoint does not count
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
            f"resume_from_checkpoint is {asked}, and {folder} holds a training that has begun. Give another "
            "output_dir to begin anew, or remove this one."
        )
    reached = state or (_read_json(Path(checkpoint) / STATE) if checkpoint else None)
    if not reached or (same_length and not names_one):
        return False, checkpoint, settings
    left = _count_steps(training, reached) - reached["global_step"]
    if left < 0:
        length = "max_steps" if training.max_steps > 0 else "num_train_epochs"
        raise ValueError(
            f"{length} must not be less than what {checkpoint or folder} has behind it, "
            f"{reached['global_step']} steps or {reached['epoch']:g} epochs; got {getattr(training, length)}. "
            "Raise it, or give another output_dir."
        )
    if state and left and not checkpoint:
        raise ValueError(
            f"output_dir must hold a checkpoint for a training to be made longer; {folder} holds one that ended after "
            f"{state['global_step']} steps without. Give another output_dir, or remove this one and set save_strategy "
            "to steps."
        )
    return bool(state) and not left, checkpoint, settings


def _describe(training: TrainingArguments, others: tuple) -> dict[str, str]:
    """The settings of a training as text."""
    settings = {name: getattr(training, name) for name in LEARNING if hasattr(training, name)}
    settings |= {field.name: getattr(one, field.name) for one in others for field in fields(one)}
    settings["judge_options"] = keep_verdict_options(settings.pop("judge_options", {}))
    for name in ("dataset", "evaluation_dataset"):
        if settings.get(name):  # its contents may change under the same name
            settings[f"fingerprint of the {name}"] = compute_fingerprint(settings[name])
    return {name: str(value) for name, value in settings.items()}


def _count_steps(training: TrainingArguments, reached: dict) -> int:
    """The number of steps of a training that has reached a state."""
    if training.max_steps > 0 or not reached["epoch"]:
        return training.max_steps
    return math.ceil(training.num_train_epochs * reached["global_step"] / reached["epoch"] - 1e-6)


def _read_json(path: Path) -> dict | None:
    """The contents of a file, or `None` if it is missing or incomplete."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def find_last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint of a training, or `None`. Incomplete ones are skipped."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in Path(output_dir).glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal() and _is_complete(path)]
    if not found:
        return None
    return str(max(found, key=lambda path: int(steps[path])))


def _is_complete(checkpoint: Path) -> bool:
    whole = all(any((checkpoint / name).exists() for name in names) for names in CHECKPOINT_FILES)
    return whole and _read_json(checkpoint / STATE) is not None


def keep_settings(folder: Path, settings: dict, field: str) -> None:
    """Saves the settings that the contents of `folder` are made with, or checks them if they are saved already.

    Args:
        field: the name of the folder's setting in errors.

    Raises:
        ValueError: the folder was made with other settings, which the error names.
    """
    settings = {name: str(value) for name, value in settings.items()}
    path = folder / SETTINGS
    _check_settings(folder, settings, json.loads(path.read_text()) if path.exists() else settings, field)
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def _check_settings(folder: Path, settings: dict[str, str], kept: dict[str, str], field: str) -> None:
    """Raises the error of [`keep_settings`]. The length and the checkpoint to resume from may change.

    A setting that is not kept came with a later version of a script, so the work before was without it.
    """
    free = (*LENGTH, "resume_from_checkpoint")
    if changed := [name for name in settings if name not in free and kept.get(name, settings[name]) != settings[name]]:
        now = "; ".join(f"{name} was {kept.get(name)} and is {settings[name]}" for name in changed)
        raise ValueError(
            f"{field} must be a folder of its own: {folder} holds work with other {', '.join(changed)} ({now}). "
            "Give another one, or remove it."
        )
