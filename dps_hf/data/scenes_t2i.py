"""Draw what the words say: things, how many of them, where; with a plan as the worked steps."""

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.data.scenes import RELATION_GAP, Scene, Thing, render, sample_split
from dps_hf.data.wording import DRAW, LANGUAGES, RELATIONS, caption, kind, phrase, related


def scenes_t2i(rng: np.random.Generator, split: str) -> Record:
    """A prompt and its drawing. Half of the prompts name no sizes, as people often don't; 6 in 10 are English."""
    form = pick(rng, ("things", "things", "things", "counting", "position"))
    language = "en" if rng.random() < 0.6 else pick(rng, LANGUAGES[1:])
    sizes = bool(rng.random() < 0.5)
    scene, prompt = prompted(rng, split, form, language, sizes)
    if rng.random() < 0.4:
        prompt = pick(rng, DRAW[language][:-1]).format(prompt)
    return record("scenes_t2i", [prompt], [render(scene)], steps=plan(scene))


def prompted(
    rng: np.random.Generator,
    split: str,
    form: str,
    language: str = "en",
    sizes: bool = False,
    count: int | None = None,
    unseen: str | None = None,
) -> tuple[Scene, str]:
    """A tidy scene and the words for it.

    Args:
        form: "things" (a list), "counting" (two to four alike) or "position" (two things and how they stand).
        count: things in the scene; by default mostly one in a list, two to four when counting.
        unseen: see `sample_split`.
    """
    if form == "counting":
        scene = sample_split(rng, split, count or int(rng.integers(2, 5)), unseen, tidy=True, alike=True)
        return scene, caption(scene, sizes, language)
    if form == "position":
        while True:
            scene = sample_split(rng, split, 2, unseen, tidy=True)
            one, other = scene.things
            if one.colour == other.colour and one.shape == other.shape:
                continue
            true = [r for r in RELATIONS if lead(one, other, r) >= RELATION_GAP]
            if true:
                return scene, related(kind(one, sizes), pick(rng, true), kind(other, sizes), language)
    # Most hold one thing: there a word has one place to show, which is how it is learned.
    count = count or int(rng.choice((1, 2, 3, 4), p=(0.6, 0.25, 0.1, 0.05)))
    scene = sample_split(rng, split, count, unseen, tidy=True)
    return scene, caption(scene, sizes, language)


def lead(one: Thing, other: Thing, relation: str) -> int:
    """How far, in pixels, `one` lies from `other` in the direction that the relation names."""
    dx, dy = RELATIONS[relation]
    return (one.x - other.x) * dx + (one.y - other.y) * dy


def plan(scene: Scene) -> str:
    """Where each thing will stand, from above: "row 2 column 5: a small red circle." Cells are 8x8 pixels, from 1."""
    ordered = sorted(scene.things, key=lambda thing: (thing.y, thing.x))
    return " ".join(f"row {t.y // 8 + 1} column {t.x // 8 + 1}: {phrase(kind(t))}." for t in ordered)
