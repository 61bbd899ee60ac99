"""Draw more colours and shapes than scenes have, so that words are learned and not each pair of them by heart."""

from collections import Counter
from itertools import product

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.scenes import COLOURS, OUTLINES, PALETTE, SHAPES, SIZES, has_unseen_count, held_out, render
from dps_hf.nano.scenes_t2i import layout
from dps_hf.nano.splits import check_split
from dps_hf.nano.wording import Wish, say


# Colours that are scored come twice: there are half as many of them.
KINDS = 2 * tuple(product(COLOURS, OUTLINES)) + tuple(product(PALETTE, (*SHAPES, *OUTLINES)))


def scenes_palette(rng: np.random.Generator, split: str) -> Record:
    """One thing, or two, in English, each with a colour of `PALETTE` or a shape of `OUTLINES`; nothing is scored.

    What has neither is left to `scenes_t2i`. `split` changes nothing.
    """
    check_split(split)
    sizes = bool(rng.random() < 0.5)
    while True:
        kinds = [(pick(rng, tuple(SIZES)) if sizes else None, *pick(rng, KINDS)) for _ in range(pick(rng, (1, 1, 2)))]
        wish = Wish(Counter(kinds))
        scene = layout(wish)
        if not has_unseen_count(scene) and not held_out(scene):
            return record("scenes_palette", [say(wish)], [render(scene)])
