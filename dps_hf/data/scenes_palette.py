"""Draw things in more colours than scenes have: a colour is then learned as such, not by heart with each shape."""

from collections import Counter

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.data.scenes import PALETTE, SHAPES, SIZES, has_unseen_count, held_out, render
from dps_hf.data.scenes_t2i import layout
from dps_hf.data.splits import check_split
from dps_hf.data.wording import Wish, say


def scenes_palette(rng: np.random.Generator, split: str) -> Record:
    """One thing, or two, in colours of `PALETTE`, in English; `split` changes nothing, since nothing is scored."""
    check_split(split)
    sizes = bool(rng.random() < 0.5)
    while True:
        kinds = [
            (pick(rng, tuple(SIZES)) if sizes else None, pick(rng, tuple(PALETTE)), pick(rng, SHAPES))
            for _ in range(pick(rng, (1, 1, 2)))
        ]
        wish = Wish(Counter(kinds))
        scene = layout(wish)
        if not has_unseen_count(scene) and not held_out(scene):
            return record("scenes_palette", [say(wish)], [render(scene)])
