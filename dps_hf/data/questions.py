"""Questions about scenes, a hint, the steps to the answer, and the answer."""

from collections import Counter

import numpy as np

from dps_hf.data.record import pick
from dps_hf.data.scenes import COLOURS, RELATION_GAP, SHAPES, Scene
from dps_hf.data.splits import UNSEEN_PAIRS
from dps_hf.data.wording import RELATIONS, article, plural


HINTS = {
    "exists": "Go through the things one by one.",
    "count": "Count them one by one.",
    "compare": "Count both.",
    "relate": "Find both, then compare where they are.",
    "attribute": "Find the thing first.",
}


def ask(rng: np.random.Generator, scene: Scene, kind: str | None = None) -> tuple[str, str, str, str]:
    """A question about the scene, a hint, the steps to its answer, and the answer.

    Args:
        kind: one of `HINTS`; by default any that the scene allows.

    Raises:
        ValueError: no question of this kind was found for the scene.
    """
    kinds = [kind] if kind else [k for k in HINTS if len(scene.things) > 1 or k not in ("compare", "relate")]
    for _ in range(100):
        chosen = pick(rng, kinds)
        asked = ASK[chosen](rng, scene)
        if asked is not None:
            question, steps, answer = asked
            return question, HINTS[chosen], steps, answer
    raise ValueError(f"kind must fit the scene; found no question of kind {kind!r} about {scene}.")


def _few(rng: np.random.Generator, scene: Scene) -> tuple[str, str, int]:
    """A description by colour, shape or both: singular, plural, and how many things of the scene it fits.

    Fits something in half of the draws, so that yes and no are equally common.
    """
    wanted = rng.random() < 0.5
    by_colour, by_shape = pick(rng, ((True, True), (True, False), (False, True)))
    while True:
        seen = pick(rng, scene.things)
        colour = seen.colour if wanted else pick(rng, tuple(COLOURS))
        # A wrong description shares a word with the scene, else a glance at either word would do.
        shape = seen.shape if wanted or (by_colour and rng.random() < 0.5) else pick(rng, SHAPES)
        if not wanted and by_shape and rng.random() < 0.25:
            colour = seen.colour
        number = sum(
            (not by_colour or t.colour == colour) and (not by_shape or t.shape == shape) for t in scene.things
        )
        # What is not there is no unseen pair either: training would say of it nothing but no.
        unseen = by_colour and by_shape and (colour, shape) in UNSEEN_PAIRS
        if (number > 0) == wanted and (wanted or not unseen):
            noun = shape if by_shape else "thing"
            prefix = f"{colour} " if by_colour else ""
            return prefix + noun, prefix + plural(noun), number


def _exists(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    one, _, number = _few(rng, scene)
    question = f"Is there {article(one)}?"
    return (question, f"There is {article(one)}.", "yes") if number else (question, f"There is no {one}.", "no")


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    if len(scene.things) > 1 and rng.random() < 0.25:
        number = len(scene.things)
        return "How many things are there?", f"I count {number}.", str(number)
    one, many, number = _few(rng, scene)
    return f"How many {many} are there?", f"I count {number} {one if number == 1 else many}.", str(number)


def _compare(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
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
    names = {v: plural(v) if field == "shape" else f"{v} things" for v in (a, b)}
    answer, sign = ("yes", ">") if counts[a] > counts[b] else ("no", "<" if counts[a] < counts[b] else "=")
    steps = f"{names[a]}: {counts[a]}, {names[b]}: {counts[b]}. {counts[a]} {sign} {counts[b]}."
    return f"Are there more {names[a]} than {names[b]}?", steps, answer


def _relate(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
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
    true = next(r for r, (u, v) in RELATIONS.items() if (u, v) == ((dx, dy) if lead > 0 else (-dx, -dy)))
    one, other = f"{a.colour} {a.shape}", f"{b.colour} {b.shape}"
    return (
        f"Is the {one} {relation} the {other}?",
        f"The {one} is {true} the {other}.",
        "yes" if lead > 0 else "no",
    )


def _attribute(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
    thing = pick(rng, scene.things)
    asked, known = pick(rng, (("colour", "shape"), ("shape", "colour"), ("size", "shape"), ("size", "colour")))
    if sum(getattr(t, known) == getattr(thing, known) for t in scene.things) > 1:
        return None  # "the star" must mean one star
    noun = thing.shape if known == "shape" else f"{thing.colour} thing"
    answer = getattr(thing, asked)
    is_answer = article(answer) if asked == "shape" else answer
    return f"What {asked} is the {noun}?", f"The {noun} is {is_answer}.", answer


ASK = {"exists": _exists, "count": _count, "compare": _compare, "relate": _relate, "attribute": _attribute}
