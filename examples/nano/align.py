"""Aligns dps-nano with what a judge prefers, and measures before and after: samples, judges, pairs, trains, measures.

python examples/align.py --config examples/recipes/nano_align.yaml
python examples/align.py --config examples/recipes/nano_align.yaml --experiments capitals_dpo

Each step is a script of its own, run with the fields that are written beside its output. Killed at any moment, the same
command goes on: finished steps are not done again. What is measured was asked in no step. Experiments may run side by side
in one work folder, KTO excepted, which takes its drawings from the first round of `scenes_t2i_dpo`.
"""

import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import Dataset, load_from_disk
from matplotlib.figure import Figure
from trl import TrlParser

from dps_hf import NANO
from dps_hf.contact_sheet import Item, Section, page, writable
from dps_hf.data.record import pick, record
from dps_hf.evaluation.metrics import name_match
from dps_hf.files import write_whole
from dps_hf.inference import ask, decode, load, save_drawing, weights_digest
from dps_hf.judges.verdict import Case
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.evaluation import FORMS, Subject, scenes_cot, scenes_t2i
from dps_hf.nano.facts import FORWARD, capitals, sentence
from dps_hf.nano.prompts import wishes
from dps_hf.nano.self_judge import SelfJudge
from dps_hf.nano.steps import run_script
from dps_hf.nano.wording import LANGUAGES, parse_wish
from dps_hf.training.resuming import keep_settings


# Student's t for 95 %, by the number of seeds.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
CATEGORIES = tuple(name for name in FORMS if name != "unseen_count")
ITEMS = {"scenes_cot_dpo": 10}  # times as many as `items` says
TRAINED = "trainer_state.json"  # what a trainer writes last
PERCENT = (10, 30, 100)  # of the examples, in `instruction_tuning`
# Fields for preferences among worked answers: warm, or few of them are wrong; one wrong step is enough to be rejected.
ANSWERED = {
    "num_responses": 4,
    "generation": {"temperature": 1.2},
    "selection": {"margin": 0.05, "good": 0.99, "only_good": True},
}
# Of what is measured: as in training, what a model does by itself.
SAMPLING = {"do_sample": True, "temperature": 1.0, "guidance_scale": 1.0}


@dataclass
class ScriptArguments:
    """
    experiments: which rows of the table.
    model: what is aligned.
    output: the figures; pictures go beside it.
    work: folder for everything on the way.
    seeds: each is a run from the beginning.
    items: prompts of each category that are measured, but no more than there are (of pairs that never met 456);
        of questions in `scenes_cot_dpo` ten times as many.
    rounds: of sampling, judging and DPO on drawings, each with the model that the one before it made.
    unseen_share: of the prompts for drawings, those that name a colour and a shape which training never shows together.
    wrong_share: of the capitals that the model is first taught wrongly, for `capitals_dpo`.
    preferences, dpo, kto, grpo, sft, capitals, questions: fields for the steps, on top of their recipes; `sft` and
        `capitals` are for the SFT and the DPO of `capitals_dpo`, `questions` for the SFT of `instruction_tuning`.
    answers: fields for the DPO of `scenes_cot_dpo`.
    num_questions: that are asked in a round of it.
    """

    experiments: list[str] = field(default_factory=lambda: ["scenes_t2i_dpo"])
    model: str = NANO
    output: Path = Path("model_cards/results/alignment.json")
    work: Path = Path("runs/align")
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
        if len(self.seeds) not in T95:
            raise ValueError(f"seeds must be 2 to {max(T95)}, or there is no interval; got {len(self.seeds)}.")
        if self.rounds < 1:
            raise ValueError(f"rounds must be 1 or more; got {self.rounds}.")


# Steps


def step(name: str, recipe: str | None, output: Path, done: str, fields: dict) -> Path:
    """Runs `examples/NAME.py` with a recipe and some fields, unless `done` is in the output already.

    Raises:
        ValueError: what is there was made with other fields.
    """
    here = Path(__file__).parent
    base = yaml.safe_load((here / "recipes" / recipe).read_text()) if recipe else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    config, text = output.with_name(output.name + ".yaml"), yaml.safe_dump({**base, **fields})
    if (output / done).exists():
        if config.read_text() != text:
            raise ValueError(
                f"{output} was made with other fields, those in {config}. Remove it, or give another work."
            )
        return output
    config.write_text(text)
    print(f"\n{output}: {name}")
    run_script(here / f"{name}.py", "--config", config)
    return output


def aligned(model: str, dataset: Path, output: Path, seed: int, fields: dict) -> str:
    """DPO with LoRA from a model, and the merged result."""
    adapter = step(
        "dpo", "nano_dpo.yaml", output / "dpo", TRAINED,
        {"model_name_or_path": model, "dataset": str(dataset), "output_dir": str(output / "dpo"), "seed": seed, **fields},
    )  # fmt: skip
    return merged(model, adapter, output / "aligned")


def merged(model: str, adapter: Path, output: Path) -> str:
    paths = {"model_name_or_path": model, "adapter": str(adapter), "output": str(output)}
    return str(step("merge_adapter", None, output, "processor_config.json", paths))


@cache
def digest(model: str) -> str:
    return weights_digest(load(model)[0])


def figures(folder: Path, name: str, model: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured of a model, by category; kept in the folder."""
    path = folder / f"{name}-{digest(model)}.json"
    if not path.exists():
        measured = measure()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(measured, indent=2) + "\n")
    return json.loads(path.read_text())


def drawn(script: ScriptArguments, model: str, seed: int) -> dict[str, float]:
    """Scenes drawn exactly, by category, with prompts that training never hears."""
    return {name: figure["value"] for name, figure in scenes_t2i(subject(script, model, seed), CATEGORIES).items()}


def subject(script: ScriptArguments, model: str, seed: int) -> Subject:
    return Subject(*load(model), script.items, seed, SAMPLING)


def reasoned(script: ScriptArguments, model: str, seed: int) -> dict[str, float]:
    """Questions about held-out scenes that are answered rightly: after thinking, and directly."""
    names = ("answer", "direct")
    measured = scenes_cot(subject(script, model, seed), names)
    return {name: measured[name]["value"] for name in names}  # by kind they are too few


class Sampled(Subject):
    """Answers by chance, as a server does that is not told otherwise, and as the responses were that are judged."""

    def ask(self, questions, pictures=None, think=False):
        torch.manual_seed(self.seed)
        sampling = {"do_sample": True, "temperature": SAMPLING["temperature"]}
        answers = ask(
            self.model, self.processor, questions, pictures, think, self.batch_size, "sampled answers", **sampling
        )
        return [answer.text for answer in answers]


def thought(script: ScriptArguments, model: str, seed: int) -> dict[str, float]:
    """Questions that are answered rightly after thinking: all, and by kind."""
    measured = scenes_cot(Sampled(*load(model), script.items * ITEMS["scenes_cot_dpo"], seed, SAMPLING), ("answer",))
    return {name: figure["value"] for name, figure in measured.items()}


Figures = tuple[dict[str, float], dict[str, float]]
"""Before and after."""

Measure = Callable[[ScriptArguments, str, int], dict[str, float]]


def before(script: ScriptArguments, seed: int, measure: Measure) -> dict[str, float]:
    """What the model does that is aligned; measured once for all experiments."""
    folder = script.work / "before" / f"seed-{seed}"
    return figures(folder, measure.__name__, script.model, lambda: measure(script, script.model, seed))


def before_and_after(script: ScriptArguments, folder: Path, model: str, seed: int, measure: Measure) -> Figures:
    """The same, and what the trained model does."""
    return before(script, seed, measure), figures(folder, "after", model, lambda: measure(script, model, seed))


# Experiments


def preferences(script: ScriptArguments, folder: Path, seed: int, fields: dict) -> Path:
    """The model's own responses, judged and paired.

    Raises:
        RuntimeError: the judge may spend no more, and parts are missing. The same command asks for them.
    """
    fields = {"model": script.model, "output": str(folder), "seed": seed + 1, **script.preferences, **fields}
    statistics = folder / "statistics.json"

    def missing() -> int:
        return json.loads(statistics.read_text()).get("missing parts", 0) if statistics.exists() else 0

    if missing():
        statistics.unlink()  # of what a judge left half done
    step("build_preferences", "nano_preferences.yaml", folder, "statistics.json", fields)
    if left := missing():
        raise RuntimeError(
            f"{left} parts of {folder} are missing: the judge answers no more. The same command goes on, with larger "
            "max_calls or max_tokens in judge_options of preferences if they were spent."
        )
    return folder


def asked_to_draw(script: ScriptArguments, seed: int, number: int = 0) -> dict:
    """Fields for a step: the prompts of a round, the same whatever is done with them."""
    path = script.work / "prompts" / f"seed-{seed}-round-{number}.txt"
    count = script.preferences.get("num_prompts", 1000)
    write_whole(path, "\n".join(wishes(np.random.default_rng([seed, number]), count, script.unseen_share)) + "\n")
    return {"prompts": str(path)}


def asked_to_answer(script: ScriptArguments, seed: int, number: int) -> dict:
    """Fields for a step: the questions of a round, as training asks them, to be thought about."""
    # A seed for each round of each run: it chooses the questions.
    fields = {
        "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
        "think": ["scenes_cot"],
        "num_prompts": script.num_questions,
    }
    return {**fields, "seed": 1 + seed + 1000 * number}


def paired(preferences: Path) -> Path:
    """
    Raises:
        ValueError: no two responses to one prompt differed by the margin.
    """
    if not (preferences / "paired").exists():
        raise ValueError(
            f"{preferences} holds no pairs. Ask more (num_prompts in `preferences`, num_questions), and give another `work`."
        )
    return preferences / "paired"


def scenes_t2i_dpo(script: ScriptArguments, seed: int) -> Figures:
    """DPO on the model's own drawings, judged by the detector."""
    folder = script.work / "scenes_t2i_dpo"
    model = in_rounds(script, folder / f"seed-{seed}", script.model, seed, script.rounds, asked_to_draw, script.dpo)
    measured = before_and_after(script, folder / f"seed-{seed}", model, seed, drawn)
    sheet(script, folder / f"{seed}.png", seed, model)
    return measured


def scenes_t2i_self(script: ScriptArguments, seed: int) -> Figures:
    """The same, judged by the model itself, which says what it sees in its drawings."""
    folder = script.work / "scenes_t2i_self" / f"seed-{seed}"
    model = in_rounds(script, folder, script.model, seed, script.rounds, asked_to_draw, script.dpo, judge="self")
    return before_and_after(script, folder, model, seed, drawn)


def in_rounds(
    script: ScriptArguments,
    folder: Path,
    model: str,
    seed: int,
    rounds: int,
    asked: Callable[[ScriptArguments, int, int], dict],
    dpo: dict,
    **fields,
) -> str:
    """Samples, judges and trains several times, each time with what the model has become; less often where nothing is left to learn.

    Args:
        asked: what is asked in a round, fields for its preferences as `fields` are.
        dpo: fields for its training.
    """
    for number in range(rounds):
        within = folder / f"round-{number}"
        fields |= {**asked(script, seed, number), "model": model}
        pairs = preferences(script, within / "preferences", seed, fields)
        if number and not (pairs / "paired").exists():
            break
        model = aligned(model, paired(pairs), within, seed, dpo)
    return model


def scenes_t2i_kto(script: ScriptArguments, seed: int) -> Figures:
    """KTO on people's thumbs: up where a drawing is what they asked for, down where it is far from it, one in ten wrong."""
    folder = script.work / "scenes_t2i_kto" / f"seed-{seed}"
    first_round = script.work / "scenes_t2i_dpo" / f"seed-{seed}" / "round-0" / "preferences"
    drawings = preferences(script, first_round, seed, asked_to_draw(script, seed))
    votes = folder / "votes.jsonl"
    if not votes.exists():
        rows, rng = load_from_disk(drawings / "unpaired"), np.random.default_rng(seed)
        (model, processor), lines = load(script.model), []
        folder.mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows):
            drawing = decode(model, processor, row["completion"][0]["content"])
            assert drawing is not None  # only drawings were asked for
            save_drawing(drawing, folder / f"{i}.png")
            thumb = "up" if row["label"] != (rng.random() < 0.1) else "down"
            lines.append({"prompt": row["prompt"][0]["content"], "response": {"image": f"{i}.png"}, "thumb": thumb})
        write_whole(votes, "".join(json.dumps(line) + "\n" for line in lines))
    thumbs = step(
        "build_preferences", None, folder / "preferences", "statistics.json",
        {"model": script.model, "output": str(folder / "preferences"), "votes": str(votes)},
    )  # fmt: skip
    fields = {"model_name_or_path": script.model, "dataset": str(thumbs / "unpaired"), "seed": seed, **script.kto}
    adapter = step(
        "kto",
        "nano_kto.yaml",
        folder / "kto",
        TRAINED,
        {**fields, "output_dir": str(folder / "kto")},
    )
    return before_and_after(script, folder, merged(script.model, adapter, folder / "aligned"), seed, drawn)


def scenes_t2i_grpo(script: ScriptArguments, seed: int) -> Figures:
    """GRPO, the detector's scores being the rewards; its prompts are out of those of all rounds."""
    folder = script.work / "scenes_t2i_grpo" / f"seed-{seed}"
    rounds = [Path(asked_to_draw(script, seed, number)["prompts"]) for number in range(script.rounds)]
    write_whole(folder / "prompts.txt", "".join(path.read_text(encoding="utf-8") for path in rounds))
    fields = {"model_name_or_path": script.model, "output_dir": str(folder / "grpo"), "seed": seed + 1, **script.grpo}
    fields |= {"prompts": str(folder / "prompts.txt")}
    adapter = step("grpo", "nano_grpo.yaml", folder / "grpo", TRAINED, fields)
    return before_and_after(script, folder, merged(script.model, adapter, folder / "aligned"), seed, drawn)


def scenes_t2i_best_of_4(script: ScriptArguments, seed: int) -> Figures:
    """No training: of four drawings the one whose description by the model itself is nearest to the prompt."""

    def chosen(script: ScriptArguments, model: str, seed: int) -> dict[str, float]:
        one = subject(script, model, seed)
        judge, right = SelfJudge(one.model, one.processor), {}
        for name in CATEGORIES:
            prompts = [prompt for prompt in one.held_out_prompts(name) for _ in range(4)]
            drawings = one.draw(prompts)
            verdicts = judge([Case(prompt, drawing) for prompt, drawing in zip(prompts, drawings)])
            scores = np.array([verdict.score if verdict else -1.0 for verdict in verdicts]).reshape(-1, 4)
            best = scores.argmax(1) + 4 * np.arange(len(scores))
            marks = [fulfils(detect(drawings[i]), wish) for i in best if (wish := parse_wish(prompts[i]))]
            right[name] = sum(marks) / len(marks)
        return right

    folder = script.work / "scenes_t2i_best_of_4" / f"seed-{seed}"
    return before(script, seed, drawn), figures(
        folder, "after", script.model, lambda: chosen(script, script.model, seed)
    )


def scenes_cot_dpo(script: ScriptArguments, seed: int) -> Figures:
    """DPO on the model's own worked answers, judged step by step."""
    folder = script.work / "scenes_cot_dpo" / f"seed-{seed}"
    model = in_rounds(script, folder, script.model, seed, 2, asked_to_answer, script.answers, **ANSWERED)
    return before_and_after(script, folder, model, seed, thought)


def instruction_tuning(script: ScriptArguments, seed: int) -> Figures:
    """Questions to be answered directly, learned with help that ends and without any; from 10, 30, 100 % of the examples.

    Each run takes as many steps: fewer examples come more often.
    """
    help_ends = {"start": {"steps": 1, "hint": 1}, "end": {"none": 1}}
    at_first, at_last = {}, {}
    for name, levels in (("guided", help_ends), ("bare", {"start": {"none": 1}})):
        for percent in PERCENT:
            folder = script.work / "instruction_tuning" / f"seed-{seed}" / f"{name}-{percent}"
            fields = {"model_name_or_path": script.model, "output_dir": str(folder / "sft"), "eval_strategy": "no"}
            fields |= {
                "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
                "guidance": {"scenes_cot": levels},
                "seed": seed,
                **{"max_steps": 100, "per_device_train_batch_size": 16, **script.questions},
            }
            fields |= {"num_records": fields["max_steps"] * fields["per_device_train_batch_size"] * percent // 100}
            adapter = step("sft", "nano_sft.yaml", folder / "sft", TRAINED, fields)
            model = merged(script.model, adapter, folder / "tuned")
            untuned, tuned = before_and_after(script, folder, model, seed, reasoned)
            at_first |= {f"{name}_{percent}_{kind}": value for kind, value in untuned.items()}
            at_last |= {f"{name}_{percent}_{kind}": value for kind, value in tuned.items()}
    return at_first, at_last


def learning_curves(categories: dict, path: Path) -> None:
    """Right answers by share of the examples, with help and without; bars are the intervals of the gain over untuned."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(axes, ("direct", "answer"), ("directly", "after thinking aloud")):
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


def sheet(script: ScriptArguments, path: Path, seed: int, model: str) -> None:
    """Drawings of each category before and after, side by side."""
    if path.exists():
        return
    subjects = [subject(script, name, seed) for name in (script.model, model)]
    prompts = [prompt for name in CATEGORIES for prompt in writable(subjects[0].held_out_prompts(name, 24), 8)]
    items = [Item(pictures, [prompt]) for *pictures, prompt in zip(*(one.draw(prompts) for one in subjects), prompts)]
    own = path.with_name(f"new-{path.name}")  # a kill leaves no half of a picture that counts as one
    page([Section("Before and after", items, columns=4)]).save(own)
    own.replace(path)


def capitals_dpo(script: ScriptArguments, seed: int) -> Figures:
    """A model that was taught wrong capitals learns by DPO to prefer the right ones; its drawings are measured, too.

    The first wording of each language, "What is the capital of France?", is what is measured, and is in no step.
    """
    folder, rng = script.work / "capitals_dpo" / f"seed-{seed}", np.random.default_rng(seed)
    taught = {language: wrong_capitals(language, rng, script.wrong_share) for language in LANGUAGES}
    if not (folder / "wrong" / "dataset_info.json").exists():  # written last
        records = [
            record("facts", [question], [sentence(answer)])
            for language, pairs in taught.items()
            for country, answer in pairs.items()
            for question in wordings(language, country)
        ]
        columns = {name: [one[name] for one in records] for name in ("messages", "images")}
        Dataset.from_dict(columns).save_to_disk(folder / "wrong")
    adapter = step(
        "sft", "nano_sft.yaml", folder / "sft", TRAINED,
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
        write_whole(folder / "votes.jsonl", "".join(json.dumps(vote) + "\n" for vote in votes))
    pairs = step(
        "build_preferences", None, folder / "preferences", "statistics.json",
        {"model": misled, "output": str(folder / "preferences"), "votes": str(folder / "votes.jsonl")}
        | {"selection": {"max_length_ratio": 20}},
    )  # fmt: skip
    model = aligned(misled, paired(pairs), folder, seed, script.capitals)
    at_first = figures(folder, "before", misled, lambda: {**named(misled), **drawn(script, misled, seed)})
    at_last = figures(folder, "after", model, lambda: {**named(model), **drawn(script, model, seed)})
    for measured in (at_first, at_last):
        measured["scenes"] = statistics.fmean(measured[name] for name in CATEGORIES)
    return at_first, at_last


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
"""Categories whose mean is the figure of an experiment; the others must not suffer."""


# Report


def summary(runs: list[tuple[dict[str, float], dict[str, float]]], measured: tuple[str, ...]) -> dict:
    """Means over the seeds; `ci95` is that of the gain, by Student's t over the seeds."""

    def of(names: tuple[str, ...]) -> dict:
        at_first, at_last = ([statistics.fmean(run[i][name] for name in names) for run in runs] for i in (0, 1))
        gains = [b - a for a, b in zip(at_first, at_last)]
        gain, half = statistics.fmean(gains), T95[len(runs)] * statistics.stdev(gains) / len(runs) ** 0.5
        return {
            "before": round(statistics.fmean(at_first), 4),
            "after": round(statistics.fmean(at_last), 4),
            "gain": round(gain, 4),
            "ci95": [round(gain - half, 4), round(gain + half, 4)],
        }

    return {**of(measured), "categories": {name: of((name,)) for name in runs[0][0]}}


def main(script: ScriptArguments) -> None:
    if unknown := set(script.experiments) - set(EXPERIMENTS):
        raise ValueError(f"experiments must be some of {', '.join(EXPERIMENTS)}; got {', '.join(unknown)}.")
    weights = digest(script.model)
    free = ("output", "work", "experiments", "seeds")
    settings = {name: value for name, value in vars(script).items() if name not in free}
    keep_settings(script.work, {**settings, "weights": weights}, "work")
    script.output.parent.mkdir(parents=True, exist_ok=True)
    for name in script.experiments:
        runs = [EXPERIMENTS[name](script, seed) for seed in script.seeds]
        about = {"weights": weights, "seeds": script.seeds, "items": script.items * ITEMS.get(name, 1)}
        about |= {"command": shlex.join(["python", *sys.argv])}
        # Read only now: another process may have added its experiments meanwhile.
        report = json.loads(script.output.read_text()) if script.output.exists() else {}
        measured = {**summary(runs, MEASURED[name]), **about}
        picture = script.work / name / f"{script.seeds[0]}.png"
        page_path = script.output.with_name(f"{script.output.stem}_{name}.png")
        if report.get(name) == measured:
            print(f"{name} is finished; nothing is left to do.")
        else:
            if name == "instruction_tuning":
                learning_curves(measured["categories"], page_path)
            if picture.exists():
                shutil.copy(picture, page_path)
            report[name] = measured
            write_whole(script.output, json.dumps(report, indent=2) + "\n")
        for category, row in {"all": report[name], **report[name]["categories"]}.items():
            low, high = row["ci95"]
            print(
                f"{name:16} {category:14}{row['before']:8.3f} to {row['after']:.3f}   gain {low:+.3f} to {high:+.3f}"
            )
    print(f"\nFigures: {script.output}")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
