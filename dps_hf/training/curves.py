"""Curves of what a trainer logs, as a picture."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
