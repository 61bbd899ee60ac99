"""Pictures of scenes as people have them: not square, on any plain ground, outlined, turned, larger, noisy.

They are to be read only. Drawings are those of `scenes.render`.
"""

from dataclasses import replace
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from dps_hf.data.record import pick
from dps_hf.nano.scenes import (
    COLOURS,
    GAP,
    IMAGE_SIZE,
    ORDER_GAP,
    SHAPES,
    Scene,
    Thing,
    _draw_mask,
    is_held_out,
    shows,
)
from dps_hf.nano.splits import check_split


SIDES = {"small": (12, 17), "big": (22, 44)}
"""Sides of a thing, in 64ths of the longer side of the picture. No size between them is called small or big."""
CONTRAST = 110.0  # smallest distance of the ground's colour from that of each thing, RGB
FINE = 96  # side of the masks from which things are scaled, pixels
PATCH = 16  # pixels; two centres within one patch of the image encoder could not be told apart

SHADES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (200, 0, 0)),
    "green": ((0, 128, 0), (0, 255, 0), (50, 205, 50), (34, 139, 34)),
    "blue": ((0, 0, 255), (30, 144, 255), (65, 105, 225), (0, 0, 160)),
    "yellow": ((255, 255, 0), (255, 215, 0)),
    "orange": ((255, 165, 0), (255, 140, 0)),
    "purple": ((128, 0, 128), (148, 0, 211)),
    "pink": ((255, 192, 203), (255, 105, 180)),
    "black": ((0, 0, 0), (30, 30, 30)),
}
"""What other programs mean by the names of `COLOURS`."""


def sample_view(
    rng: np.random.Generator,
    split: str,
    count: int | None = None,
    unseen: str | None = None,
    alike: bool = False,
) -> tuple[Image.Image, Scene]:
    """Samples a picture, and what it shows where after `fit="pad-edge"` has made it a square of 64 pixels.

    Args:
        count: number of things, 1 to 4. By default 45 % of the pictures show one thing, 30 % two.
        unseen: as for [`~dps_hf.nano.scenes.sample_split`].
        alike: whether most things have the shape of the first one, and half of these its colour, so that there is
            something to count.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    while True:
        stretch = 1.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(-0.75, 0.75)))
        frame = (min(1.0, stretch) * IMAGE_SIZE, min(1.0, 1 / stretch) * IMAGE_SIZE)  # width, height
        number = count or int(np.searchsorted((0.45, 0.75, 0.9), rng.random(), side="right")) + 1
        placed = _place(rng, number, frame, alike)
        if placed is None:
            continue
        scene = Scene(tuple(thing for thing, _ in placed))
        if is_held_out(scene) == (split == "validation") and shows(scene, unseen):
            return _show(rng, placed, frame), scene


def _place(
    rng: np.random.Generator, number: int, frame: tuple[float, float], alike: bool
) -> list[tuple[Thing, float]] | None:
    """Things and their sides, the frame in the middle of the square, or None if they do not fit."""
    width, height = frame
    left, top = (IMAGE_SIZE - width) / 2, (IMAGE_SIZE - height) / 2
    placed: list[tuple[Thing, float]] = []
    for _ in range(20):
        size = pick(rng, tuple(SIDES))
        low, high = SIDES[size]
        side = rng.uniform(low, min(high if number == 1 else 28, min(frame) - 2) if size == "big" else high)
        if side + 2 > min(frame) or side < low:
            return None
        half = side / 2 + 1
        x, y = (int(rng.uniform(half, length - half) + at) for length, at in ((width, left), (height, top)))
        thing = Thing(pick(rng, SHAPES), pick(rng, tuple(COLOURS)), size, x, y)
        if alike and placed and rng.random() < 0.75:
            first = placed[0][0]
            thing = replace(thing, shape=first.shape, colour=first.colour if rng.random() < 0.5 else thing.colour)
        if all(_are_apart(thing, side, *other) for other in placed):
            placed.append((thing, side))
        if len(placed) == number:
            return placed
    return None


def _are_apart(a: Thing, side: float, b: Thing, other: float) -> bool:
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    same_patch = (a.x // PATCH, a.y // PATCH) == (b.x // PATCH, b.y // PATCH)
    return max(dx, dy) > (side + other) / 2 + GAP and dx >= ORDER_GAP and not same_patch


def _show(rng: np.random.Generator, placed: list[tuple[Thing, float]], frame: tuple[float, float]) -> Image.Image:
    """The picture, at one to four times its size in the square."""
    scale = pick(rng, (1.0, 1.5, 2.0, 3.0, 4.0))
    width, height = (max(round(length * scale), 1) for length in frame)
    paints = [_mix_paint(rng, thing.colour) for thing, _ in placed]
    ground = _choose_ground(rng, paints)
    image = Image.new("RGB", (width, height), ground or (255, 255, 255))
    coverage = Image.new("L", (width, height))
    style, dim = pick(rng, ("filled", "filled", "filled", "hollow", "bordered")), pick(rng, (2, 3, 255))
    for (thing, side), paint in zip(placed, paints, strict=True):
        mask, inner = _turn(rng, thing.shape, side, scale, style)
        left, top = (
            round((at - (IMAGE_SIZE - length) / 2) * scale - long / 2)
            for at, length, long in zip((thing.x, thing.y), frame, mask.size, strict=True)
        )
        corner = left, top
        image.paste(tuple(c // dim for c in paint) if style == "bordered" else paint, corner, mask)
        if style == "bordered":
            image.paste(paint, corner, inner)
        coverage.paste(255, corner, mask)
    if ground is None:
        image.putalpha(coverage)  # transparent, and white where it is shown
        return image
    return _wear(rng, image, scale)


def _mix_paint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    base = COLOURS[colour] if rng.random() < 0.4 else pick(rng, SHADES[colour])
    red, green, blue = (int(v) for v in np.clip(np.array(base) + rng.normal(0, 6, 3), 0, 255))
    return red, green, blue


def _choose_ground(rng: np.random.Generator, paints: list[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """A plain colour that is unlike those of the things, or None for a transparent ground."""
    while True:
        kind = rng.choice(("white", "pale", "any", "dark", "clear"), p=(0.3, 0.2, 0.25, 0.15, 0.1))
        low, high = {"white": (255, 256), "pale": (190, 256), "any": (0, 256), "dark": (0, 70)}.get(kind, (255, 256))
        red, green, blue = rng.integers(low, high, 3).tolist()
        if all(np.linalg.norm(np.subtract(paint, (red, green, blue))) > CONTRAST for paint in paints):
            return None if kind == "clear" else (red, green, blue)


def _turn(
    rng: np.random.Generator, shape: str, side: float, scale: float, style: str
) -> tuple[Image.Image, Image.Image]:
    """The mask of a thing, turned, and the mask of its inside, without a border."""
    # A square on its corner is a diamond, and half of a triangle's turns are odd: most things are turned a little.
    most = 15 if shape in ("square", "diamond", "cross") or rng.random() < 0.7 else 180
    angle = rng.uniform(-most, most) if rng.random() < 0.6 else 0.0
    width, height = side * scale * rng.uniform(0.92, 1.0, 2)
    # Lines of less than 2 of the square's 64 pixels would vanish, and a wide border would hide the colour of a star.
    line = {"filled": 0.0, "bordered": 0.05, "hollow": max(rng.uniform(0.08, 0.2), 2 / side)}[style]
    outer, inner = _cut(shape, round(line * 20))
    if style == "hollow":
        outer = Image.fromarray(np.maximum(np.asarray(outer, np.int16) - np.asarray(inner), 0).astype(np.uint8))
    size = max(round(width), 1), max(round(height), 1)
    turned = [mask.resize(size).rotate(angle, Image.Resampling.BILINEAR, expand=True) for mask in (outer, inner)]
    return turned[0], turned[1]


@cache
def _cut(shape: str, border: int) -> tuple[Image.Image, Image.Image]:
    """The mask of a shape, and the same without a border of so many 20ths of the side."""
    mask = _draw_mask(shape, FINE)
    padded = Image.new("L", (FINE + 2, FINE + 2))
    padded.paste(mask, (1, 1))
    for _ in range(border * FINE // 20):  # a filter of size 3 takes one pixel away, on both sides
        padded = padded.filter(ImageFilter.MinFilter(3))
    return mask, padded.crop((1, 1, FINE + 1, FINE + 1))


def _wear(rng: np.random.Generator, image: Image.Image, scale: float) -> Image.Image:
    """Adds what cameras, scanners and JPEG do to a picture, to half of the pictures."""
    if rng.random() < 0.5:
        return image
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9) * scale)))
    if rng.random() < 0.5:
        noise = rng.normal(0, rng.uniform(3, 16), (image.height, image.width, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 92)))
        image = Image.open(file)
        image.load()
    return image
