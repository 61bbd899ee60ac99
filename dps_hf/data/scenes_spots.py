"""Draw spots of any outline: a patch is then learned as colour and outline, not by heart as a part of some shape."""

import numpy as np
from PIL import Image, ImageDraw

from dps_hf.data.record import Record, pick, record
from dps_hf.data.scenes import COLOURS, IMAGE_SIZE
from dps_hf.data.splits import check_split


CELL = 32  # pixels; each quarter of the picture has at most one spot, so that no two of them make a third outline
SCALE = 8  # drawn so many times larger, for smooth edges


def scenes_spots(rng: np.random.Generator, split: str) -> Record:
    """Two to four spots of one colour, in English; `split` changes nothing, since nothing is scored.

    Without them a model cannot put a colour on a shape on which it never saw it: some of the patches would be image
    codes that no drawing ever had.
    """
    check_split(split)
    colour = pick(rng, tuple(COLOURS))
    mask = Image.new("L", (IMAGE_SIZE * SCALE, IMAGE_SIZE * SCALE))
    draw = ImageDraw.Draw(mask)
    for cell in rng.permutation(4)[: rng.integers(2, 5)]:
        corner = CELL * np.array([cell % 2, cell // 2])
        outline = pick(rng, (_bar, _blot))(rng) + corner
        draw.polygon([tuple(point) for point in outline * SCALE], fill=255)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    image.paste(COLOURS[colour], mask=mask.reduce(SCALE))
    return record("scenes_spots", [f"{colour} spots"], [image])


def _bar(rng: np.random.Generator) -> np.ndarray:
    """Corners of an upright or lying bar, `(4, 2)` pixels; half of them begin and end where patches do, or nearly."""
    side = rng.permutation([pick(rng, (8, 16)), 24])
    if rng.random() < 0.5:
        start = 8 * rng.integers(0, (CELL - side) // 8 + 1)
        low, high = start + rng.uniform(0, 1.2), start + side - rng.uniform(0, 1.2)
    else:
        low = rng.uniform(0, CELL - side)
        high = low + side
    return np.array([low, (high[0], low[1]), high, (low[0], high[1])])


def _blot(rng: np.random.Generator) -> np.ndarray:
    """Corners of four uneven spikes, `(8, 2)` pixels: like no shape, with edges in all directions."""
    turns = np.sort(rng.uniform(0, 2 * np.pi, 8))
    radii = np.where(np.arange(8) % 2, rng.uniform(0.1, 0.4, 8), rng.uniform(0.7, 1, 8))
    return CELL / 2 * (1 + radii[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1))
