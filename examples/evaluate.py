"""Measures a DPS on your held-out data, or with evaluations of your own; each figure has a 95 % confidence interval.

python examples/evaluate.py --model me/my-dps --dataset held_out --output outputs/held_out.json
python examples/evaluate.py --model me/my-dps --dataset held_out --judge my_judges.redness --output outputs/judged.json
python examples/evaluate.py --model me/my-dps --tasks my_evaluations.describes_cats --output outputs/cats.json
python examples/evaluate.py --config examples/recipes/nano/evaluate.yaml --output outputs/shipped.json

What the records of the data set hold decides what is measured: captions (BLEU, chrF, ROUGE-L, CIDEr), questions (exact
and contained match), drawings (nearest wanted picture, likelihood after right and after shuffled words), retrieval.
An evaluation of your own is a function `(subject) -> dict[str, Figure]` (`dps_hf.evaluation`), given by its dotted
path. Finished evaluations are kept in the output: if the command is interrupted, it continues with the next one.
`--fresh` runs them again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from trl import TrlParser

from dps_hf import NANO
from dps_hf.command_line import SEED, run_script
from dps_hf.data.rows import read_settings
from dps_hf.data.sources import LazyRecords, compute_fingerprint, read_records, split_off
from dps_hf.evaluation.held_out import HeldOut, choose_records
from dps_hf.evaluation.runner import print_figures, run_evaluations
from dps_hf.evaluation.subject import Subject
from dps_hf.inference import load
from dps_hf.judges.resolve import find_judge, keep_verdict_options, make_judge
from dps_hf.resolve import resolve


@dataclass
class ScriptArguments:
    """
    tasks: dotted paths of evaluations, or of modules whose `EVALUATIONS` lists several.
    model: folder or name of the model.
    output: JSON file for the figures.
    sheet: dotted path of a function `(subject) -> Image` that draws a page to look at. It is saved beside the figures,
        as PNG. With `dataset` alone, the default is a page of its answers and drawings beside what was wanted.
    items: the number of items that a figure comes from, if there are as many.
    guidance, temperature, top_k: of the drawings, by default those of the model's generation config; temperature 0 is
        greedy.
    batch_size: the number of items in one call of `generate`.
    seed: chooses the items and the random numbers of sampling.
    fresh: runs evaluations again that the output already holds.
    dataset: held-out records, in any form that the training scripts take. Captioned pictures are described and drawn.
    evaluation_share: the share of `dataset` that the training held out, if that is to be measured; by default
        everything is.
    training_seed: the seed of that training; the default is that of the training scripts and of most recipes.
    answers: what answers about pictures are, "captions" or "questions"; by default it is guessed and printed.
    judge: name or dotted path of a judge that scores what the model answers to the data set, as in
        `build_preferences.py`.
    judge_options: keyword arguments of the judge. Replies are kept beside the output.
    """

    tasks: list[str] = field(default_factory=list)
    model: str = NANO
    output: Path = Path("outputs/figures.json")
    sheet: str | None = None
    items: int = 500
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    batch_size: int = 48
    seed: int = 0
    fresh: bool = False
    dataset: str | None = None  # or what a recipe says, a mapping or a list
    evaluation_share: float | None = None
    training_seed: int = SEED
    answers: str | None = None
    judge: str | None = None
    judge_options: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.items < 1:
            raise ValueError(f"items must be 1 or more; got {self.items}.")
        if self.judge and not self.dataset:
            raise ValueError(
                f"judge scores answers to a dataset; got the judge {self.judge} and no dataset. Name one."
            )
        if self.judge:
            find_judge(self.judge, self.judge_options)  # before anything takes long


def choose_sampling(script: ScriptArguments, config: GenerationConfig) -> dict:
    """Every setting of sampling, written out so that a later change of a default changes no figure."""
    given = {"guidance_scale": script.guidance, "temperature": script.temperature, "top_k": script.top_k}
    chosen = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the library's defaults
    chosen |= {name: getattr(config, name) for name in chosen if getattr(config, name) is not None}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if chosen["temperature"] == 0:
        return {"guidance_scale": chosen["guidance_scale"], "do_sample": False}
    return {**chosen, "do_sample": True}


def describe_dataset(script: ScriptArguments, records: Any) -> dict[str, str]:
    """What the figures of the data set depend on, without folders of this machine."""
    settings = read_settings(script.dataset)
    titles = [f"{one.title} ({one.split})" if one.split else one.title for one in settings]
    is_read = isinstance(records, LazyRecords)
    about = {
        "dataset": ", ".join(titles),
        "dataset_fingerprint": records.fingerprint if is_read else compute_fingerprint(script.dataset),
    }
    if script.answers:
        about["dataset_answers"] = script.answers
    if script.judge:
        options = keep_verdict_options(script.judge_options)
        about["judge"] = f"{script.judge} {json.dumps(options, default=str)}" if options else script.judge
    return about


def main(script: ScriptArguments) -> None:
    # Dataset
    records = None
    if script.dataset:
        records = read_records(script.dataset, script.training_seed)
        if script.evaluation_share is not None:
            records = split_off(records, script.evaluation_share, script.training_seed)[1]

    # Model
    model, processor = load(script.model)
    sampling = choose_sampling(script, model.generation_config)
    subject = Subject(model, processor, script.items, script.seed, sampling, script.batch_size)

    # Evaluations
    held_out, about = None, {}
    if records is not None:
        replies = script.output.with_name(f"{script.output.stem}-replies.jsonl")
        loaded = model, processor
        judge = script.judge and make_judge(script.judge, script.judge_options, lambda: loaded, cache=replies)
        held_out = HeldOut(choose_records(records, subject), script.answers, judge)
        about = describe_dataset(script, records)
        print(held_out.describe())
    own = held_out.list_evaluations() if held_out else None
    name = Path(script.model).name
    report = run_evaluations(subject, name, script.tasks, script.output, script.fresh, own, about)
    print_figures(report)
    print(f"\nFigures: {script.output}")
    draw_sheet = resolve(script.sheet, "sheet") if script.sheet else held_out and held_out.draw_sheet
    if draw_sheet:
        path = script.output.with_suffix(".png")
        if script.fresh or not path.exists():
            draw_sheet(subject).save(path)
        print(f"Drawings: {path}")


if __name__ == "__main__":
    run_script(main, TrlParser(ScriptArguments))
