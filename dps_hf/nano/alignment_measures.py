"""What alignment is measured by: drawings, worked answers and capitals, by category, as shares of right ones."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
import torch

from dps_hf.evaluation.metrics import name_match
from dps_hf.evaluation.subject import Subject
from dps_hf.inference import ask, digest_weights, load
from dps_hf.judges.verdict import Case
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.evaluation import scenes_cot, scenes_t2i
from dps_hf.nano.facts import FORWARD, read_capitals
from dps_hf.nano.held_out import FORMS, select_prompts
from dps_hf.nano.self_judge import SelfJudge
from dps_hf.nano.wording import LANGUAGES, parse_wish


Measure: TypeAlias = Callable[[str, int, int], dict[str, float]]
"""Measures a model, given by its path, on `items` items that a `seed` chooses."""

CATEGORIES = tuple(name for name in FORMS if name != "unseen_count")
SAMPLING = {"do_sample": True, "temperature": 1.0, "guidance_scale": 1.0}  # as training left the model
WORKED_ITEMS = 10  # times as many questions as drawings, which take longer


@cache
def read_digest(model: str) -> str:
    """The digest of the weights at a path."""
    return digest_weights(load(model)[0])


def load_subject(model: str, items: int, seed: int) -> Subject:
    return Subject(*load(model), items, seed, SAMPLING)


def measure_drawings(model: str, items: int, seed: int) -> dict[str, float]:
    """Scenes that are drawn exactly, with prompts that training never contains."""
    return {name: figure["value"] for name, figure in scenes_t2i(load_subject(model, items, seed), CATEGORIES).items()}


def measure_best_of_4(model: str, items: int, seed: int) -> dict[str, float]:
    """The same, of four drawings the one whose description by the model itself is nearest to the prompt."""
    subject = load_subject(model, items, seed)
    judge, right = SelfJudge(subject.model, subject.processor), {}
    for name in CATEGORIES:
        prompts = [prompt for prompt in select_prompts(subject, name) for _ in range(4)]
        drawings = subject.draw(prompts)
        verdicts = judge([Case(prompt, drawing) for prompt, drawing in zip(prompts, drawings)])
        scores = np.array([verdict.score if verdict else -1.0 for verdict in verdicts]).reshape(-1, 4)
        best = scores.argmax(1) + 4 * np.arange(len(scores))
        marks = [fulfils(detect(drawings[i]), wish) for i in best if (wish := parse_wish(prompts[i]))]
        right[name] = sum(marks) / len(marks)
    return right


def measure_answers(model: str, items: int, seed: int) -> dict[str, float]:
    """Questions about held-out scenes that are answered correctly: after thinking, and directly."""
    names = ("answer", "direct")
    measured = scenes_cot(load_subject(model, items, seed), names)
    return {name: measured[name]["value"] for name in names}  # of each kind there are too few


class SampledSubject(Subject):
    """Samples its answers, as judged responses are sampled."""

    def ask(self, questions, pictures=None, think=False):
        torch.manual_seed(self.seed)
        sampling = {"do_sample": True, "temperature": SAMPLING["temperature"]}
        answers = ask(
            self.model, self.processor, questions, pictures, think, self.batch_size, "sampled answers", **sampling
        )
        return [answer.text for answer in answers]


def measure_worked_answers(model: str, items: int, seed: int) -> dict[str, float]:
    """Questions that are answered correctly after thinking, with sampled answers: all of them, and each kind."""
    subject = SampledSubject(*load(model), items * WORKED_ITEMS, seed, SAMPLING)
    return {name: figure["value"] for name, figure in scenes_cot(subject, ("answer",)).items()}


def measure_capitals(model: str) -> dict[str, float]:
    """Capitals that are named correctly, by language: every country, in the wording that no step asks in."""
    right = {}
    for language in LANGUAGES:
        pairs = read_capitals(language)
        answers = ask(*load(model), [FORWARD[language][0].format(country) for country in pairs], progress=language)
        marks = [name_match(answer.text, capital) for answer, capital in zip(answers, pairs.values())]
        right[f"capitals_{language}"] = sum(marks) / len(marks)
    return right
