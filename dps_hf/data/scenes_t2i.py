"""Draw what the words say: things, how many of them, where; with a plan as the worked steps."""

from collections import Counter

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.data.scenes import RELATION_GAP, Scene, Thing, render, sample_split
from dps_hf.data.splits import check_split, one_in
from dps_hf.data.wording import DRAW, LANGUAGES, RELATIONS, Wish, contents, kind, phrase, say


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
    """A tidy scene and the words for it; those of "validation" ask for what training never asks for in any language.

    Args:
        form: "things" (a list), "counting" (two to four alike) or "position" (two things and how they stand).
        count: things in the scene; by default mostly one in a list, two to four when counting.
        unseen: see `sample_split`.
    """
    check_split(split)
    pictures = split if unseen else "train"  # what is held out here are words: validation may reuse a picture
    while True:
        alike, number = form == "counting", count
        if form == "position":
            number = 2
        elif number is None:
            # Most lists hold one thing: there a word has one place to show, which is how it is learned.
            number = int(rng.integers(2, 5)) if alike else int(rng.choice((1, 2, 3, 4), p=(0.6, 0.25, 0.1, 0.05)))
        scene = sample_split(rng, pictures, number, unseen, tidy=True, alike=alike)
        wish = _placed(rng, scene, sizes) if form == "position" else Wish(contents(scene, sizes))
        if wish and (unseen or held_out_wish(wish) == (split == "validation")):
            return scene, say(wish, language)


def _placed(rng: np.random.Generator, scene: Scene, sizes: bool) -> Wish | None:
    """How one of the two things stands to the other; None where that could not be told or seen."""
    one, other = scene.things
    true = [relation for relation in RELATIONS if lead(one, other, relation) >= RELATION_GAP]
    if not true or kind(one, sizes=False) == kind(other, sizes=False):
        return None
    a, b = kind(one, sizes), kind(other, sizes)
    return Wish(Counter((a, b)), (a, pick(rng, true), b))


def held_out_wish(wish: Wish) -> bool:
    """Whether training never asks for this, in whichever words and order: 1 wish in 10."""
    relation = wish.relation
    if relation and relation[1] in ("right of", "below"):
        mirrored = {"right of": "left of", "below": "above"}[relation[1]]
        relation = relation[2], mirrored, relation[0]
    return one_in(10, repr((sorted(wish.kinds.items(), key=repr), relation)))


def lead(one: Thing, other: Thing, relation: str) -> int:
    """How far, in pixels, `one` lies from `other` in the direction that the relation names."""
    dx, dy = RELATIONS[relation]
    return (one.x - other.x) * dx + (one.y - other.y) * dy


def plan(scene: Scene) -> str:
    """Where each thing will stand, from above: "row 2 column 5: a small red circle." Cells are 8x8 pixels, from 1."""
    ordered = sorted(scene.things, key=lambda thing: (thing.y, thing.x))
    return " ".join(f"row {t.y // 8 + 1} column {t.x // 8 + 1}: {phrase(kind(t))}." for t in ordered)
