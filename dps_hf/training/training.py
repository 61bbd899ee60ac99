"""What the training scripts share: resuming, curves as a plot, records as batches."""

import copy
import json
import math
import multiprocessing
import os
import runpy
import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from dps_hf.data.mixture import Mixture
from dps_hf.data.record import Message, Record, words_of
from dps_hf.data.sources import open_pictures, read_saved
from dps_hf.inference import encode
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


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
    options = settings.pop("judge_options", {})
    settings["judge_options"] = {name: options.get(name) for name in ("model", "rubric", "base_url")}
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


def run_script(script: Path, *arguments: str | Path) -> None:
    """Runs a script in a process of its own, which has its libraries already: importing them takes longer than some steps.

    Raises:
        RuntimeError: it failed.
    """
    command = [str(script), *map(str, arguments)]
    if sys.platform == "linux":
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["dps_hf.training.adapters", "peft", "trl.trainer.dpo_trainer"])
        process: BaseProcess = server.Process(target=_as_main, args=(command,))
    else:  # where a library's threads may not survive a fork
        process = multiprocessing.get_context("spawn").Process(target=_as_main, args=(command,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.exitcode}; what it said stands above.")


def _as_main(command: list[str]) -> None:
    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)  # or a second try would find the first one still writing

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def fastest_precision(training: TrainingArguments) -> None:
    """Trains in float32 where `bf16` is asked for and a CPU without instructions for it would have to imitate them.

    On two such cores (Ice Lake) a step of dps-nano took 1.8 s in float32 and 4.2 in bfloat16.
    """
    # Older versions of torch do not say, and are left alone.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"bf16": True}
    native = any(has for name, has in capabilities.items() if "bf16" in name)
    if training.bf16 and training.device.type == "cpu" and not native:
        print("This CPU has no instructions for bfloat16: training in float32, which is faster here.")
        training.bf16, training.mixed_precision = False, "no"


class Curves(TrainerCallback):
    """Saves every logged figure as a curve in `output_dir/curves.png`, anew after each evaluation and at the end."""

    evaluated = False

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = True  # there may be more sets to come

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.evaluated:
            self.on_train_end(args, state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.evaluated = False
        if state.is_world_process_zero:
            plot_curves(state.log_history, Path(args.output_dir) / "curves.png")


class KeepTraining(TrainerCallback):
    """Puts the model back into training right after an evaluation.

    The library does so at the next step, by when a batch has been fetched: a collator that drops or distorts while its
    model is in training would leave that one as it is, and a run that is resumed there would not.
    """

    def on_evaluate(self, args, state, control, model: torch.nn.Module, **kwargs):
        model.train()


class SkipUnusedParts(TrainerCallback):
    """Leaves the parts that read pictures as they are in a step without pictures, on several processes as on one.

    There they have gradients of zeros, because all processes reduce theirs together. An optimizer with momentum or weight
    decay would move such weights, and leaves those without a gradient alone.
    """

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, model: torch.nn.Module, **kwargs):
        if args.world_size == 1:
            return
        parts: tuple[list[torch.nn.Parameter], ...] = ([], [])
        for name, parameter in model.named_parameters():
            path = name.split(".")
            if parameter.grad is not None and ("vision_tower" in path or "connector" in path):
                parts["vision_tower" in path and "head" in path].append(parameter)  # nothing uses the pooling head
        if not any(parts):
            return
        used = torch.stack([_any_nonzero(parameters, args.device) for parameters in parts]).int()
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for parameters, is_used in zip(parts, used.tolist(), strict=True):
            for parameter in () if is_used else parameters:
                parameter.grad = None


def _any_nonzero(parameters: list[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
    """Whether a gradient of these parameters, or the share of it that this process holds, has an entry other than 0."""
    found = torch.zeros((), dtype=torch.bool, device=device)
    for gradient in (parameter.grad for parameter in parameters):
        assert gradient is not None  # those without one were left out
        found |= (gradient.to_local() if isinstance(gradient, DTensor) else gradient).any()
    return found


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


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once or not at all: neither a kill nor another process or machine that reads it finds a half.

    A file that holds the text already is left alone.
    """
    if path.exists() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{uuid4().hex}")
    own.write_text(text, encoding="utf-8")
    os.replace(own, path)


def plot_curves(log_history: list[dict], path: Path) -> None:
    """One small plot for each figure in the trainer's log, against the step. Training and evaluation share axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    hidden = ("epoch", "step", "total_flos", "runtime", "per_second", "train_loss")
    names = sorted({name for row in log_history for name in row if not any(word in name for word in hidden)})
    axes_of = sorted({name.removeprefix("eval_") for name in names})
    if not axes_of:
        return
    columns = min(3, len(axes_of))
    rows = -(-len(axes_of) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(axes_of) :]:
        axis.remove()
    for axis, title in zip(axes.flat, axes_of, strict=False):
        for name in (title, f"eval_{title}"):
            points = [(row["step"], row[name]) for row in log_history if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else None)
        axis.set(title=title, xlabel="step")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as `(3, height, width)` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class Pictures(torch.utils.data.Dataset):
    """The first picture of each record of a [`Mixture`], as `{"pixel_values": (3, 64, 64) float32 in [-1, 1]}`."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(self.mixture[index]["images"][0])}


def encode_drawings(
    records: list[Record], model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor
) -> list[Record]:
    """The records with each picture in an answer replaced by the text of its codes.

    So a drawing reaches trl's trainers, which know pictures in prompts only: its tokens are text like all others. Pictures
    are opened, whether they are given as such, as arrays, or as bytes or paths.

    Raises:
        ValueError: a picture is missing or cannot be opened; the record's place in the batch is named.
    """
    records = _with_pictures(records, processor)
    targets = [image for record in records for image, role in _pictures(record) if role == "assistant"]
    if not targets:
        return records
    codes = iter(encode(model, processor, targets).cpu())
    encoded = []
    for record in records:
        messages: list = []
        for message in record["messages"]:
            parts = message["content"]
            if message["role"] == "assistant":
                parts = [
                    {"type": "text", "text": processor.drawing_text(next(codes))} if part["type"] == "image" else part
                    for part in parts
                ]
            messages.append({"role": message["role"], "content": parts})
        images = [image for image, role in _pictures(record) if role != "assistant"]
        encoded.append(cast(Record, {**record, "messages": messages, "images": images}))
    return encoded


def _with_pictures(records: list[Record], processor: DPSProcessor) -> list[Record]:
    opened = []
    for i, record in enumerate(records):
        try:
            opened.append(cast(Record, {**record, "images": open_pictures(record, processor.image_processor)}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"record {i} of the batch: {error}") from error
    return opened


def drawing_encoder(model: DPSForConditionalGeneration) -> DPSModel:
    """A copy of what turns drawings into codes, on the CPU: a loader's workers must not touch the accelerator of the model."""
    others = {id(part): None for name, part in model.model.named_children() if name != "image_tokenizer"}
    whole: AbstractContextManager = nullcontext()
    if is_deepspeed_zero3_enabled():  # which shards all weights as soon as they are loaded
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([*model.model.image_tokenizer.parameters()])
    with whole:
        return copy.deepcopy(model.model, others).cpu().requires_grad_(False)


def _pictures(record: Record) -> list[tuple[Image.Image, str]]:
    """The pictures of a record and the role of the message that each stands in."""
    roles = [m["role"] for m in record["messages"] for part in m["content"] if part["type"] == "image"]
    return list(zip(record["images"], roles, strict=True))


def prompt_and_text(processor: DPSProcessor, question: list[Message], answer: Message) -> tuple[str, str]:
    """The messages before an answer as the model is given them, and the same with the answer."""
    thinks = words_of([answer]).startswith("<think>")
    chat = {"tokenize": False, "enable_thinking": thinks}
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, **chat)
    return prompt, processor.apply_chat_template([*question, answer], **chat)


class RecordCollator:
    """Records to a padded batch; the loss is on the last answer alone.

    A `<think>` that begins an answer belongs to the prompt: it is how thinking is asked for. An answer may be text, a
    drawing, or a plan and then its drawing.

    Args:
        prompt_dropout: share of the drawings that are learned without all that comes before them, pictures and plan
            included, for classifier-free guidance.
    """

    def __init__(self, model: DPSForConditionalGeneration, processor: DPSProcessor, prompt_dropout: float = 0.0):
        self.model, self.processor, self.prompt_dropout = model, processor, prompt_dropout
        self.encoder = drawing_encoder(model)

    def __call__(self, records: list[Record]) -> dict:
        config = self.model.config
        records = encode_drawings(records, self.encoder, self.processor)
        prompts, texts = [], []
        for record in records:
            *question, answer = record["messages"]
            prompt, text = prompt_and_text(self.processor, question, answer)
            prompts.append(prompt)
            texts.append(text)

        pictures = [image for record in records for image in record["images"]]
        batch = self.processor(
            text=texts, images=pictures or None, padding=True, padding_side="left", return_tensors="pt"
        )
        # Without pictures: the answer holds none, so that its length is the same.
        lengths = [[len(ids) for ids in self.processor.tokenizer(side)["input_ids"]] for side in (texts, prompts)]
        labels = batch["input_ids"].clone()
        # What is dropped depends on the batch alone: a run that is resumed, where torch's own generator stands
        # elsewhere, drops the same.
        chance = torch.Generator().manual_seed(zlib.crc32("".join(texts).encode()))
        for row, (length, prompt_length) in enumerate(zip(*lengths, strict=True)):
            answer_length = length - prompt_length
            labels[row, :-answer_length] = -100
            drawings = (labels[row] == config.boi_token_id).nonzero()
            if self.model.training and len(drawings) and torch.rand((), generator=chance) < self.prompt_dropout:
                # What the unguided half of a guided batch sees: begin-of-image and nothing before.
                begin = int(drawings[0])
                batch["attention_mask"][row, :begin] = 0
                labels[row, : begin + 1] = -100
        return {**batch, "labels": labels}
