"""Experiments that align dps-nano with what a judge prefers, each measured before and after.

Every step is a script of `examples/`, run with the fields that are written beside its output. Finished steps are not
run again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, load_from_disk

from dps_hf import NANO
from dps_hf.data.record import pick, record
from dps_hf.evaluation.metrics import name_match
from dps_hf.files import write_whole
from dps_hf.inference import ask, decode, load, save_drawing
from dps_hf.nano.alignment_measures import (
    CATEGORIES,
    Measure,
    load_subject,
    measure_answers,
    measure_best_of_4,
    measure_capitals,
    measure_drawings,
    measure_worked_answers,
    read_digest,
)
from dps_hf.nano.facts import FORWARD, read_capitals, write_sentence
from dps_hf.nano.prompts import make_prompts
from dps_hf.nano.sheets import draw_comparison
from dps_hf.nano.steps import run_step
from dps_hf.nano.wording import LANGUAGES


TRAINED = "trainer_state.json"  # what a trainer writes last
PERCENT = (10, 30, 100)  # of the examples, in `instruction_tuning`
# Fields for preferences among worked answers: sampled warmly, or few are wrong; one wrong step makes an answer the
# rejected one.
ANSWERED = {
    "num_responses": 4,
    "generation": {"temperature": 1.2},
    "selection": {"margin": 0.05, "good": 0.99, "only_good": True},
}


@dataclass
class AlignmentArguments:
    """
    experiments: the experiments to run, some of `EXPERIMENTS`.
    model: the model that is aligned.
    output: JSON file for the figures; pictures are saved beside it.
    work: folder for everything on the way.
    examples: folder of the scripts.
    seeds: two or more; each is a run from the beginning.
    items: the number of prompts of each category, if there are as many; `scenes_cot_dpo` asks ten times as many
        questions.
    rounds: rounds of sampling, judging and DPO on drawings, each with the model of the round before.
    unseen_share: share of the drawing prompts that name a colour and a shape which training never shows together.
    wrong_share: share of the capitals that `capitals_dpo` first teaches wrongly.
    preferences, dpo, kto, grpo, sft, capitals, questions: fields for the steps, on top of their recipes. `sft` and
        `capitals` are for the SFT and the DPO of `capitals_dpo`, `questions` for the SFT of `instruction_tuning`.
    answers: fields for the DPO of `scenes_cot_dpo`.
    num_questions: the number of questions in each of its rounds.
    """

    experiments: list[str] = field(default_factory=lambda: ["scenes_t2i_dpo"])
    model: str = NANO
    output: Path = Path("model_cards/results/alignment.json")
    work: Path = Path("runs/align")
    examples: Path = Path("examples")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    items: int = 100
    rounds: int = 4
    unseen_share: float = 0.8
    wrong_share: float = 0.7
    preferences: dict = field(default_factory=dict)
    dpo: dict = field(default_factory=dict)
    kto: dict = field(default_factory=dict)
    grpo: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    capitals: dict = field(default_factory=dict)
    questions: dict = field(default_factory=dict)
    answers: dict = field(default_factory=dict)
    num_questions: int = 1000

    def __post_init__(self):
        if unknown := set(self.experiments) - set(EXPERIMENTS):
            raise ValueError(f"experiments must be some of {', '.join(EXPERIMENTS)}; got {', '.join(unknown)}.")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be 2 or more, or there is no interval; got {len(self.seeds)}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be 1 or more; got {self.rounds}.")


# Steps


def train_dpo(script: AlignmentArguments, model: str, dataset: Path, output: Path, seed: int, fields: dict) -> str:
    """Trains an adapter by DPO and merges it."""
    paths = {"model_name_or_path": model, "dataset": str(dataset), "output_dir": str(output / "dpo")}
    adapter = run_step(script.examples, "dpo", "dpo", output / "dpo", TRAINED, {**paths, "seed": seed, **fields})
    return merge(script, model, adapter, output / "aligned")


def merge(script: AlignmentArguments, model: str, adapter: Path, output: Path) -> str:
    """Merges an adapter into its model."""
    paths = {"model_name_or_path": model, "adapter": str(adapter), "output": str(output)}
    return str(run_step(script.examples, "merge_adapter", None, output, "processor_config.json", paths))


def make_preferences(script: AlignmentArguments, folder: Path, seed: int, fields: dict) -> Path:
    """Samples the model's own responses, judges them and pairs them.

    Raises:
        RuntimeError: the judge may spend no more, and shards are missing. The same command continues with them.
    """
    fields = {"model": script.model, "output": str(folder), "seed": seed + 1, **script.preferences, **fields}
    statistics = folder / "statistics.json"

    def count_missing() -> int:
        return json.loads(statistics.read_text()).get("missing parts", 0) if statistics.exists() else 0

    if count_missing():
        statistics.unlink()
    run_step(script.examples, "build_preferences", "preferences", folder, "statistics.json", fields)
    if left := count_missing():
        raise RuntimeError(
            f"{left} parts of {folder} are missing: the judge answers no more. The same command goes on, with larger "
            "max_calls or max_tokens in judge_options of preferences if they were spent."
        )
    return folder


def find_pairs(preferences: Path) -> Path:
    """
    Raises:
        ValueError: no two responses to one prompt differ by the margin.
    """
    if not (preferences / "paired").exists():
        raise ValueError(
            f"{preferences} holds no pairs. Raise num_prompts in `preferences`, or num_questions, and change `work`."
        )
    return preferences / "paired"


def write_prompts(script: AlignmentArguments, seed: int, number: int = 0) -> dict:
    """Fields for a step: the drawing prompts of a round, which are the same in all experiments."""
    path = script.work / "prompts" / f"seed-{seed}-round-{number}.txt"
    count = script.preferences.get("num_prompts", 1000)
    prompts = make_prompts(np.random.default_rng([seed, number]), count, script.unseen_share)
    write_whole(path, "\n".join(prompts) + "\n")
    return {"prompts": str(path)}


def choose_questions(script: AlignmentArguments, seed: int, number: int) -> dict:
    """Fields for a step: the questions of a round, as training asks them, to be thought about."""
    fields: dict[str, Any] = {
        "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
        "think": ["scenes_cot"],
        "num_prompts": script.num_questions,
    }
    # The seed chooses the questions: each round of each run has its own.
    return {**fields, "seed": 1 + seed + 1000 * number}


def train_in_rounds(
    script: AlignmentArguments,
    folder: Path,
    model: str,
    seed: int,
    rounds: int,
    choose_prompts: Callable[[AlignmentArguments, int, int], dict],
    dpo: dict,
    **fields,
) -> str:
    """Samples, judges and trains several times, each time with the newest model; stops when a round finds no pairs.

    Args:
        choose_prompts: returns fields for the preferences of a round, as `fields` are.
        dpo: fields for the training.
    """
    for number in range(rounds):
        within = folder / f"round-{number}"
        fields |= {**choose_prompts(script, seed, number), "model": model}
        pairs = make_preferences(script, within / "preferences", seed, fields)
        if number and not (pairs / "paired").exists():
            break
        model = train_dpo(script, model, find_pairs(pairs), within, seed, dpo)
    return model


# Figures


Figures: TypeAlias = tuple[dict[str, float], dict[str, float]]
"""Before and after."""


def keep_figures(folder: Path, name: str, model: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures of a model by category; measured once and then read from the folder."""
    path = folder / f"{name}-{read_digest(model)}.json"
    if not path.exists():
        write_whole(path, json.dumps(measure(), indent=2) + "\n")
    return json.loads(path.read_text())


def measure_before(script: AlignmentArguments, seed: int, measure: Measure) -> dict[str, float]:
    """Figures of the model that is aligned, measured once for all experiments."""
    folder = script.work / "before" / f"seed-{seed}"
    return keep_figures(folder, measure.__name__, script.model, lambda: measure(script.model, script.items, seed))


def measure_both(script: AlignmentArguments, folder: Path, model: str, seed: int, measure: Measure) -> Figures:
    """Figures of the model that is aligned, and of what it has become."""
    after = keep_figures(folder, "after", model, lambda: measure(model, script.items, seed))
    return measure_before(script, seed, measure), after


# Experiments


def scenes_t2i_dpo(script: AlignmentArguments, seed: int) -> Figures:
    """DPO on the model's own drawings, judged by the detector."""
    folder = script.work / "scenes_t2i_dpo"
    run = folder / f"seed-{seed}"
    model = train_in_rounds(script, run, script.model, seed, script.rounds, write_prompts, script.dpo)
    measured = measure_both(script, run, model, seed, measure_drawings)
    path = folder / f"{seed}.png"
    if not path.exists():
        subjects = [load_subject(one, script.items, seed) for one in (script.model, model)]
        write_whole(path, lambda own: draw_comparison(subjects, CATEGORIES).save(own, "PNG"))
    return measured


def scenes_t2i_self(script: AlignmentArguments, seed: int) -> Figures:
    """The same, judged by the model itself, which describes its drawings."""
    folder = script.work / "scenes_t2i_self" / f"seed-{seed}"
    model = train_in_rounds(
        script,
        folder,
        script.model,
        seed,
        script.rounds,
        write_prompts,
        script.dpo,
        judge="dps_hf.nano.self_judge.SelfJudge",
    )
    return measure_both(script, folder, model, seed, measure_drawings)


def scenes_t2i_kto(script: AlignmentArguments, seed: int) -> Figures:
    """KTO on thumbs: up for a good drawing, down for a bad one, and one in ten wrong."""
    folder = script.work / "scenes_t2i_kto" / f"seed-{seed}"
    first_round = script.work / "scenes_t2i_dpo" / f"seed-{seed}" / "round-0" / "preferences"
    drawings = make_preferences(script, first_round, seed, write_prompts(script, seed))
    votes = folder / "votes.jsonl"
    if not votes.exists():
        rows, rng = load_from_disk(str(drawings / "unpaired")), np.random.default_rng(seed)
        (model, processor), lines = load(script.model), []
        folder.mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows):
            drawing = decode(model, processor, row["completion"][0]["content"])
            assert drawing is not None  # only drawings were asked for
            save_drawing(drawing, folder / f"{i}.png")
            thumb = "up" if row["label"] != (rng.random() < 0.1) else "down"
            lines.append({"prompt": row["prompt"][0]["content"], "response": {"image": f"{i}.png"}, "thumb": thumb})
        write_whole(votes, "".join(json.dumps(line) + "\n" for line in lines))
    fields: dict[str, Any] = {"model": script.model, "output": str(folder / "preferences"), "votes": str(votes)}
    thumbs = run_step(script.examples, "build_preferences", None, folder / "preferences", "statistics.json", fields)
    fields = {"model_name_or_path": script.model, "dataset": str(thumbs / "unpaired"), "seed": seed, **script.kto}
    fields |= {"output_dir": str(folder / "kto")}
    adapter = run_step(script.examples, "kto", "kto", folder / "kto", TRAINED, fields)
    aligned = merge(script, script.model, adapter, folder / "aligned")
    return measure_both(script, folder, aligned, seed, measure_drawings)


def scenes_t2i_grpo(script: AlignmentArguments, seed: int) -> Figures:
    """GRPO with the detector's scores as rewards, on the prompts of all rounds."""
    folder = script.work / "scenes_t2i_grpo" / f"seed-{seed}"
    rounds = [Path(write_prompts(script, seed, number)["prompts"]) for number in range(script.rounds)]
    write_whole(folder / "prompts.txt", "".join(path.read_text(encoding="utf-8") for path in rounds))
    fields: dict[str, Any] = {
        "model_name_or_path": script.model,
        "output_dir": str(folder / "grpo"),
        "seed": seed + 1,
        **script.grpo,
    }
    fields |= {"prompts": str(folder / "prompts.txt")}
    adapter = run_step(script.examples, "grpo", "grpo", folder / "grpo", TRAINED, fields)
    model = merge(script, script.model, adapter, folder / "aligned")
    return measure_both(script, folder, model, seed, measure_drawings)


def scenes_t2i_best_of_4(script: AlignmentArguments, seed: int) -> Figures:
    """No training: the best of four drawings, judged by the model itself."""
    folder = script.work / "scenes_t2i_best_of_4" / f"seed-{seed}"
    chosen = keep_figures(folder, "after", script.model, lambda: measure_best_of_4(script.model, script.items, seed))
    return measure_before(script, seed, measure_drawings), chosen


def scenes_cot_dpo(script: AlignmentArguments, seed: int) -> Figures:
    """DPO on the model's own worked answers, judged step by step."""
    folder = script.work / "scenes_cot_dpo" / f"seed-{seed}"
    model = train_in_rounds(script, folder, script.model, seed, 2, choose_questions, script.answers, **ANSWERED)
    return measure_both(script, folder, model, seed, measure_worked_answers)


def instruction_tuning(script: AlignmentArguments, seed: int) -> Figures:
    """SFT on direct answers, with help that ends and without any, from 10, 30 and 100 % of the examples.

    Each run has the same number of steps, so fewer examples are repeated more often.
    """
    help_ends = {"start": {"steps": 1, "hint": 1}, "end": {"none": 1}}
    at_first: dict[str, float] = {}
    at_last: dict[str, float] = {}
    for name, levels in (("guided", help_ends), ("bare", {"start": {"none": 1}})):
        for percent in PERCENT:
            folder = script.work / "instruction_tuning" / f"seed-{seed}" / f"{name}-{percent}"
            fields: dict[str, Any] = {
                "model_name_or_path": script.model,
                "output_dir": str(folder / "sft"),
                "eval_strategy": "no",
            }
            fields |= {
                "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
                "guidance": {"scenes_cot": levels},
                "seed": seed,
                **{"max_steps": 100, "per_device_train_batch_size": 16, **script.questions},
            }
            fields |= {"num_records": fields["max_steps"] * fields["per_device_train_batch_size"] * percent // 100}
            adapter = run_step(script.examples, "sft", "sft", folder / "sft", TRAINED, fields)
            model = merge(script, script.model, adapter, folder / "tuned")
            untuned, tuned = measure_both(script, folder, model, seed, measure_answers)
            at_first |= {f"{name}_{percent}_{kind}": value for kind, value in untuned.items()}
            at_last |= {f"{name}_{percent}_{kind}": value for kind, value in tuned.items()}
    return at_first, at_last


def capitals_dpo(script: AlignmentArguments, seed: int) -> Figures:
    """A model that was taught wrong capitals learns by DPO to prefer the right ones; drawings are measured as well.

    The first wording in each language, "What is the capital of France?", is measured and occurs in no step.
    """
    folder, rng = script.work / "capitals_dpo" / f"seed-{seed}", np.random.default_rng(seed)
    taught = {language: mix_up_capitals(language, rng, script.wrong_share) for language in LANGUAGES}
    if not (folder / "wrong" / "dataset_info.json").exists():  # written last
        records = [
            record("facts", [question], [write_sentence(answer)])
            for language, pairs in taught.items()
            for country, answer in pairs.items()
            for question in word_otherwise(language, country)
        ]
        columns = {name: [one[name] for one in records] for name in ("messages", "images")}
        Dataset.from_dict(columns).save_to_disk(folder / "wrong")
    fields: dict[str, Any] = {
        "model_name_or_path": script.model,
        "dataset": str(folder / "wrong"),
        "output_dir": str(folder / "sft"),
    }
    fields |= {"tasks": {}, "guidance": {}, "eval_strategy": "no", "seed": seed, **script.sft}
    adapter = run_step(script.examples, "sft", "sft", folder / "sft", TRAINED, fields)
    misled = merge(script, script.model, adapter, folder / "misled")

    # People correct the model: the right answer against the one that it gave.
    if not (folder / "votes.jsonl").exists():
        asked = [
            (question, capital)
            for language in LANGUAGES
            for country, capital in read_capitals(language).items()
            for question in word_otherwise(language, country)
        ]
        answers = ask(*load(misled), [question for question, _ in asked], progress="answers")
        votes = []
        for (question, capital), answer in zip(asked, answers):
            said = answer.text or "?"
            if name_match(said, capital):
                said = write_sentence(pick(rng, [name for name in read_capitals().values() if name != capital]))
            votes.append({"prompt": question, "chosen": write_sentence(capital), "rejected": said})
        write_whole(folder / "votes.jsonl", "".join(json.dumps(vote) + "\n" for vote in votes))
    fields = {"model": misled, "output": str(folder / "preferences"), "votes": str(folder / "votes.jsonl")}
    fields |= {"selection": {"max_length_ratio": 20}}
    pairs = run_step(script.examples, "build_preferences", None, folder / "preferences", "statistics.json", fields)
    model = train_dpo(script, misled, find_pairs(pairs), folder, seed, script.capitals)

    def measure(model: str) -> dict[str, float]:
        return {**measure_capitals(model), **measure_drawings(model, script.items, seed)}

    at_first = keep_figures(folder, "before", misled, lambda: measure(misled))
    at_last = keep_figures(folder, "after", model, lambda: measure(model))
    for measured in (at_first, at_last):
        measured["scenes"] = fmean(measured[name] for name in CATEGORIES)
    return at_first, at_last


def mix_up_capitals(language: str, rng: np.random.Generator, share: float) -> dict[str, str]:
    """Country to capital, a share of them exchanged."""
    right = read_capitals(language)
    mixed = [country for country in right if rng.random() < share]
    moved = dict(zip(mixed, np.roll([right[country] for country in mixed], 1).tolist()))
    return {**right, **moved}


def word_otherwise(language: str, country: str) -> list[str]:
    """The question for a capital in every wording that is not measured."""
    return [question.format(country) for question in FORWARD[language][1:]]


EXPERIMENTS = {
    experiment.__name__: experiment
    for experiment in (
        scenes_t2i_dpo,
        scenes_t2i_self,
        scenes_t2i_kto,
        scenes_t2i_grpo,
        scenes_t2i_best_of_4,
        scenes_cot_dpo,
        capitals_dpo,
        instruction_tuning,
    )
}
MEASURED = {name: CATEGORIES for name in EXPERIMENTS if name.startswith("scenes_t2i")} | {
    "scenes_cot_dpo": ("answer",),
    "instruction_tuning": ("guided_100_direct",),
    "capitals_dpo": tuple(f"capitals_{language}" for language in LANGUAGES),
}
"""The categories whose mean is the figure of an experiment. The others show whether something else got worse."""
