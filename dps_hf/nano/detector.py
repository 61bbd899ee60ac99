"""Detects the things in a picture of a scene, so that drawings can be scored automatically.

It shares names and colours with the scenes but no drawing code, so that it also detects errors of the renderer.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from PIL import Image

from dps_hf.nano.scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene
from dps_hf.nano.wording import RELATIONS, Kind, Wish


INK = 60.0  # a pixel belongs to a thing if its RGB distance from white is above this
SPECK = 25  # smallest number of pixels of a thing
BIG = 20  # smallest side of the bounding box of a big thing, in pixels
MISFIT = 0.14  # largest squared difference from an outline, as a share of its area; clean shapes have less than half
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
SOFTNESS = 3  # outlines are smoothed over 2 * SOFTNESS + 1 cells of the grid
GRID = 24  # side of a bounding box, in cells of the grid on which outlines are compared
LEAD = 4  # pixels by which two things must differ for a relation such as "left of" to hold
NEAR = 4  # largest deviation from the wanted position in x and in y, in pixels

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Detected:
    """A thing that was found. `shape` may be "unknown"; `x` and `y` are the centre of the bounding box, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float


def detect(image: Image.Image) -> list[Detected]:
    """Detects the things in a picture with a white or light background, from left to right.

    Tolerates noise, blur and compression. A region that resembles none of the shapes is reported as "unknown", so that
    a failed drawing never counts as correct. Pictures of another size are resized to 64x64.
    """
    image = image.convert("RGB")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE))
    pixels = np.asarray(image, dtype=np.float32)
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    colour_of = _map_colours(pixels, palette)
    components = _find_components(colour_of)
    found = []
    for label, area in zip(*np.unique(components, return_counts=True), strict=True):
        if label == 0 or area < SPECK:
            continue
        blob = components == label
        index = colour_of[blob][0]
        towards = 255 - palette[index]
        # The coverage of each pixel: 0 for white, 1 for the full colour.
        coverage = np.where(blob, (255 - pixels) @ towards / (towards @ towards), 0).clip(0, 1)
        shape, side, x, y = _fit(coverage)
        found.append(Detected(shape, tuple(COLOURS)[index], "big" if side >= BIG else "small", x, y))
    return sorted(found, key=lambda thing: (thing.x, thing.y))


def _map_colours(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The index of each pixel's colour in the palette, or -1 for the background: `(height, width)`."""
    ink = 255 - pixels
    strength = np.linalg.norm(ink, axis=-1)
    # Along its outline a thing fades to white and passes close to other colours (purple fades through pink), but its
    # direction from white stays the same. In a window of 5x5 pixels, the strong pixels inside outvote the weak ones.
    directions = (255 - palette) / np.linalg.norm(255 - palette, axis=-1, keepdims=True)
    votes = np.eye(len(palette))[(ink @ directions.T).argmax(-1)] * strength[..., None]
    return np.where(strength > INK, _sum_boxes(votes, 2).argmax(-1), -1)


def _sum_boxes(array: np.ndarray, radius: int) -> np.ndarray:
    """Replaces each value by the sum over a square window of `2 * radius + 1` values a side."""
    steps = range(-radius, radius + 1)
    rows = np.sum([_shift(array, dy, 0) for dy in steps], axis=0)
    return np.sum([_shift(rows, 0, dx) for dx in steps], axis=0)


def _shift(array: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Moves the array up by `dy` and left by `dx`, and fills in zeros."""
    height, width = array.shape[:2]
    moved = np.zeros_like(array)
    moved[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = array[
        max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)
    ]
    return moved


def _find_components(colour_of: np.ndarray) -> np.ndarray:
    """Labels the 4-connected components of equal colour; the background is 0: `(height, width)`."""
    ink = colour_of >= 0
    labels = np.where(ink, np.arange(1, ink.size + 1).reshape(ink.shape), 0)
    same = [(dy, dx, ink & (_shift(colour_of + 1, dy, dx) == colour_of + 1)) for dy, dx in NEIGHBOURS]
    while True:
        spread = labels
        for dy, dx, joined in same:
            spread = np.maximum(spread, _shift(spread, dy, dx) * joined)
        spread = np.append(0, spread)[spread]  # a label is also a position: take the label found there
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _fit(coverage: np.ndarray) -> tuple[str, float, float, float]:
    """The best-fitting shape, or "unknown", and the side and the centre of its bounding box.

    The bounding box of each candidate shape is computed from the area and the centre of gravity. Unlike the outermost
    pixels, these hardly change with noise and blur.
    """
    outlines, areas, middles = _draw_outlines()
    area, rows, columns = coverage.sum(), coverage.sum(1), coverage.sum(0)
    centre_x, centre_y = (line @ (np.arange(len(line)) + 0.5) / area for line in (columns, rows))
    sides = np.sqrt(area / areas) * GRID
    left, upper = centre_x - sides / 2, centre_y - middles * sides
    patches = _resample(coverage, upper - sides / 2, left - sides / 2, sides / GRID)
    misfits = np.square(patches - outlines).sum((1, 2)) / areas
    best = int(misfits.argmin())
    shape, side = SHAPES[best] if misfits[best] < MISFIT else UNKNOWN, float(sides[best])
    return shape, side, float(left[best]) + side / 2, float(upper[best]) + side / 2


def _resample(image: np.ndarray, upper: np.ndarray, left: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Samples windows of an image, each on its own grid, with linear interpolation and zeros outside of the image.

    Shapes:
        upper, left: `(windows,)`, the corner in pixels; scale: `(windows,)`, pixels per cell
        returns: `(windows, 2 * GRID, 2 * GRID)`
    """

    def weights(start: np.ndarray, size: int) -> np.ndarray:
        where = start[:, None] + (np.arange(2 * GRID) + 0.5) * scale[:, None]
        nearest = (where - 0.5).clip(0, size - 1)
        inside = (where >= 0) & (where < size)
        return (1 - np.abs(nearest[..., None] - np.arange(size))).clip(0) * inside[..., None]

    down, across = weights(upper, image.shape[0]), weights(left, image.shape[1])
    return down @ image @ across.transpose(0, 2, 1)


@lru_cache(maxsize=1)
def _draw_outlines() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The outlines of all shapes, their areas, and their centres of gravity.

    Shapes:
        outlines: `(shapes, 2 * GRID, 2 * GRID)`, float in [0, 1]; the bounding box is the middle half
        areas: `(shapes,)`, in cells
        centres of gravity: `(shapes,)`, distance from the upper side of the bounding box, in sides of the box
    """
    fine = 4 * 2 * GRID
    y, x = (np.mgrid[0:fine, 0:fine] + 0.5) / fine * 4 - 2  # the box runs from -1 to 1, y downwards
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.maximum(np.abs(x), np.abs(y)) <= 1,
        "triangle": (np.abs(x) <= (y + 1) / 2) & (y <= 1),
        "star": _draw_star(x, y),
        "cross": (np.minimum(np.abs(x), np.abs(y)) <= 0.32) & (np.maximum(np.abs(x), np.abs(y)) <= 1),
        "heart": _draw_heart(x, y),
        "diamond": np.abs(x) + np.abs(y) <= 1,
    }
    assert set(inside) == set(SHAPES)
    # Smoothed like the pictures to be read, because a sharp star differs from a blurred one.
    soft = {name: _sum_boxes(mask.astype(np.float32), SOFTNESS * 2) for name, mask in inside.items()}
    outlines = np.stack(
        [soft[name].reshape(2 * GRID, 4, 2 * GRID, 4).mean((1, 3)) / soft[name].max() for name in SHAPES]
    )
    areas = outlines.sum((1, 2))
    middles = outlines.sum(2) @ (np.arange(2 * GRID) + 0.5) / areas / GRID - 0.5
    return outlines, areas, middles


def _draw_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A point is inside a five-pointed star if it is outside of at most one of the five lines between the tips."""
    tips = np.deg2rad(90 + 72 * np.arange(5))
    top, bottom = 1.0, -np.cos(np.deg2rad(36))
    u, v = x * np.cos(np.deg2rad(18)), bottom + (1 - y) / 2 * (top - bottom)  # box to circle of radius 1, v upwards
    distance = np.stack([u * np.cos(t) + v * np.sin(t) for t in tips])
    return (distance <= np.cos(np.deg2rad(72)) + 0.03).sum(0) >= 4


def _draw_heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The curve (u² + v² - 1)³ = u² v³, scaled to the box."""
    u, v = x * 1.14, 1.24 - (y + 1) / 2 * 2.24
    return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3


def match_things(found: Iterable[Detected], wanted: Scene | Counter[Kind]) -> bool:
    """Whether exactly the wanted things were found, at any position.

    Args:
        wanted: a scene, or kinds as `parse_caption` returns them. A size of None matches any size.
    """
    if isinstance(wanted, Scene):
        wanted = Counter((t.size, t.colour, t.shape) for t in wanted.things)
    left = Counter((t.size, t.colour, t.shape) for t in found)
    # Kinds with a size are matched first. The things that remain are for kinds without a size.
    for size, colour, shape in sorted(wanted.elements(), key=lambda kind: kind[0] is None):
        options = (size,) if size else ("small", "big")
        match = next((s for s in options if left[s, colour, shape]), None)
        if match is None:
            return False
        left[match, colour, shape] -= 1
    return not any(left.values())


def fulfils(found: Iterable[Detected], wish: Wish) -> bool:
    """Whether exactly the wanted things were found, and their relation holds by at least `LEAD` pixels."""
    found = list(found)
    if not match_things(found, wish.kinds) or wish.relation is None:
        return match_things(found, wish.kinds)
    one, relation, other = wish.relation
    dx, dy = RELATIONS[relation]
    return any(
        (a.x - b.x) * dx + (a.y - b.y) * dy >= LEAD
        for a, b in permutations(found, 2)
        if match_things([a], Counter([one])) and match_things([b], Counter([other]))
    )


def match_scene(found: Iterable[Detected], wanted: Scene) -> bool:
    """Whether exactly the wanted things were found, each within `NEAR` pixels of its position."""
    left = list(found)
    for thing in wanted.things:
        here = [
            other
            for other in left
            if (other.size, other.colour, other.shape) == (thing.size, thing.colour, thing.shape)
            and max(abs(other.x - thing.x), abs(other.y - thing.y)) <= NEAR
        ]
        if not here:
            return False
        left.remove(here[0])
    return not left
