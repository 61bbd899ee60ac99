"""Draw many more colours and shapes, so that a model learns each word instead of memorising combinations."""

from collections import Counter
from itertools import product

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.scenes import COLOURS, OUTLINES, PALETTE, SHAPES, SIZES, has_unseen_count, is_held_out, render
from dps_hf.nano.scenes_t2i import arrange_scene
from dps_hf.nano.splits import check_split
from dps_hf.nano.wording import Wish, say


# The colours of scenes are listed twice because there are half as many of them.
KINDS = 2 * tuple(product(COLOURS, OUTLINES)) + tuple(product(PALETTE, (*SHAPES, *OUTLINES)))


def scenes_palette(rng: np.random.Generator, split: str) -> Record:
    """A record to learn drawing one or two things, each with a colour of `PALETTE` or a shape of `OUTLINES`.

    Prompts are English. The evaluation does not use this task, so both splits are the same.
    """
    check_split(split)
    sizes = bool(rng.random() < 0.5)
    while True:
        kinds = [(pick(rng, tuple(SIZES)) if sizes else None, *pick(rng, KINDS)) for _ in range(pick(rng, (1, 1, 2)))]
        wish = Wish(Counter(kinds))
        scene = arrange_scene(wish)
        if not has_unseen_count(scene) and not is_held_out(scene):
            return record("scenes_palette", [say(wish)], [render(scene)])
