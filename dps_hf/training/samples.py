"""A page of what the model draws and answers, at each evaluation of a training."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dps_hf.evaluation.held_out import draw_samples
from dps_hf.evaluation.turns import Turn, respond, sort_turns, split_turns
from dps_hf.files import write_whole
from dps_hf.model.processing_dps import DPSProcessor


class Samples(TrainerCallback):
    """Draws, describes and answers the same held-out records at each evaluation.

    The page is saved as `output_dir/samples/step-N.png`, drawings beside the wanted ones, and logged to those trackers
    of `report_to` that show pictures: tensorboard (in the run `samples`), trackio and wandb. Everything is greedy, and
    the training goes on as it would without it. The main process does all of it. Where a model cannot generate
    between two steps (sharded weights of FSDP or ZeRO-3, 4-bit weights on a CPU), a line says so once instead.

    Args:
        records: held-out records, or several sets of them by name, as `eval_dataset` takes them.
        processor: that of the model.
        count: how many answers and drawings are shown, from all sets alike.
        answers: what answers about pictures are, see [`~dps_hf.evaluation.turns.sort_turns`].
        batch_size: the number of them in one call of `generate`.
    """

    def __init__(
        self,
        records: Any,
        processor: DPSProcessor,
        count: int = 8,
        answers: str | None = None,
        batch_size: int = 8,
    ):
        if count < 1:
            raise ValueError(f"count must be 1 or more; got {count}. Leave the callback out for none.")
        self.records, self.processor, self.count = records, processor, count
        self.answers, self.batch_size = answers, batch_size
        self._kinds: dict[str, list[Turn]] | None = None
        self._last_step = -1
        self._writer: Any = None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs
    ):
        # It is called once for each set of `eval_dataset`.
        if not state.is_world_process_zero or model is None or state.global_step == self._last_step:
            return
        first, self._last_step = self._last_step == -1, state.global_step
        if reason := find_obstacle(model):
            if first:
                print(f"No samples are drawn: {reason}.")
            return
        with pause_training(model):
            page = self._draw(model)
        path = Path(args.output_dir) / "samples" / f"step-{state.global_step}.png"
        write_whole(path, lambda own: page.save(own, format="PNG"))
        self._log(page, args, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _draw(self, model: Any) -> Image.Image:
        if self._kinds is None:
            self._kinds = sort_turns(islice(_read_turns(self.records, self.count), self.count), self.answers)
        responses = {}
        for kind, turns in self._kinds.items():
            responses[kind] = respond(model, self.processor, turns, self.batch_size, do_sample=False)
        return draw_samples(model, self.processor, self._kinds, responses)

    def _log(self, page: Image.Image, args: TrainingArguments, step: int) -> None:
        if "tensorboard" in args.report_to:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A run of its own: TensorBoard stops reading one file of a folder when another one is written.
                folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir) / "runs"
                self._writer = SummaryWriter(str(Path(folder).expanduser() / "samples"))
            pixels = np.asarray(page.convert("RGB"))[None]  # (1, height, width, 3)
            self._writer.add_images("samples", pixels, step, dataformats="NHWC")
            self._writer.flush()
        if "trackio" in args.report_to:
            import trackio

            trackio.log({"samples": trackio.Image(page), "train/global_step": step})
        if "wandb" in args.report_to:
            import wandb

            wandb.log({"samples": wandb.Image(page), "train/global_step": step})


def find_obstacle(model: nn.Module) -> str | None:
    """Why one process cannot generate with this model while it is trained, None if it can."""
    if getattr(model, "is_loaded_in_4bit", False) and next(model.parameters()).device.type == "cpu":
        return "4-bit weights on a CPU cannot be trained further once the model has generated"
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())
    if sharded or any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "the weights are sharded over several processes, and the main one alone cannot generate"
    return None


@contextmanager
def pause_training(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and restores the mode of each module and torch's random numbers afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _read_turns(records: Any, count: int) -> Iterator[Turn]:
    """The last answers of random records, of several sets by turns; of a stream, those of its first records."""
    rows = []
    for some in records.values() if isinstance(records, Mapping) else [records]:
        if hasattr(some, "__len__"):
            chosen = np.random.default_rng(0).permutation(len(some))[:count]
            rows.append([some[int(index)] for index in chosen])
        else:
            rows.append(list(islice(some, count)))
    for place in range(count):
        for own in rows:
            if place < len(own) and (turns := split_turns(own[place])):
                yield turns[-1]
