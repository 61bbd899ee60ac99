"""What the training scripts share: resuming, curves as a plot, pictures as batches."""

from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dps_hf.data.mixture import Mixture

# The files that `Trainer` writes into a checkpoint; the state comes last but one, so that a kill leaves them incomplete.
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint of a run, or `None`. One that a kill left half written is passed over."""
    found = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    complete = [path for path in found if all((path / name).exists() for name in CHECKPOINT_FILES)]
    return str(complete[-1]) if complete else None


class Curves(TrainerCallback):
    """Saves every logged figure as a curve in `output_dir/curves.png`, anew at each evaluation and at the end."""

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero:
            plot_curves(state.log_history, Path(args.output_dir) / "curves.png")

    on_train_end = on_evaluate


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


class Pictures(torch.utils.data.Dataset):
    """The pictures of a [`Mixture`] as `{"pixel_values": (3, 64, 64) float32 in [-1, 1]}`."""

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.array(self.mixture[index]["images"][0]))
        return {"pixel_values": pixels.permute(2, 0, 1).float() / 127.5 - 1}
