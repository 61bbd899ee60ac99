"""The forms of what people ask and wish, in four languages, and which of them training excludes.

`files/forms.json` lists them. In questions `{a}`, `{the}` and `{many}` name things, in German also `{acc}`,
`{acc_the}` and `{dat_the}` in the accusative and the dative; a `2` is of the second thing. In requests, `{a}` and
`{d}` are in the German accusative and dative. In relations, `{1d}` is the second thing in the dative.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.splits import compute_digest
from dps_hf.nano.wording import DESCRIBE, DRAW


FEW = 4  # forms, below which none is held out


@cache
def read_forms(group: str) -> Any:
    """The forms of a group, such as "questions", by language, and in some groups by meaning, too."""
    return json.loads(files("dps_hf.nano").joinpath("files/forms.json").read_text(encoding="utf-8"))[group]


def select_forms(forms: Sequence[str], held_out: bool) -> tuple[str, ...]:
    """The forms that training has, or those that are excluded from it: a sixth of each list, by their hash.

    Also excluded are the last templates of `wording`. "{}" alone and lists with fewer than four forms are not.
    """
    return _split(tuple(forms))[held_out]


@cache
def _split(forms: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    others = sorted({*forms} - {"{}"}, key=lambda form: compute_digest(f"form {form}"))
    last = {_strip(templates[-1]) for sets in (DESCRIBE, DRAW) for templates in sets.values()}
    excluded = others[: max(1, len(others) // 6)] if len(others) >= FEW else []
    excluded += [form for form in others if _strip(form) in last and form not in excluded]
    return tuple(form for form in forms if form not in excluded), tuple(excluded)


def _strip(form: str) -> str:
    return form.replace("{a}", "{}").strip(" .?!¿。？").casefold()


def choose_form(rng: np.random.Generator, forms: Sequence[str], held_out: bool = False) -> str:
    """One of the forms; a fourth of those that are not held out is "{}" alone, if it is one. "" if there is none."""
    if not held_out and "{}" in forms and rng.random() < 0.25:
        return "{}"
    options = select_forms(forms, held_out)
    return pick(rng, options) if options else ""
