"""Aligns dps-nano with what a judge prefers, and measures before and after: samples, judges, pairs, trains, measures.

python examples/align.py --config examples/recipes/nano_align.yaml
python examples/align.py --config examples/recipes/nano_align.yaml --experiments capitals_dpo

Each step is a script of its own, run with the fields that are written beside its output. Killed at any moment, the same
command goes on: finished steps are not done again. What is measured was asked in no step.
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset
from trl import TrlParser

from dps_hf import NANO
from dps_hf.data.facts import FORWARD, capitals, sentence
from dps_hf.data.record import pick, record
from dps_hf.data.wording import LANGUAGES
from dps_hf.evaluation.metrics import name_match
from dps_hf.evaluation.tasks import FORMS, Subject, scenes_t2i
from dps_hf.inference import ask, load
from dps_hf.pages import Item, Section, page


# Student's t for 95 %, by the number of seeds.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SAMPLING = {"do_sample": True, "temperature": 0.5}  # drawings that are measured


@dataclass
class ScriptArguments:
    """
    experiments: which rows of the table.
    model: what is aligned.
    output: the figures; pictures go beside it.
    work: folder for everything on the way.
    seeds: each is a run from the beginning.
    items: prompts of each category that are measured.
    wrong_share: of the capitals that the model is first taught wrongly, for `capitals_dpo`.
    preferences, dpo, sft, capitals: fields for the steps, on top of their recipes; `capitals` for its DPO.
    """

    experiments: list[str] = field(default_factory=lambda: list(EXPERIMENTS))
    model: str = NANO
    output: Path = Path("model_cards/results/alignment.json")
    work: Path = Path("runs/align")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    items: int = 100
    wrong_share: float = 0.7
    preferences: dict = field(default_factory=dict)
    dpo: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    capitals: dict = field(default_factory=dict)

    def __post_init__(self):
        if len(self.seeds) not in T95:
            raise ValueError(f"seeds must be 2 to {max(T95)}, or there is no interval; got {len(self.seeds)}.")


# Steps


def step(name: str, recipe: str | None, output: Path, done: str, fields: dict) -> Path:
    """Runs `examples/NAME.py` with a recipe and some fields, unless `done` is in the output already."""
    if (output / done).exists():
        return output
    here = Path(__file__).parent
    base = yaml.safe_load((here / "recipes" / recipe).read_text()) if recipe else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_name(output.name + ".yaml")
    config.write_text(yaml.safe_dump({**base, **fields}))
    print(f"\n{output}: {name}")
    subprocess.run([sys.executable, here / f"{name}.py", "--config", config], check=True)
    return output


def aligned(script: ScriptArguments, model: str, dataset: Path, output: Path, seed: int, fields: dict) -> str:
    """DPO with LoRA from a model, and the merged result."""
    adapter = step(
        "dpo", "nano_dpo.yaml", output / "dpo", "adapter_model.safetensors",
        {"model_name_or_path": model, "dataset": str(dataset), "output_dir": str(output / "dpo"), "seed": seed, **fields},
    )  # fmt: skip
    return merged(model, adapter, output / "aligned")


def merged(model: str, adapter: Path, output: Path) -> str:
    paths = {"model_name_or_path": model, "adapter": str(adapter), "output": str(output)}
    return str(step("merge_adapter", None, output, "processor_config.json", paths))


def figures(folder: Path, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured, by category; kept in the folder."""
    path = folder / f"{name}.json"
    if not path.exists():
        measured = measure()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured, indent=2) + "\n")
    return json.loads(path.read_text())


def drawn(script: ScriptArguments, model: str, seed: int) -> dict[str, float]:
    """Scenes drawn exactly, by category, with prompts that training never hears."""
    return {name: figure["value"] for name, figure in scenes_t2i(subject(script, model, seed)).items()}


def subject(script: ScriptArguments, model: str, seed: int) -> Subject:
    loaded = load(model)
    scale = loaded[0].generation_config.guidance_scale or 1.0
    return Subject(*loaded, script.items, seed, {**SAMPLING, "guidance_scale": scale})


# Experiments


def scenes_t2i_dpo(script: ScriptArguments, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """DPO on the model's own drawings, judged by the detector."""
    folder = script.work / "scenes_t2i_dpo" / f"seed-{seed}"
    pairs = step(
        "build_preferences", "nano_preferences.yaml", folder / "preferences", "statistics.json",
        {"model": script.model, "output": str(folder / "preferences"), "seed": seed + 1, **script.preferences},
    )  # fmt: skip
    model = aligned(script, script.model, pairs / "paired", folder, seed, script.dpo)
    before = figures(folder, "before", lambda: drawn(script, script.model, seed))
    after = figures(folder, "after", lambda: drawn(script, model, seed))
    sheet(script, folder.parent / f"{seed}.png", seed, model)
    return before, after


def sheet(script: ScriptArguments, path: Path, seed: int, model: str) -> None:
    """Drawings of each category before and after, side by side."""
    if path.exists():
        return
    subjects = [subject(script, name, seed) for name in (script.model, model)]
    prompts = [prompt for name in FORMS for prompt in subjects[0].held_out_prompts(name, 8)]
    before, after = (one.draw(prompts) for one in subjects)
    items = [Item(pictures, [prompt]) for *pictures, prompt in zip(before, after, prompts)]
    page([Section("Before and after", items, columns=4)]).save(path)


def capitals_dpo(script: ScriptArguments, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """A model that was taught wrong capitals learns by DPO to prefer the right ones; its drawings are measured, too.

    The first wording of each language, "What is the capital of France?", is what is measured, and is in no step.
    """
    folder, rng = script.work / "capitals_dpo" / f"seed-{seed}", np.random.default_rng(seed)
    taught = {language: wrong_capitals(language, rng, script.wrong_share) for language in LANGUAGES}
    if not (folder / "wrong").exists():
        records = [
            record("facts", [question], [sentence(answer)])
            for language, pairs in taught.items()
            for country, answer in pairs.items()
            for question in wordings(language, country)
        ]
        columns = {name: [one[name] for one in records] for name in ("messages", "images")}
        Dataset.from_dict(columns).save_to_disk(folder / "wrong")
    adapter = step(
        "sft", "nano_sft.yaml", folder / "sft", "adapter_model.safetensors",
        {"model_name_or_path": script.model, "dataset": str(folder / "wrong"), "output_dir": str(folder / "sft")}
        | {"tasks": {}, "guidance": {}, "eval_strategy": "no", "seed": seed, **script.sft},
    )  # fmt: skip
    misled = merged(script.model, adapter, folder / "misled")

    # People correct the model: what it should have said against what it said.
    if not (folder / "votes.jsonl").exists():
        asked = [
            (question, capital)
            for language in LANGUAGES
            for country, capital in capitals(language).items()
            for question in wordings(language, country)
        ]
        answers = ask(*load(misled), [question for question, _ in asked], progress="answers")
        votes = []
        for (question, capital), answer in zip(asked, answers):
            said = answer.text or "?"
            if name_match(said, capital):
                said = sentence(pick(rng, [name for name in capitals().values() if name != capital]))
            votes.append({"prompt": question, "chosen": sentence(capital), "rejected": said})
        (folder / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    pairs = step(
        "build_preferences", None, folder / "preferences", "statistics.json",
        {"model": misled, "output": str(folder / "preferences"), "votes": str(folder / "votes.jsonl")}
        | {"selection": {"max_length_ratio": 20}},
    )  # fmt: skip
    model = aligned(script, misled, pairs / "paired", folder, seed, script.capitals)
    before = figures(folder, "before", lambda: {**named(misled), **drawn(script, misled, seed)})
    after = figures(folder, "after", lambda: {**named(model), **drawn(script, model, seed)})
    return before, after


def wrong_capitals(language: str, rng: np.random.Generator, share: float) -> dict[str, str]:
    """Country to capital, a share of them mixed up."""
    right = capitals(language)
    mixed = [country for country in right if rng.random() < share]
    moved = dict(zip(mixed, np.roll([right[country] for country in mixed], 1).tolist()))
    return {**right, **moved}


def wordings(language: str, country: str) -> list[str]:
    """Ways of asking that are not measured."""
    return [question.format(country) for question in FORWARD[language][1:]]


def named(model: str) -> dict[str, float]:
    """Capitals that are named rightly, by language: every country, in the wording that no step asked in."""
    right = {}
    for language in LANGUAGES:
        pairs = capitals(language)
        answers = ask(*load(model), [FORWARD[language][0].format(country) for country in pairs], progress=language)
        marks = [name_match(answer.text, capital) for answer, capital in zip(answers, pairs.values())]
        right[f"capitals_{language}"] = sum(marks) / len(marks)
    return right


EXPERIMENTS = {"scenes_t2i_dpo": scenes_t2i_dpo, "capitals_dpo": capitals_dpo}
MEASURED = {"scenes_t2i_dpo": tuple(FORMS), "capitals_dpo": tuple(f"capitals_{language}" for language in LANGUAGES)}
"""Categories whose mean is the figure of an experiment; the others must not suffer."""


# Report


def summary(runs: list[tuple[dict[str, float], dict[str, float]]], measured: tuple[str, ...]) -> dict:
    """Means over the seeds; `ci95` is that of the gain, by Student's t over the seeds."""

    def of(names: tuple[str, ...]) -> dict:
        before, after = ([statistics.fmean(run[i][name] for name in names) for run in runs] for i in (0, 1))
        gains = [b - a for a, b in zip(before, after)]
        gain, half = statistics.fmean(gains), T95[len(runs)] * statistics.stdev(gains) / len(runs) ** 0.5
        return {
            "before": round(statistics.fmean(before), 4),
            "after": round(statistics.fmean(after), 4),
            "gain": round(gain, 4),
            "ci95": [round(gain - half, 4), round(gain + half, 4)],
        }

    return {**of(measured), "categories": {name: of((name,)) for name in runs[0][0]}}


def main(script: ScriptArguments) -> None:
    if unknown := set(script.experiments) - set(EXPERIMENTS):
        raise ValueError(f"experiments must be some of {', '.join(EXPERIMENTS)}; got {', '.join(unknown)}.")
    report = json.loads(script.output.read_text()) if script.output.exists() else {}
    script.output.parent.mkdir(parents=True, exist_ok=True)
    for name in script.experiments:
        runs = [EXPERIMENTS[name](script, seed) for seed in script.seeds]
        about = {"seeds": script.seeds, "items": script.items, "command": shlex.join(["python", *sys.argv])}
        report[name] = {**summary(runs, MEASURED[name]), **about}
        script.output.write_text(json.dumps(report, indent=2) + "\n")
        picture = script.work / name / f"{script.seeds[0]}.png"
        if picture.exists():
            shutil.copy(picture, script.output.with_name(f"{script.output.stem}_{name}.png"))
        for category, row in {"all": report[name], **report[name]["categories"]}.items():
            low, high = row["ci95"]
            print(
                f"{name:16} {category:14}{row['before']:8.3f} to {row['after']:.3f}   gain {low:+.3f} to {high:+.3f}"
            )
    print(f"\nFigures: {script.output}")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
