"""What every judge takes and gives.

A judge of one's own is one function, or one class with `__call__`, of [`Judge`]'s shape.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image


# What tokenizers do not take for text. A drawing may be written with it, as the model writes its own, and thoughts may.
_CONTROL = re.compile(r"<\|\w+\|>|<image>|<begin_of_image>|<end_of_image>|<img_\d+>")
_DRAWING = re.compile(r"<begin_of_image>(<img_\d+>)+<end_of_image>")


def control_token(text: str) -> str | None:
    """The first control token outside of drawings: whoever trains on the text would train on that token."""
    found = _CONTROL.search(_DRAWING.sub(" ", text))
    return found and found[0]


@dataclass(frozen=True)
class Case:
    """One response to judge.

    prompt: what was asked, its words alone.
    response: the answer, reasoning included, or the drawing.
    images: the pictures that were shown with the prompt.
    answers: the right ones, where they are known: for [`~dps_hf.nano.exact_judge.exact_judge`]; no model sees them.
    origin: where the response comes from: "model", or who else wrote it.
    steps: that lead to the right answer, where they are known: for `exact_judge`, too.
    """

    prompt: str
    response: str | Image.Image
    images: tuple[Image.Image, ...] = ()
    answers: tuple[str, ...] = ()
    origin: str = "model"
    steps: str = ""


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one case.

    scores: of each aspect, from 0 (worst) to 1 (best), whatever scale the judge itself uses.
    rationale: why, in words.
    judge: who says so.
    origin: where the judged response comes from.
    rewrite: a better answer, where the judge was asked for one and it proved better.

    Raises:
        ValueError: there is no score, or one is not between 0 and 1. What cannot be read has no verdict.
    """

    scores: dict[str, float]
    rationale: str
    judge: str
    origin: str
    rewrite: str | None = None

    def __post_init__(self):
        if not self.scores:
            raise ValueError("scores is empty. Score at least one aspect, or give None in place of the verdict.")
        for aspect, score in self.scores.items():
            if not 0 <= score <= 1:
                raise ValueError(f"scores[{aspect!r}] must be between 0 and 1; got {score}. Scale it first.")

    @property
    def score(self) -> float:
        """The mean of the aspects, from 0 to 1."""
        return sum(self.scores.values()) / len(self.scores)


class Judge(Protocol):
    """Judges a batch: the i-th verdict is that of the i-th case, None where there is none to be had."""

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]: ...


def rewritten(case: Case, verdict: Verdict) -> Case:
    """The case with the verdict's rewrite as its response, and with the origin that says so."""
    if verdict.rewrite is None:
        raise ValueError("verdict.rewrite is None: nothing proved better. Keep the case as it is.")
    return replace(case, response=verdict.rewrite, origin=f"rewrite by {verdict.judge}")
