"""The report of alignment experiments: means over the seeds, their intervals, and plots."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure as Plot

from dps_hf.evaluation.figures import mean_of_runs
from dps_hf.files import write_whole
from dps_hf.nano.alignment import EXPERIMENTS, MEASURED, PERCENT, AlignmentArguments, Figures
from dps_hf.nano.alignment_measures import WORKED_ITEMS, read_digest
from dps_hf.training.resuming import keep_settings


def summarise(runs: list[Figures], measured: tuple[str, ...]) -> dict:
    """Means over the runs; `ci95` is the interval of the gain.

    Categories that had no prompts in one of the runs are left out.
    """

    def summarise_categories(names: tuple[str, ...]) -> dict:
        before, after = ([fmean(run[i][name] for name in names) for run in runs] for i in (0, 1))
        gain = mean_of_runs([b - a for a, b in zip(before, after)])
        return {
            "before": round(fmean(before), 4),
            "after": round(fmean(after), 4),
            "gain": gain["value"],
            "ci95": gain["ci95"],
        }

    common = [name for name in runs[0][0] if all(name in figures for run in runs for figures in run)]
    return {**summarise_categories(measured), "categories": {name: summarise_categories((name,)) for name in common}}


def plot_learning_curves(categories: dict, path: Path) -> None:
    """Plots right answers by share of the examples, with help and without; bars are the intervals of the gain."""
    figure = Plot(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(axes, ("direct", "answer"), ("directly", "after thinking")):
        for name in ("guided", "bare"):
            rows = [categories[f"{name}_{percent}_{kind}"] for percent in PERCENT]
            values = np.array([row["after"] for row in rows])
            half = [(row["ci95"][1] - row["ci95"][0]) / 2 for row in rows]
            axis.errorbar(PERCENT, values * 100, np.array(half) * 100, marker="o", capsize=3, label=name)
        axis.axhline(rows[0]["before"] * 100, color="grey", linestyle=":", label="untuned")
        axis.set(title=title, xlabel="% of the examples", xscale="log", xticks=PERCENT, xticklabels=PERCENT)
    axes[0].set_ylabel("right answers, %")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def run_experiments(script: AlignmentArguments) -> None:
    """Runs the experiments that are not finished yet, writes their figures to `output` and prints them."""
    weights = read_digest(script.model)
    free = ("output", "work", "examples", "experiments", "seeds")
    settings = {name: value for name, value in vars(script).items() if name not in free}
    keep_settings(script.work, {**settings, "weights": weights}, "work")
    script.output.parent.mkdir(parents=True, exist_ok=True)
    for name in script.experiments:
        runs = [EXPERIMENTS[name](script, seed) for seed in script.seeds]
        items = script.items * (WORKED_ITEMS if name == "scenes_cot_dpo" else 1)
        about = {"weights": weights, "seeds": script.seeds, "items": items}
        about |= {"command": shlex.join(["python", *sys.argv])}
        # Read only now: another process may have added its experiments in the meantime.
        report = json.loads(script.output.read_text()) if script.output.exists() else {}
        row = {**summarise(runs, MEASURED[name]), **about}
        picture = script.work / name / f"{script.seeds[0]}.png"
        copy = script.output.with_name(f"{script.output.stem}_{name}.png")
        if report.get(name) == row:
            print(f"{name} is finished; nothing is left to do.")
        else:
            if name == "instruction_tuning":
                plot_learning_curves(row["categories"], copy)
            if picture.exists():
                shutil.copy(picture, copy)
            report[name] = row
            write_whole(script.output, json.dumps(report, indent=2) + "\n")
        for category, part in {"all": row, **row["categories"]}.items():
            low, high = part["ci95"]
            print(
                f"{name:16} {category:14}{part['before']:8.3f} to {part['after']:.3f}   gain {low:+.3f} to {high:+.3f}"
            )
    print(f"\nFigures: {script.output}")
