"""Loss curves as a picture, for trainings without a tracker."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Curves(TrainerCallback):
    """Saves the logged figures as `output_dir/curves.png` with every checkpoint and at the end.

    Only where `report_to` names no tracker, which would show the same curves.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero and not args.report_to:
            plot_curves(state.log_history, Path(args.output_dir) / "curves.png")

    on_train_end = on_save


def plot_curves(log_history: list[dict], path: Path) -> None:
    """Draws each figure of a trainer's log against the step, training and evaluation on the same axes."""
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
