"""What dps-nano needs: its figures against the share of its data, and against its parameters, as plots.

python examples/curves.py --config examples/recipes/nano_curves.yaml

Each point is a decoder trained from nothing by `examples/train.py`, all for the same number of steps, many fewer than
dps-nano itself took; image tokenizer and vision tower are those of dps-nano. Killed at any moment, the same command goes on.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from trl import TrlParser


FIGURES = {
    "one thing drawn": "scenes_t2i.one_object",
    "two things drawn": "scenes_t2i.two_objects",
    "counted": "scenes_t2i.counting",
    "placed": "scenes_t2i.position",
    "described": "scenes_i2t.exact",
    "questions": "scenes_cot.answer",
    "emoji named": "emoji_i2t.en",
    "capitals": "facts.en",
}


@dataclass
class ScriptArguments:
    """
    output: the figures of every point; the plots go beside it, as PNG.
    work: folder for the trained decoders.
    percent: shares of the data; the rest of the steps sees the same records again.
    widths: of the decoder, multiples of 64; the largest is that of the shares of the data.
    items: how many items a figure comes from.
    training: fields of `examples/train.py`.
    """

    output: Path = Path("model_cards/results/curves.json")
    work: Path = Path("runs/curves")
    percent: list[int] = field(default_factory=lambda: [10, 30, 100])
    widths: list[int] = field(default_factory=lambda: [128, 192, 256])
    items: int = 200
    training: dict = field(default_factory=dict)


def measured(script: ScriptArguments, percent: int, width: int) -> dict:
    """The report of `examples/evaluate.py` on one decoder, which is trained if it is not there yet."""
    folder, here = script.work / f"{percent}-percent-width-{width}", Path(__file__).parent
    if not (folder / "model.safetensors").exists():
        records = script.training["max_steps"] * script.training["per_device_train_batch_size"]
        decoder = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_attention_heads": width // 64}
        decoder |= {"num_key_value_heads": max(1, width // 128), "head_dim": 64}
        fields = {**script.training, "text_config": script.training["text_config"] | decoder}
        fields |= {"num_records": records * percent // 100, "output_dir": str(folder)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
        subprocess.run([sys.executable, here / "train.py", "--config", folder / "recipe.yaml"], check=True)
    figures = folder / "figures.json"
    asked = ["--model", folder, "--output", figures, "--items", str(script.items), "--temperature", "0"]
    tasks = sorted({name.partition(".")[0] for name in FIGURES.values()})
    subprocess.run([sys.executable, here / "evaluate.py", *asked, "--tasks", *tasks], check=True)
    return json.loads(figures.read_text())


def point(report: dict, percent: int) -> dict:
    """What is kept of a report."""
    values = {name: report[name.partition(".")[0]][name.partition(".")[2]] for name in FIGURES.values()}
    return {"percent": percent, "parameters": report["parameters"], "figures": values}


def plot(points: dict[str, list[dict]], path: Path) -> None:
    """One small plot for each figure and each of the two questions."""
    figure = Figure(figsize=(2.2 * len(FIGURES), 5), layout="constrained")
    axes = figure.subplots(2, len(FIGURES), sharey=True, squeeze=False)
    for row, (question, label) in zip(axes, (("percent", "% of the data"), ("parameters", "parameters, millions"))):
        for axis, (title, name) in zip(row, FIGURES.items()):
            along = [one[question] / (1e6 if question == "parameters" else 1) for one in points[question]]
            values = [100 * one["figures"][name]["value"] for one in points[question]]
            limits = [[100 * limit for limit in one["figures"][name]["ci95"]] for one in points[question]]
            spread = [
                [v - low for v, (low, _) in zip(values, limits)],
                [high - v for v, (_, high) in zip(values, limits)],
            ]
            axis.errorbar(along, values, spread, marker="o", capsize=3)
            axis.set(title=title, xlabel=label, ylim=(-3, 103))
            if question == "percent":
                axis.set(xscale="log", xticks=along, xticklabels=[f"{x:g}" for x in along])
        row[0].set_ylabel("right, %")
    figure.savefig(path, dpi=100)


def main(script: ScriptArguments) -> None:
    widest = max(script.widths)
    points = {
        "percent": [point(measured(script, percent, widest), percent) for percent in script.percent],
        "parameters": [point(measured(script, 100, width), 100) for width in script.widths],
    }
    report = {"steps": script.training["max_steps"], "items": script.items, **points}
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")
    plot(points, script.output.with_suffix(".png"))
    print(f"Figures: {script.output}\nPlots: {script.output.with_suffix('.png')}")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
