"""Draw a scene from a prompt that gives things, numbers or positions. The worked steps are a plan of the scene."""

from collections import Counter

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    is_held_out,
    render,
    shows,
)
from dps_hf.nano.splits import check_split, check_unseen, is_one_in
from dps_hf.nano.wording import DRAW, LANGUAGES, MOST, RELATIONS, Kind, Wish, get_kind, say, write_places


# Number of things to the column and the row of each, out of 0, 1 and 2, in the order of the prompt.
PLACES = {
    1: ((1, 1),),
    2: ((0, 1), (2, 1)),
    3: ((0, 0), (1, 2), (2, 0)),
    4: ((0, 0), (0, 2), (2, 0), (2, 2)),
}
UPRIGHT = ((1, 0), (1, 2))  # of two things, one above the other
CENTRES = {"small": (16, 32, 48), "big": (12, 28, 52)}  # pixels; boxes begin and end at multiples of 8


def scenes_t2i(rng: np.random.Generator, split: str) -> Record:
    """A record with a prompt and its drawing. Half of the prompts give no sizes, and half of them are English."""
    form = pick(rng, ("things", "things", "counting", "position", "position"))
    language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
    sizes = bool(rng.random() < 0.5)
    scene, prompt = make_prompt(rng, split, form, language, sizes)
    if rng.random() < 0.4:
        prompt = pick(rng, DRAW[language][:-1]).format(prompt)
    return record("scenes_t2i", [prompt], [render(scene)], steps=write_places(scene))


def make_prompt(
    rng: np.random.Generator,
    split: str,
    form: str,
    language: str = "en",
    sizes: bool = False,
    count: int | None = None,
    unseen: str | None = None,
) -> tuple[Scene, str]:
    """Samples a scene and a prompt for it. Training does not contain the validation prompts in any language.

    Args:
        form: "things" (a list), "counting" (two to four of one kind) or "position" (two things and their relation).
        count: number of things in the scene. By default mostly one in a list, and two to four when counting.
        unseen: "pair" or "count", in validation only: the scene contains an unseen one of this kind and none of the
            other. By default it contains neither.

    Raises:
        ValueError: `split` or `unseen` is unknown, or `unseen` is given for training.
    """
    check_split(split)
    check_unseen(unseen, split)
    while True:
        wish = _sample_wish(rng, form, sizes, count)
        scene = arrange_scene(wish)
        if not shows(scene, unseen):
            continue
        if split == "train" and is_held_out(scene):
            continue  # a picture that is held out for reading
        if unseen or is_held_out_wish(wish) == (split == "validation"):
            return scene, say(wish, language)


def _sample_wish(rng: np.random.Generator, form: str, sizes: bool, count: int | None) -> Wish:
    def any_kind() -> Kind:
        return (pick(rng, tuple(SIZES)) if sizes else None, pick(rng, tuple(COLOURS)), pick(rng, SHAPES))

    if form == "position":
        one, other = any_kind(), any_kind()
        while other[1:] == one[1:]:  # "a red star left of a red star" gives no relation
            other = any_kind()
        return Wish(Counter((one, other)), (one, pick(rng, tuple(RELATIONS)), other))
    if form == "counting":
        return Wish(Counter({any_kind(): count or int(rng.integers(2, MOST + 1))}))
    # Most lists contain one thing, because words are learned best from pictures of one thing.
    number = count or int(rng.choice((1, 2, 3, 4), p=(0.5, 0.3, 0.12, 0.08)))
    return Wish(Counter(any_kind() for _ in range(number)))


def arrange_scene(wish: Wish) -> Scene:
    """The only correct picture of a wish: things from left to right, or by their relation, and big by default.

    With fixed positions, a small model spends its capacity on the meaning of the words instead of on positions.
    """
    kinds, places = list(wish.kinds.elements()), PLACES[wish.kinds.total()]
    if wish.relation:
        one, relation, other = wish.relation
        kinds = [one, other] if relation in ("left of", "above") else [other, one]
        places = UPRIGHT if relation in ("above", "below") else places
    things = []
    for (size, colour, shape), (column, row) in zip(kinds, places, strict=True):
        centres = CENTRES[size or "big"]
        things.append(Thing(shape, colour, size or "big", centres[column], centres[row]))
    return Scene(tuple(things))


def is_drawn_in_training(scene: Scene) -> bool:
    """Whether training contains this drawing with some prompt, such as "a big red circle" for "a red circle"."""
    if is_held_out(scene) or not shows(scene, None):
        return False
    wishes = []
    for sizes in (True, False):
        kinds = [get_kind(thing, sizes) for thing in scene.things]
        wishes.append(Wish(Counter(kinds)))
        if len(kinds) == 2 and kinds[0][1:] != kinds[1][1:]:  # as in `_sample_wish`
            wishes += [Wish(Counter(kinds), (kinds[0], relation, kinds[1])) for relation in RELATIONS]
    # `is_held_out_wish` treats "a above b" and "b below a" alike.
    return any(arrange_scene(wish) == scene and not is_held_out_wish(wish) for wish in wishes)


def is_held_out_wish(wish: Wish) -> bool:
    """Whether a wish is excluded from training in all wordings and orders: 1 in 10, by its hash."""
    relation = wish.relation
    if relation and relation[1] in ("right of", "below"):
        mirrored = {"right of": "left of", "below": "above"}[relation[1]]
        relation = relation[2], mirrored, relation[0]
    return is_one_in(10, repr((sorted(wish.kinds.items(), key=repr), relation)))
