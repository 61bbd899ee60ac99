"""Edit a picture by an instruction such as "Make the red circle blue."."""

from dataclasses import replace

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    has_unseen_count,
    has_unseen_pair,
    is_held_out,
    render,
    sample_split,
)
from dps_hf.nano.wording import add_article, get_kind, write_places


def scenes_edit(rng: np.random.Generator, split: str) -> Record:
    """A record in which one thing changes its colour or its shape, or is removed. The others stay the same.

    The worked steps describe the scene after the edit.
    """
    before, instruction, after = edit(rng, split)
    return record("scenes_edit", [render(before), instruction], [render(after)], steps=write_places(after))


def edit(rng: np.random.Generator, split: str) -> tuple[Scene, str, Scene]:
    """Samples the scene before, the instruction and the scene after. In training, neither scene is a held-out one."""
    while True:
        scene = sample_split(rng, split, int(rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2))), tidy=True)
        index = int(rng.integers(len(scene.things)))
        thing = scene.things[index]
        if sum(get_kind(t, False) == get_kind(thing, False) for t in scene.things) > 1:
            continue  # "the red circle" must be unambiguous
        name = f"the {thing.colour} {thing.shape}"
        form = pick(rng, ("colour", "shape", "remove") if len(scene.things) > 1 else ("colour", "shape"))
        things = list(scene.things)
        if form == "remove":
            del things[index]
            instruction = f"Remove {name}."
        elif form == "colour":
            colour = pick(rng, [c for c in COLOURS if c != thing.colour])
            things[index] = replace(thing, colour=colour)
            instruction = f"Make {name} {colour}."
        else:
            shape = pick(rng, [s for s in SHAPES if s != thing.shape])
            things[index] = replace(thing, shape=shape)
            instruction = f"Turn {name} into {add_article(shape)}."
        after = replace(scene, things=tuple(things))
        kept_out = has_unseen_pair(after) or has_unseen_count(after) or (split == "train" and is_held_out(after))
        if not kept_out:
            return scene, instruction, after
