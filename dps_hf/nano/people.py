"""Wishes and questions that people wrote without sight of the training data, with what is right.

They are for evaluation only. The files hold 300 of each, half of them English.
"""

import csv
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from dps_hf.nano.scenes import COLOURS, SHAPES, SIZES
from dps_hf.nano.wording import RELATIONS, Kind, Wish


class PersonsWish(NamedTuple):
    """A wish for a drawing, its language and what it means."""

    language: str
    text: str
    wish: Wish


class PersonsQuestion(NamedTuple):
    """A question about a scene, its language, what the scene shows, and the answers that are right."""

    language: str
    text: str
    scene: Wish
    answers: tuple[str, ...]


@cache
def read_wishes() -> tuple[PersonsWish, ...]:
    """The wishes of `files/wishes.csv`."""
    return tuple(PersonsWish(row["language"], row["text"], parse_scene(row["wanted"])) for row in _read("wishes.csv"))


@cache
def read_questions() -> tuple[PersonsQuestion, ...]:
    """The questions of `files/questions.csv`."""
    return tuple(
        PersonsQuestion(row["language"], row["text"], parse_scene(row["scene"]), tuple(row["answer"].split("|")))
        for row in _read("questions.csv")
    )


def _read(name: str) -> list[dict[str, str]]:
    text = files("dps_hf.nano").joinpath(f"files/{name}").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter=";", quoting=csv.QUOTE_NONE))


def parse_scene(text: str) -> Wish:
    """Parses "big red heart + 2 blue star", or "red circle above blue star".

    Raises:
        ValueError: the text says something else.
    """
    if match := re.fullmatch(f"(.+) ({'|'.join(RELATIONS)}) (.+)", text):
        one, other = (_parse_kind(part, text)[0] for part in match.group(1, 3))
        return Wish(Counter((one, other)), (one, match[2], other))
    kinds: Counter[Kind] = Counter()
    for part in text.split(" + "):
        kind, number = _parse_kind(part, text)
        kinds[kind] += number
    return Wish(kinds)


def _parse_kind(text: str, whole: str) -> tuple[Kind, int]:
    match = re.fullmatch(rf"(?:(\d) )?(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    if not match:
        raise ValueError(f"A thing must be as in '2 small red circle'; got {text!r} in {whole!r}.")
    return (match[2], match[3], match[4]), int(match[1] or 1)


YES_OR_NO = ("yes", "no", "ja", "nein", "sí", "si", "是", "有", "不", "否", "没", "没有", "一样", "看到")


def is_right(answer: str, accepted: tuple[str, ...]) -> bool:
    """Whether an answer contains one of the accepted ones as whole words; yes and no must come first."""
    answer = " ".join(re.sub(r"[^\w\s]", " ", answer.casefold()).split())
    for wanted in (" ".join(re.sub(r"[^\w\s]", " ", one.casefold()).split()) for one in accepted):
        chinese = not wanted.isascii() and re.search(r"[一-鿿]", wanted)
        if wanted in YES_OR_NO:
            found = answer.startswith(wanted) if chinese else answer.split()[:1] == [wanted]
        else:
            found = wanted in answer if chinese else f" {wanted} " in f" {answer} "
        if found:
            return True
    return False
