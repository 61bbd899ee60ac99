"""What a judge takes and returns.

Your own judge is a function of the shape of [`Judge`], or a class with such a `__call__`:

def likes_short_answers(cases):
    return [Verdict({"short": 1 / (1 + len(case.response))}, "", "short", case.origin) for case in cases]

A class may have more: it rewrites answers ([`RewritingJudge`]), compares two responses ([`ComparingJudge`]), or says
how many cases it got no reply on ([`read_counts`], [`read_fault`]).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from PIL import Image


# What a tokenizer does not read as plain text. Whole drawings are allowed, since the model writes its own with them.
_CONTROL = re.compile(r"<\|\w+\|>|<image>|<begin_of_image>|<end_of_image>|<img_\d+>")
_DRAWING = re.compile(r"<begin_of_image>(<img_\d+>)+<end_of_image>")


def find_control_token(text: str) -> str | None:
    """The first control token outside of drawings, None without one. No model should learn to write it."""
    found = _CONTROL.search(_DRAWING.sub(" ", text))
    return found and found[0]


@dataclass(frozen=True)
class Case:
    """One response to judge.

    prompt: the text of what was asked.
    response: the answer, reasoning included, or the drawing.
    images: the pictures that were shown with the prompt.
    answers: the right answers, where they are known. `OpenAIJudge` does not show them to its model.
    origin: where the response comes from: "model", or who else wrote it.
    steps: the reasoning that leads to the right answer, where it is known.
    """

    prompt: str
    response: str | Image.Image
    images: tuple[Image.Image, ...] = ()
    answers: tuple[str, ...] = ()
    origin: str = "model"
    steps: str = ""


@dataclass(frozen=True)
class Verdict:
    """What one judge says about one case.

    scores: one for each aspect, from 0 (worst) to 1 (best), whatever scale the judge itself uses.
    rationale: the reason, in words.
    judge: name of the judge.
    origin: where the judged response comes from.
    rewrite: a better answer, where the judge was asked for one and it proved better.

    Raises:
        ValueError: there is no score, or one is not between 0 and 1.
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


@runtime_checkable
class Judge(Protocol):
    """Judges a batch: the i-th verdict is that of the i-th case, None where the judge has none."""

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]: ...


@runtime_checkable
class RewritingJudge(Judge, Protocol):
    """A judge that also writes better answers."""

    def refine(self, cases: Sequence[Case], margin: float = 0.1) -> list[Verdict | None]:
        """The verdicts of `judge(cases)`, with a `rewrite` where its own score is higher by at least `margin`."""
        ...


@runtime_checkable
class ComparingJudge(Judge, Protocol):
    """A judge that also compares two responses to one prompt."""

    def compare(self, first: Sequence[Case], second: Sequence[Case]) -> list[tuple[Verdict, Verdict] | None]:
        """Compares `first[i]` with `second[i]`: a verdict on each of the two, which add up to 1, or None."""
        ...


def ask_judge(judge: Judge, cases: Sequence[Case]) -> list[Verdict | None]:
    """`judge(cases)`, with an error that explains itself if the judge takes a text for a drawing.

    Raises:
        ValueError: the judge looked for a method of a picture in a response that is text.
    """
    try:
        return judge(cases)
    except AttributeError as error:
        if not isinstance(error.obj, str) or all(error.obj is not case.response for case in cases):
            raise
        function = getattr(judge, "func", judge)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise ValueError(
            f"The judge {getattr(function, '__module__', '')}.{name} takes every response for a drawing: {error}. "
            "A response may be text. Give None for responses that it cannot judge, or let it see drawings only."
        ) from error


NO_REPLY = "no reply"
"""Name of the count of cases that were asked in vain. They can be asked again."""

REFUSED = "refused"
"""Name of the count of cases that the judge's server refuses for what they say or show. Asking again is useless."""


def read_counts(judge: Judge) -> Counter[str]:
    """What the judge has counted so far in its attribute `counts`, `NO_REPLY` and `REFUSED` for example.

    A judge without that attribute has counted nothing.
    """
    return Counter(getattr(judge, "counts", {}))


def read_fault(judge: Judge) -> str:
    """Why the judge had no reply to the last case that it counted as `NO_REPLY`, from its attribute `fault`.

    Empty if the judge has no such attribute.
    """
    return getattr(judge, "fault", "")


def apply_rewrite(case: Case, verdict: Verdict) -> Case:
    """The case with the verdict's rewrite as its response, and with an origin that says so.

    Raises:
        ValueError: the verdict has no rewrite.
    """
    if verdict.rewrite is None:
        raise ValueError("verdict.rewrite is None: no rewrite proved better. Keep the case as it is.")
    return replace(case, response=verdict.rewrite, origin=f"rewrite by {verdict.judge}")
