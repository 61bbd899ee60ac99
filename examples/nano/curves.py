"""Learning curves of dps-nano: losses and figures by the share of its data and by its number of parameters, as plots.

python examples/nano/curves.py --config examples/recipes/nano/curves.yaml

Each point is a decoder trained from nothing by `examples/train.py`, with the tokenizers and the vision tower of
dps-nano. All are trained for the same number of steps, many fewer than dps-nano itself. If the command is interrupted,
the same command continues.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from trl import TrlParser

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.files import write_whole
from dps_hf.inference import load
from dps_hf.training.resuming import keep_settings


FIGURES = {
    "one thing drawn": "scenes_t2i.one_object",
    "two things drawn": "scenes_t2i.two_objects",
    "counted": "scenes_t2i.counting",
    "placed": "scenes_t2i.position",
    "pairs that never met": "scenes_t2i.unseen_pair",
    "described": "scenes_i2t.exact",
    "questions": "scenes_cot.answer",
    "emoji named": "emoji_i2t.en",
    "in 12 languages": "emoji_i2t.mean",
    "capitals": "facts.en",
}


@dataclass
class ScriptArguments:
    """
    output: JSON file for the figures of every point; the plots are saved beside it, as PNG.
    work: folder for the trained decoders.
    model: the model whose tokenizers and vision tower are used.
    percent: shares of the data, whose records are repeated until the last step.
    widths: of the decoder, multiples of 64; the largest is used for the shares of the data.
    items: the number of items that a figure comes from.
    jobs: trainings at the same time, each on its share of the cores, which is faster than one after the other.
    training: fields of `examples/train.py`.
    """

    output: Path = Path("runs/curves/curves.json")
    work: Path = Path("runs/curves")
    model: str = NANO
    percent: list[int] = field(default_factory=lambda: [10, 30, 100])
    widths: list[int] = field(default_factory=lambda: [128, 192, 256])
    items: int = 200
    jobs: int = 2
    training: dict = field(default_factory=dict)


def save_parts(script: ScriptArguments) -> dict[str, str]:
    """Saves the parts that all decoders share, and returns their folders by field of `examples/train.py`."""
    folders = {name: script.work / name for name in ("text_tokenizer", "image_tokenizer", "vision")}
    if not (folders["vision"] / "model.safetensors").exists():
        model, processor = load(script.model)
        processor.tokenizer.save_pretrained(folders["text_tokenizer"])
        model.model.image_tokenizer.save_pretrained(folders["image_tokenizer"])
        model.model.vision_tower.save_pretrained(folders["vision"])
    return {name: str(folder) for name, folder in folders.items()}


def measure_point(script: ScriptArguments, percent: int, width: int) -> dict:
    """The figures of one decoder and its losses on held-out records; it is trained first if it does not exist yet."""
    folder, here = script.work / f"{percent}-percent-width-{width}", Path(__file__).parents[1]
    threads = str(max(1, (os.cpu_count() or 1) // script.jobs))
    run = partial(subprocess.run, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})
    state = folder / "trainer_state.json"  # written last
    if not state.exists():
        steps = script.training["max_steps"]
        records = steps * script.training["per_device_train_batch_size"]
        decoder = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_attention_heads": width // 64}
        decoder |= {"num_key_value_heads": max(1, width // 128), "head_dim": 64}
        fields = {**script.training, **save_parts(script), "text_config": script.training["text_config"] | decoder}
        fields |= {"num_records": records * percent // 100, "output_dir": str(folder)}
        fields |= {"eval_strategy": "steps", "eval_steps": steps}  # at the end
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
        run([sys.executable, here / "train.py", "--config", folder / "recipe.yaml"])
    figures = folder / "figures.json"
    asked = ["--model", folder, "--output", figures, "--items", str(script.items), "--temperature", "0"]
    tasks = sorted({name.partition(".")[0] for name in FIGURES.values()})
    run(
        [
            sys.executable,
            here / "evaluate.py",
            *asked,
            "--tasks",
            *(f"dps_hf.nano.evaluation.{task}" for task in tasks),
        ]
    )
    report, losses = json.loads(figures.read_text()), {}
    for entry in json.loads(state.read_text())["log_history"]:
        losses |= {name: value for name, value in entry.items() if name.startswith("eval_") and name.endswith("_loss")}
    return {
        "percent": percent,
        "parameters": report["parameters"],
        "figures": {name: report[name.partition(".")[0]][name.partition(".")[2]] for name in FIGURES.values()},
        "losses": {name[len("eval_") : -len("_loss")]: value for name, value in losses.items()},
    }


def plot(points: dict[str, list[dict]], path: Path) -> None:
    """Losses above the shares of right answers; one column for the share of the data, one for the parameters."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (question, label) in zip(
        axes.T, (("percent", "% of the data"), ("parameters", "parameters, millions"))
    ):
        along = [one[question] / (1e6 if question == "parameters" else 1) for one in points[question]]
        for task in points[question][0]["losses"]:
            column[0].plot(along, [one["losses"][task] for one in points[question]], marker="o", label=task)
        for title, name in FIGURES.items():
            values = np.array([one["figures"][name]["value"] for one in points[question]])
            limits = np.array([one["figures"][name]["ci95"] for one in points[question]])
            spread = np.abs(limits.T - values)
            column[1].errorbar(along, 100 * values, 100 * spread, marker="o", capsize=3, label=title)
        column[0].set(yscale="log")
        column[1].set(xlabel=label, ylim=(-3, 103))
        if question == "percent":
            column[1].set(xscale="log", xticks=along, xticklabels=[f"{x:g}" for x in along])
            column[1].minorticks_off()
    axes[0, 0].set_ylabel("loss, nats a token")
    axes[1, 0].set_ylabel("right, %")
    for row in axes:
        row[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)


def main(script: ScriptArguments) -> None:
    widest = max(script.widths)
    asked = {
        "percent": [(percent, widest) for percent in script.percent],
        "parameters": [(100, w) for w in script.widths],
    }
    # Sizes and shares are left out: more of them may be added.
    keep_settings(script.work, {name: getattr(script, name) for name in ("model", "items", "training")}, "work")
    save_parts(script)  # before several trainings need them at once
    with ThreadPoolExecutor(script.jobs) as pool:
        each = dict.fromkeys([*asked["percent"], *asked["parameters"]])
        made = {one: pool.submit(measure_point, script, *one) for one in each}
        try:
            for ended in as_completed(made.values()):
                ended.result()  # the first to fail ends all
            points = {name: [made[one].result() for one in some] for name, some in asked.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report = {"steps": script.training["max_steps"], "items": script.items, **points}
    text = json.dumps(report, indent=2) + "\n"
    if script.output.exists() and script.output.read_text() == text:
        print("All points are finished; nothing is left to do.")
    else:
        script.output.parent.mkdir(parents=True, exist_ok=True)
        plot(points, script.output.with_suffix(".png"))
        write_whole(script.output, text)  # last: it says that the plots are saved as well
    print(f"Figures: {script.output}\nPlots: {script.output.with_suffix('.png')}")


if __name__ == "__main__":
    run_script(main, TrlParser(ScriptArguments))
