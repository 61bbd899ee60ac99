"""Procedural 64x64 scenes of coloured shapes: sampling, the held-out split, and rendering."""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dps_hf.data.record import pick
from dps_hf.nano.splits import UNSEEN_COUNTS, UNSEEN_PAIRS, check_split, check_unseen, is_one_in


IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond")
COLOURS = {
    "red": (225, 25, 35),
    "green": (20, 150, 50),
    "blue": (25, 75, 230),
    "yellow": (255, 220, 0),
    "orange": (255, 130, 0),
    "purple": (125, 25, 165),
    "pink": (255, 120, 205),
    "black": (15, 15, 15),
}
PALETTE = {
    "brown": (140, 80, 30),
    "grey": (140, 140, 140),
    "turquoise": (30, 200, 190),
    "lime": (130, 220, 30),
    "magenta": (230, 30, 150),
    "olive": (120, 130, 20),
    "teal": (0, 115, 115),
    "coral": (255, 110, 90),
    "maroon": (110, 10, 20),
    "indigo": (75, 20, 140),
    "lavender": (190, 140, 230),
}
"""More colours, which only the task `scenes_palette` uses. Questions and evaluations never contain them. None is
a word for one of `COLOURS`, as "navy" is for blue; `vocabulary` has those."""
PAINTS = COLOURS | PALETTE
OUTLINES = {
    "rectangle": ((0, 0.25), (1, 0.25), (1, 0.75), (0, 0.75)),
    "pillar": ((0.25, 0), (0.75, 0), (0.75, 1), (0.25, 1)),
    "trapezoid": ((0.2, 0.2), (0.8, 0.2), (1, 0.8), (0, 0.8)),
    "funnel": ((0, 0.04), (1, 0.04), (0.75, 0.96), (0.25, 0.96)),
    "parallelogram": ((0.33, 0.04), (1, 0.04), (0.67, 0.96), (0, 0.96)),
    "gable": ((0.5, 0), (1, 0.45), (1, 0.96), (0, 0.96), (0, 0.45)),
    "kite": ((0.5, 0), (1, 0.35), (0.5, 1), (0, 0.35)),
    "pentagon": ((0.5, 0), (1, 0.38), (0.81, 0.96), (0.19, 0.96), (0, 0.38)),
    "hexagon": ((0.25, 0.04), (0.75, 0.04), (1, 0.5), (0.75, 0.96), (0.25, 0.96), (0, 0.5)),
    "octagon": ((0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)),
    "pointer": ((0.5, 0), (1, 0.5), (0.7, 0.5), (0.7, 1), (0.3, 1), (0.3, 0.5), (0, 0.5)),
    "chevron": ((0.5, 0), (1, 0.5), (1, 1), (0.5, 0.5), (0, 1), (0, 0.5)),
    "stair": ((0, 0), (0.33, 0), (0.33, 0.33), (0.67, 0.33), (0.67, 0.67), (1, 0.67), (1, 1), (0, 1)),
    "bracket": ((0, 0.04), (0.35, 0.04), (0.35, 0.6), (1, 0.6), (1, 0.96), (0, 0.96)),
    "tee": ((0, 0.04), (1, 0.04), (1, 0.4), (0.67, 0.4), (0.67, 0.96), (0.33, 0.96), (0.33, 0.4), (0, 0.4)),
}
"""More shapes, also for `scenes_palette`: corners `(x, y)` from the upper left of the bounding box, 0 to 1."""
SIZES = {"small": 16, "big": 24}  # side of the bounding box, pixels

MARGIN = 1  # pixels kept free along the border
GAP = 3  # pixels kept free between two bounding boxes
ORDER_GAP = 4  # smallest difference in x of two centres, so that the order from left to right is unambiguous
RELATION_GAP = 10  # pixels by which two centres must differ before a question asks for their relation

GROUNDS = ("white", "tint", "stripes", "checks", "dots")
"""Backgrounds: white, and light patterns on which all colours remain visible."""
HALF_WHITE = ("white",) * (len(GROUNDS) - 1) + GROUNDS[1:]
"""Makes half of the backgrounds white. Used for pictures to be read; drawings are always on white."""


@dataclass(frozen=True)
class Thing:
    """One coloured shape. `x` and `y` are its centre, in pixels from the upper left corner."""

    shape: str
    colour: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """Things on a background. `ground` is one of `GROUNDS`, and its light colour in RGB."""

    things: tuple[Thing, ...]
    ground: tuple[str, tuple[int, int, int]] = ("white", (255, 255, 255))


def sample_scene(
    rng: np.random.Generator,
    count: int | None = None,
    tidy: bool = False,
    grounds: tuple[str, ...] = ("white",),
) -> Scene:
    """Samples a scene of `count` things, 1 to 4. By default 35 % hold one thing, 30 % two, the rest three or four.

    Args:
        tidy: whether bounding boxes are aligned to multiples of 8 pixels. A model that draws in patches of 8x8 pixels
            then needs one set of patches for a thing instead of one for each of 64 offsets.
        grounds: the backgrounds to choose from. The colour is a random light one.

    Raises:
        ValueError: `count` is not 1 to 4.
    """
    if count is None:
        count = int(np.searchsorted((0.35, 0.65, 0.85), rng.random(), side="right")) + 1
    if count not in range(1, 5):
        raise ValueError(f"count must be 1 to 4; got {count}.")
    pattern, (red, green, blue) = pick(rng, grounds), rng.integers(224, 250, 3).tolist()
    ground = ("white", (255, 255, 255)) if pattern == "white" else (pattern, (red, green, blue))
    while True:
        things: list[Thing] = []
        for _ in range(30):
            kind = pick(rng, SHAPES), pick(rng, tuple(COLOURS)), pick(rng, tuple(SIZES))
            half = SIZES[kind[2]] // 2
            if tidy:
                x, y = (half + 8 * int(v) for v in rng.integers(0, (IMAGE_SIZE - 2 * half) // 8 + 1, 2))
            else:
                x, y = (int(v) for v in rng.integers(half + MARGIN, IMAGE_SIZE - half - MARGIN + 1, 2))
            thing = Thing(*kind, x, y)
            if all(_are_apart(thing, other) for other in things):
                things.append(thing)
            if len(things) == count:
                return Scene(tuple(things), ground)


def _are_apart(a: Thing, b: Thing) -> bool:
    distance = (SIZES[a.size] + SIZES[b.size]) // 2 + GAP
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    return max(dx, dy) > distance and dx >= ORDER_GAP


# Splits


def has_unseen_pair(scene: Scene) -> bool:
    """Whether the scene contains a colour-shape combination that training does not contain."""
    return any((thing.colour, thing.shape) in UNSEEN_PAIRS for thing in scene.things)


def has_unseen_count(scene: Scene) -> bool:
    """Whether the scene contains a number of one shape that training does not contain."""
    return any((number, shape) in UNSEEN_COUNTS for shape, number in Counter(t.shape for t in scene.things).items())


def shows(scene: Scene, unseen: str | None) -> bool:
    """Whether the scene contains an unseen "pair" and no unseen "count", the reverse, or neither of them (None)."""
    return (has_unseen_pair(scene), has_unseen_count(scene)) == (unseen == "pair", unseen == "count")


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is excluded from training: 1 in 10, by a hash of the things and their rough positions."""
    content = sorted((t.size, t.colour, t.shape, t.x // 16, t.y // 16) for t in scene.things)
    return is_one_in(10, repr(content))


def sample_split(
    rng: np.random.Generator, split: str, count: int | None = None, unseen: str | None = None, **kwargs
) -> Scene:
    """Samples scenes until one belongs to `split`, "train" or "validation".

    Args:
        count: number of things in the scene. By default it is 1 to 4.
        unseen: "pair" or "count", in validation only: the scene contains an unseen one of this kind and none of the
            other. By default it contains neither.
        kwargs: passed on to `sample_scene`.

    Raises:
        ValueError: `split` or `unseen` is unknown, or `unseen` is given for training.
    """
    check_split(split)
    check_unseen(unseen, split)
    while True:
        scene = sample_scene(rng, count, **kwargs)
        if is_held_out(scene) == (split == "validation") and shows(scene, unseen):
            return scene


# Drawing


def render(scene: Scene) -> Image.Image:
    """Draws the scene as an anti-aliased 64x64 RGB picture."""
    image = Image.fromarray(_draw_ground(*scene.ground))
    for thing in scene.things:
        half = SIZES[thing.size] // 2
        image.paste(PAINTS[thing.colour], (thing.x - half, thing.y - half), _draw_mask(thing.shape, SIZES[thing.size]))
    return image


def _draw_ground(pattern: str, colour: tuple[int, int, int]) -> np.ndarray:
    """The background without things: `(64, 64, 3)` uint8."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    tinted = {
        "white": np.zeros_like(x, dtype=bool),
        "tint": np.ones_like(x, dtype=bool),
        "stripes": (x + y) % 12 < 6,
        "checks": (x // 8 + y // 8) % 2 == 0,
        "dots": (x % 8 - 3.5) ** 2 + (y % 8 - 3.5) ** 2 < 5,
    }[pattern]
    return np.where(tinted[..., None], np.array(colour), 255).astype(np.uint8)


@cache
def _draw_mask(shape: str, side: int) -> Image.Image:
    """The coverage of each pixel, computed by drawing the shape 8 times larger and reducing it."""
    scale = 8
    large = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(large)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * (side * scale - 1), y * (side * scale - 1)) for x, y in points]

    if shape == "circle":
        draw.ellipse(at((0, 0), (1, 1)), fill=255)
    elif shape == "square":
        draw.rectangle(at((0.04, 0.04), (0.96, 0.96)), fill=255)
    elif shape == "triangle":
        draw.polygon(at((0.5, 0), (1, 0.96), (0, 0.96)), fill=255)
    elif shape == "star":
        turns = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2, 0.22, 0.525)
        draw.polygon(at(*zip(0.5 + radii * np.cos(turns), 0.54 + radii * np.sin(turns), strict=True)), fill=255)
    elif shape == "cross":
        draw.rectangle(at((0.34, 0), (0.66, 1)), fill=255)
        draw.rectangle(at((0, 0.34), (1, 0.66)), fill=255)
    elif shape == "heart":
        draw.ellipse(at((0, 0.04), (0.53, 0.57)), fill=255)
        draw.ellipse(at((0.47, 0.04), (1, 0.57)), fill=255)
        draw.polygon(at((0.045, 0.45), (0.5, 0.3), (0.955, 0.45), (0.5, 1)), fill=255)
    elif shape == "diamond":
        draw.polygon(at((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)), fill=255)
    elif shape in OUTLINES:
        draw.polygon(at(*OUTLINES[shape]), fill=255)
    else:
        raise ValueError(f"shape must be one of {', '.join((*SHAPES, *OUTLINES))}; got {shape!r}.")
    return large.reduce(scale)
