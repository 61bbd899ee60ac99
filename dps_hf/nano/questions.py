"""Questions about scenes, with worked steps and answers.

Steps are small enough for a small model: each looks at one thing, or compares two adjacent words.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.scenes import COLOURS, RELATION_GAP, SHAPES, Scene, Thing
from dps_hf.nano.splits import UNSEEN_PAIRS
from dps_hf.nano.wording import (
    RELATIONS,
    add_article,
    get_kind,
    make_plural,
    sort_in_reading_order,
    write_phrase,
    write_place,
)


class Question(NamedTuple):
    """A question, its worked steps and its answer. `kind` is one of `ASK`."""

    text: str
    steps: str
    answer: str
    kind: str


def ask(rng: np.random.Generator, scene: Scene, kind: str | None = None) -> Question:
    """Samples a question about the scene.

    Args:
        kind: one of `ASK`. By default any kind that the scene allows.

    Raises:
        ValueError: the kind is unknown, or no question of this kind was found for the scene.
    """
    if kind not in (None, *ASK):
        raise ValueError(f"kind must be one of {', '.join(ASK)}; got {kind!r}.")
    kinds = [kind] if kind else [k for k in ASK if len(scene.things) > 1 or k not in ("compare", "relate")]
    for _ in range(100):
        chosen = pick(rng, kinds)
        asked = ASK[chosen](rng, scene)
        if asked is not None:
            return Question(*asked, chosen)
    raise ValueError(f"kind must fit the scene; found no question of kind {kind!r} about {scene}.")


def _sample_description(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str, int]:
    """Samples a description by colour, shape or both: singular, plural, steps that count its matches, their number.

    Half of the descriptions match something, so that the answers yes and no are equally common.
    """
    wanted = rng.random() < 0.5
    by_colour, by_shape = pick(rng, ((True, True), (True, False), (False, True)))
    while True:
        seen = pick(rng, scene.things)
        colour = seen.colour if wanted else pick(rng, tuple(COLOURS))
        # A description without matches shares a word with the scene, so that the model has to look at both words.
        shape = seen.shape if wanted or (by_colour and rng.random() < 0.5) else pick(rng, SHAPES)
        if not wanted and by_shape and rng.random() < 0.25:
            colour = seen.colour
        number = sum(
            (not by_colour or t.colour == colour) and (not by_shape or t.shape == shape) for t in scene.things
        )
        # It is no unseen combination either: in training, the answer for those would always be no.
        unseen = by_colour and by_shape and (colour, shape) in UNSEEN_PAIRS
        if (number > 0) == wanted and (wanted or not unseen):
            noun = shape if by_shape else "thing"
            prefix = f"{colour} " if by_colour else ""
            words = {"colour": colour} if by_colour else {}
            words |= {"shape": shape} if by_shape else {}
            return prefix + noun, prefix + make_plural(noun), _write_count(scene, [words]), number


def _write_comparison(thing: Thing, words: dict[str, str]) -> tuple[str, bool]:
    """Steps that compare a thing with the words up to the first difference, and whether all words match."""
    steps = []
    for field, word in words.items():
        seen = getattr(thing, field)
        steps.append(f"{word}? {seen}, {'yes' if seen == word else 'no'}.")
        if seen != word:
            return " ".join(steps), False
    return " ".join(steps), True


def _write_count(scene: Scene, wanted: list[dict[str, str]]) -> str:
    """Steps that go through the things in reading order, compare each with the wanted ones, and count the matches."""
    steps, counts = [], [0] * len(wanted)
    for thing in sort_in_reading_order(scene):
        steps.append(f"{write_phrase(get_kind(thing))}:")
        for i, words in enumerate(wanted):
            compared, same = _write_comparison(thing, words)
            steps += [compared] * bool(compared)
            if same:
                counts[i] += 1
                steps.append(f"{counts[i]}.")
    return " ".join(steps)


def _ask_existence(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    one, _, steps, number = _sample_description(rng, scene)
    return f"Is there {add_article(one)}?", f"{steps} I count {number}.", "yes" if number else "no"


def _ask_count(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    if len(scene.things) > 1 and rng.random() < 0.25:
        number = len(scene.things)
        return "How many things are there?", f"{_write_count(scene, [{}])} I count {number}.", str(number)
    _, many, steps, number = _sample_description(rng, scene)
    return f"How many {many} are there?", f"{steps} I count {number}.", str(number)


def _ask_comparison(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    field = pick(rng, ("shape", "colour"))
    counts = Counter(getattr(t, field) for t in scene.things)
    options = SHAPES if field == "shape" else tuple(COLOURS)
    a = pick(rng, tuple(counts))
    if rng.random() < 0.5:
        b = pick(rng, [option for option in options if counts[option] < counts[a]])
    else:
        b = pick(rng, [option for option in options if option != a])
        if counts[a] > counts[b]:
            a, b = b, a
    names = {v: make_plural(v) if field == "shape" else f"{v} things" for v in (a, b)}
    answer, sign = ("yes", ">") if counts[a] > counts[b] else ("no", "<" if counts[a] < counts[b] else "=")
    steps = _write_count(scene, [{field: a}, {field: b}])
    found = f"I count {counts[a]} and {counts[b]}. {counts[a]} {sign} {counts[b]}."
    return f"Are there more {names[a]} than {names[b]}?", f"{steps} {found}", answer


def _ask_relation(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
    names = Counter(f"{t.colour} {t.shape}" for t in scene.things)
    unique = [t for t in scene.things if names[f"{t.colour} {t.shape}"] == 1]
    if len(unique) < 2:
        return None
    a, b = (unique[i] for i in rng.permutation(len(unique))[:2])
    relation = pick(rng, tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    lead = (a.x - b.x) * dx + (a.y - b.y) * dy
    if abs(lead) < RELATION_GAP:
        return None
    # The words are those of the plans in `scenes_t2i`, which training contains more often. Each value that a later
    # step needs, such as a row, is written down where it is found, under a name of one word.
    line, sign = "column" if dx else "row", "<" if dx + dy < 0 else ">"
    wanted = {"first": {"colour": a.colour, "shape": a.shape}, "second": {"colour": b.colour, "shape": b.shape}}
    steps = [f"{relation}: {line} {sign}."]
    for thing in sort_in_reading_order(scene):
        steps.append(f"{write_place(thing)}: {write_phrase(get_kind(thing))}:")
        for name, words in wanted.items():
            compared, same = _write_comparison(thing, words)
            number = (thing.x if dx else thing.y) // 8 + 1
            steps.append(f"{compared} {name}: {line} {number}." if same else compared)
    here, there = ((t.x if dx else t.y) // 8 + 1 for t in (a, b))
    answer = "yes" if lead > 0 else "no"
    steps.append(f"first: {line} {here}. second: {line} {there}. {here} {sign} {there}? {answer}.")
    return f"Is the {a.colour} {a.shape} {relation} the {b.colour} {b.shape}?", " ".join(steps), answer


def _ask_attribute(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
    thing = pick(rng, scene.things)
    asked, known = pick(rng, (("colour", "shape"), ("shape", "colour"), ("size", "shape"), ("size", "colour")))
    if sum(getattr(t, known) == getattr(thing, known) for t in scene.things) > 1:
        return None  # "the star" must be unambiguous
    noun = thing.shape if known == "shape" else f"{thing.colour} thing"
    answer = getattr(thing, asked)
    is_answer = add_article(answer) if asked == "shape" else answer
    steps = _write_count(scene, [{known: getattr(thing, known)}])
    return f"What {asked} is the {noun}?", f"{steps} The {noun} is {is_answer}.", answer


ASK = {
    "exists": _ask_existence,
    "count": _ask_count,
    "compare": _ask_comparison,
    "relate": _ask_relation,
    "attribute": _ask_attribute,
}
