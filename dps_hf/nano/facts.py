"""Questions about countries and their capitals, which a model can only memorise."""

import csv
from functools import cache
from importlib.resources import files

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.splits import check_split
from dps_hf.nano.wording import LANGUAGES


FORWARD = {
    "en": ("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}."),
    "de": ("Hauptstadt von diesem Land: {}?", "Wie heißt die Hauptstadt? Das Land: {}."),
    "es": ("¿Cuál es la capital de {}?", "Di la capital de {}."),
    "zh": ("{}的首都是哪里？", "{}的首都叫什么？"),
}
BACKWARD = {
    "en": ("{} is the capital of which country?", "Which country has the capital {}?"),
    "de": ("Von welchem Land ist {} die Hauptstadt?",),
    "es": ("¿De qué país es capital {}?",),
    "zh": ("{}是哪个国家的首都？",),
}


@cache
def read_capitals(language: str = "en") -> dict[str, str]:
    """Country to capital, for the members and observer states of the United Nations. Each country has one capital.

    Raises:
        ValueError: the language is not one of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}.")
    text = files("dps_hf.nano").joinpath("files/capitals.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter=";")
    return {row[f"country_{language}"]: row[f"capital_{language}"] for row in rows}


def facts(rng: np.random.Generator, split: str) -> Record:
    """A question such as "What is the capital of France?" with its answer, "Paris."

    1 in 3 records asks for the country instead, and 6 in 10 records are in English. Both splits contain all facts,
    because facts can only be memorised.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    language = "en" if rng.random() < 0.6 else pick(rng, LANGUAGES[1:])
    country, capital = pick(rng, tuple(read_capitals(language).items()))
    if rng.random() < 2 / 3:
        return record("facts", [pick(rng, FORWARD[language]).format(country)], [write_sentence(capital)])
    return record("facts", [pick(rng, BACKWARD[language]).format(capital)], [write_sentence(country)])


def write_sentence(name: str) -> str:
    """Makes a sentence of a name: "Paris.", "The Bahamas."."""
    return name[0].upper() + name[1:].rstrip(".") + "."
