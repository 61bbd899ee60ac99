"""Runs all benchmarks of this folder and plots their ratios.

python examples/benchmarks/run.py
python examples/benchmarks/run.py --only drawing answering --rounds 3

Each benchmark is a script of its own, runs in a process of its own, and compares DPS with a peer in turns. The folder
`output` then has one report for each, `benchmarks.json` with all of them, and `benchmarks.png`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from dps_hf.command_line import run_script


HERE = Path(__file__).parent
SCRIPTS = ("drawing", "answering", "pictures", "training", "serving")
RIGHT, WRONG = "tab:blue", "tab:orange"


@dataclass
class ScriptArguments:
    """
    output: folder of the reports and the plot.
    only: names of the benchmarks to run, if not all; the others' reports are kept.
    rounds: turns of each comparison.
    """

    output: Path = Path("outputs/benchmarks")
    only: list[str] = field(default_factory=list)
    rounds: int = 3


def plot_ratios(comparisons: list[dict], file: Path) -> None:
    """Draws each ratio as a bar with its spread; a bar that misses its goal has another colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.34 * len(comparisons) + 1.2), layout="constrained")
    axes = figure.subplots()
    shown = comparisons[::-1]  # the first on top
    ratios = [one["ratio"] for one in shown]
    spread = [[one["ratio"] - one["low"] for one in shown], [one["high"] - one["ratio"] for one in shown]]
    colours = [WRONG if one["goal"] and one["ratio"] < one["goal"] else RIGHT for one in shown]
    axes.barh(range(len(shown)), ratios, xerr=spread, color=colours, ecolor="dimgrey", height=0.7)
    goals = [(place, one["goal"]) for place, one in enumerate(shown) if one["goal"]]
    if goals:
        places, aims = zip(*goals)
        axes.plot(aims, places, "k|", markersize=11, label="goal")
        axes.legend(loc="lower right")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{one['name']} (against {one['peer']})" for one in shown], fontsize=8)
    axes.set_xlabel("times as fast as the peer")
    axes.margins(y=0.01)
    figure.savefig(file, dpi=110)


def main(script: ScriptArguments) -> None:
    chosen = script.only or SCRIPTS
    if unknown := sorted(set(chosen) - set(SCRIPTS)):
        raise ValueError(f"only must name benchmarks out of {', '.join(SCRIPTS)}; got {', '.join(unknown)}.")
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        arguments = ["--output", str(script.output / f"{name}.json"), "--rounds", str(script.rounds)]
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments]).returncode:
            failed.append(name)
    reports = {name: script.output / f"{name}.json" for name in SCRIPTS if name not in failed}
    found = {name: json.loads(file.read_text()) for name, file in reports.items() if file.exists()}
    comparisons = [one for report in found.values() for one in report["comparisons"]]
    if not comparisons:
        raise ValueError("No benchmark finished; the errors are above.")
    summary = script.output / "benchmarks.json"
    summary.write_text(json.dumps(found, indent=2) + "\n")
    plot_ratios(comparisons, script.output / "benchmarks.png")
    print(f"{summary} has all reports, {summary.with_suffix('.png')} shows them.")
    if failed:
        raise SystemExit(f"Benchmarks that failed: {', '.join(failed)}.")


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
