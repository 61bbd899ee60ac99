"""Trains dps-nano on sentences that people wrote about pictures, an example of one's own data from parquet to figures.

python examples/nano/nlvr.py --config examples/recipes/nano/nlvr.yaml --train nlvr_train.parquet --dev nlvr_dev.parquet

The data are Cornell NLVR (Suhr et al., ACL 2017, CC-BY-4.0, https://github.com/lil-lab/nlvr), with one row for an
example in one order of its boxes: its `identifier`, `sentence`, `label` (a boolean) and `image`, three boxes side by
side. `examples/sft.py` trains two models, one that sees the boxes and one that reads only sentences. Both are asked
about examples that training does not contain. If the command is interrupted, the same command continues.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import Dataset, Image, load_dataset
from trl import TrlParser

from dps_hf.command_line import run_script
from dps_hf.data.record import record
from dps_hf.evaluation.figures import share
from dps_hf.inference import ask, load
from dps_hf.training.resuming import keep_settings


BOXES = ((0, 0, 100, 100), (150, 0, 250, 100), (300, 0, 400, 100))


@dataclass
class ScriptArguments:
    """
    train, dev: parquet files; an `identifier` that is in both is left out of the training.
    output: JSON file for the figures.
    work: folder for records and models.
    sft: fields of `examples/sft.py`.
    """

    train: str
    dev: str
    output: Path = Path("runs/nlvr/figures.json")
    work: Path = Path("runs/nlvr")
    sft: dict = field(default_factory=dict)


def load_examples(path: str) -> Dataset:
    return load_dataset("parquet", data_files=path)["train"].cast_column("image", Image())


def write_question(row: dict) -> str:
    return f"{row['sentence'].strip()} True or false?"


def write_answer(row: dict) -> str:
    if not isinstance(row["label"], bool):
        raise ValueError(f"label must be true or false; got {row['label']!r}. Make the column boolean.")
    return "true" if row["label"] else "false"


def cut_boxes(row: dict) -> list:
    """The three boxes as three pictures; in one picture they would be too small."""
    return [row["image"].convert("RGB").crop(box) for box in BOXES]


def train_model(script: ScriptArguments, rows: Dataset, name: str, seen: bool) -> Path:
    """Trains a model on the records, with pictures or without, unless its folder is finished."""
    folder, here = script.work / name, Path(__file__).parents[1]
    if not (folder / "records" / "dataset_info.json").exists():

        def records():
            for row in rows:
                made = record("nlvr", [*(cut_boxes(row) if seen else ()), write_question(row)], [write_answer(row)])
                yield {column: made[column] for column in ("messages", "images")}

        Dataset.from_generator(records).save_to_disk(folder / "records")
    if not (folder / "trainer_state.json").exists():  # written last
        fields = {**script.sft, "dataset": str(folder / "records"), "output_dir": str(folder)}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
        subprocess.run([sys.executable, here / "sft.py", "--config", folder / "recipe.yaml"], check=True)
    return folder


def main(script: ScriptArguments) -> None:
    keep_settings(script.work, {name: getattr(script, name) for name in ("train", "dev", "sft")}, "work")
    dev, train = load_examples(script.dev), load_examples(script.train)
    first: dict[str, int] = {}  # row of each example, in one order of its boxes
    for i, identifier in enumerate(dev["identifier"]):
        first.setdefault(identifier, i)
    dev = dev.select(list(first.values()))
    train = train.select([i for i, identifier in enumerate(train["identifier"]) if identifier not in first])
    truths = [write_answer(row) for row in dev]
    [(majority, _)] = Counter(map(write_answer, train)).most_common(1)
    learned = {"examples": len(set(train["identifier"])), "rows": len(train)}
    report: dict = {"learned": learned, "majority": share(one == majority for one in truths)}
    for name, seen in (("sentences_alone", False), ("with_pictures", True)):
        model, processor = load(train_model(script, train, name, seen))
        pictures = [cut_boxes(row) for row in dev] if seen else None
        answers = ask(model, processor, [write_question(row) for row in dev], pictures, progress=name)
        report[name] = share(answer.text == right for answer, right in zip(answers, truths))
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main, TrlParser(ScriptArguments))
