"""Procedural 64x64 scenes of coloured shapes on white: drawing, describing and reasoning with exact answers."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dps_hf.data.record import Record, pick, record


IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
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
SIZES = {"small": 16, "big": 24}  # side of the bounding box, pixels
NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4}

MARGIN = 1  # pixels kept free along the border
GAP = 3  # pixels kept free between two bounding boxes
ORDER_GAP = 4  # two centres differ in x by this much, so that "left to right" is never a coin toss
RELATION_GAP = 10  # two things are left of, above ... each other when their centres differ by this much

Kind = tuple[str | None, str, str]
"""Size (None: unsaid), colour, shape."""


@dataclass(frozen=True)
class Thing:
    """`x` and `y` are the centre, in pixels from the upper left corner."""

    shape: str
    colour: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]


def sample_scene(rng: np.random.Generator, count: int | None = None, tidy: bool = False) -> Scene:
    """A scene of `count` things, 1 to 4; by default 35 % hold one thing, 30 % two, the rest three or four.

    `tidy`: boxes begin and end at multiples of 8 pixels. A model that draws in patches of 8x8 pixels then has one way
    to draw a thing instead of 64, and learns what the words mean instead of how outlines are cut.
    """
    if count is None:
        count = int(np.searchsorted((0.35, 0.65, 0.85), rng.random(), side="right")) + 1
    if count not in range(1, 5):
        raise ValueError(f"count must be 1 to 4; got {count}.")
    while True:
        things: list[Thing] = []
        for _ in range(30):
            size = pick(rng, tuple(SIZES))
            half = SIZES[size] // 2
            if tidy:
                x, y = (half + 8 * int(v) for v in rng.integers(0, (IMAGE_SIZE - SIZES[size]) // 8 + 1, 2))
            else:
                x, y = (int(v) for v in rng.integers(half + MARGIN, IMAGE_SIZE - half - MARGIN + 1, 2))
            thing = Thing(pick(rng, SHAPES), pick(rng, tuple(COLOURS)), size, x, y)
            if all(_apart(thing, other) for other in things):
                things.append(thing)
            if len(things) == count:
                return Scene(tuple(things))


def _apart(a: Thing, b: Thing) -> bool:
    distance = (SIZES[a.size] + SIZES[b.size]) // 2 + GAP
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    return max(dx, dy) > distance and dx >= ORDER_GAP


def held_out(scene: Scene) -> bool:
    """Whether the scene is kept out of training: 1 in 10, decided by what stands roughly where and by nothing else."""
    content = sorted((t.size, t.colour, t.shape, t.x // 16, t.y // 16) for t in scene.things)
    return hashlib.blake2b(repr(content).encode()).digest()[0] * 10 < 256


def sample_split(rng: np.random.Generator, split: str, count: int | None = None, tidy: bool = False) -> Scene:
    """Draws scenes until one belongs to `split`, "train" or "validation"."""
    if split not in ("train", "validation"):
        raise ValueError(f"split must be 'train' or 'validation'; got {split!r}.")
    while True:
        scene = sample_scene(rng, count, tidy)
        if held_out(scene) == (split == "validation"):
            return scene


# Drawing


def render(scene: Scene) -> Image.Image:
    """The 64x64 RGB picture, anti-aliased."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    for thing in scene.things:
        half = SIZES[thing.size] // 2
        image.paste(COLOURS[thing.colour], (thing.x - half, thing.y - half), _mask(thing.shape, SIZES[thing.size]))
    return image


@cache
def _mask(shape: str, side: int) -> Image.Image:
    """Coverage of each pixel, drawn 8 times larger and reduced."""
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
    else:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {shape!r}.")
    return large.reduce(scale)


# Words


def caption(scene: Scene, sizes: bool = True) -> str:
    """What is in the picture, left to right: "a small red circle and two big blue stars".

    Things that are alike are counted where the first of them stands. `sizes=False` leaves the sizes unsaid.
    """
    ordered = sorted(scene.things, key=lambda t: (t.x, t.y))
    return phrase(Counter((t.size if sizes else None, t.colour, t.shape) for t in ordered))


def phrase(kinds: Counter[Kind]) -> str:
    """Kinds of things and how many of each, in words, in the order of the counter."""
    words = {number: word for word, number in NUMBERS.items()}
    names = {kind: " ".join(word for word in kind if word) for kind in kinds}
    return join([article(names[kind]) if n == 1 else f"{words[n]} {plural(names[kind])}" for kind, n in kinds.items()])


def article(noun: str) -> str:
    """ "a red circle", "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """ "crosses", "stars"."""
    return noun + ("es" if noun.endswith("s") else "s")


def join(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


_THING = re.compile(
    rf"(an?|{'|'.join(list(NUMBERS)[1:])}) (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?"
)


def parse_caption(text: str) -> Counter[Kind] | None:
    """The reverse of `caption`: how many things of each (size or None, colour, shape); None if it is no caption.

    Forgives what does not matter: capitals, a full stop, commas for "and", surplus spaces.
    """
    text = " ".join(text.casefold().strip(" .!\n").split())
    kinds: Counter[Kind] = Counter()
    for item in re.split(r", and |, | and ", text):
        match = _THING.fullmatch(item)
        if match is None:
            return None
        number, size, colour, shape = match.groups()
        kinds[size, colour, shape] += NUMBERS["a" if number == "an" else number]
    return kinds


# Tasks

DESCRIBE = ("Describe the picture.", "What do you see?", "What is in the picture?")
DRAW = ("Draw {}.", "A picture of {}.", "Please draw {}.")


def _mostly_one(rng: np.random.Generator) -> int:
    return int(rng.choice((1, 2, 3, 4), p=(0.7, 0.2, 0.06, 0.04)))


def scenes_t2i(rng: np.random.Generator, split: str) -> Record:
    """Draw what the text says. Half of the prompts name no sizes, as people often don't.

    70 % of the scenes hold one thing: there a word has one place to show, which is how it is learned.
    """
    scene = sample_split(rng, split, count=_mostly_one(rng), tidy=True)
    prompt = caption(scene, sizes=rng.random() < 0.5)
    if rng.random() < 0.3:
        prompt = pick(rng, DRAW).format(prompt)
    return record("scenes_t2i", [prompt], [render(scene)])


def scenes_i2t(rng: np.random.Generator, split: str) -> Record:
    """Describe the picture; the answer is `caption(scene)`. As many scenes hold one thing as in `scenes_t2i`."""
    scene = sample_split(rng, split, count=_mostly_one(rng))
    return record("scenes_i2t", [render(scene), pick(rng, DESCRIBE)], [caption(scene)])


def scenes_cot(rng: np.random.Generator, split: str) -> Record:
    """Answer a question about the picture, in 2 of 3 records after thinking aloud."""
    scene = sample_split(rng, split)
    question, steps, answer = ask(rng, scene)
    if rng.random() < 2 / 3:
        answer = f"<think>I see {caption(scene)}. {steps}</think>{answer}"
    return record("scenes_cot", [render(scene), question], [answer])


def ask(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    """A question about the scene, the steps to its answer, and the answer."""
    kinds = (
        [_exists, _count, _attribute] if len(scene.things) == 1 else [_exists, _count, _compare, _relate, _attribute]
    )
    while True:
        asked = pick(rng, kinds)(rng, scene)
        if asked is not None:
            return asked


def _few(rng: np.random.Generator, scene: Scene) -> tuple[str, str, int]:
    """A description by colour, shape or both: singular, plural, and how many things of the scene it fits.

    Fits something in half of the draws, so that yes and no are equally common.
    """
    wanted = rng.random() < 0.5
    by_colour, by_shape = pick(rng, ((True, True), (True, False), (False, True)))
    while True:
        seen = pick(rng, scene.things)
        colour = seen.colour if wanted else pick(rng, tuple(COLOURS))
        # A wrong description shares a word with the scene, else a glance at either word would do.
        shape = seen.shape if wanted or (by_colour and rng.random() < 0.5) else pick(rng, SHAPES)
        if not wanted and by_shape and rng.random() < 0.25:
            colour = seen.colour
        number = sum(
            (not by_colour or t.colour == colour) and (not by_shape or t.shape == shape) for t in scene.things
        )
        if (number > 0) == wanted:
            noun = shape if by_shape else "thing"
            prefix = f"{colour} " if by_colour else ""
            return prefix + noun, prefix + plural(noun), number


def _exists(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    one, _, number = _few(rng, scene)
    question = f"Is there {article(one)}?"
    return (question, f"There is {article(one)}.", "yes") if number else (question, f"There is no {one}.", "no")


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    if len(scene.things) > 1 and rng.random() < 0.25:
        number = len(scene.things)
        return "How many things are there?", f"I count {number}.", str(number)
    one, many, number = _few(rng, scene)
    return f"How many {many} are there?", f"I count {number} {one if number == 1 else many}.", str(number)


def _compare(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str]:
    field = pick(rng, ("shape", "colour"))
    counts = Counter(getattr(t, field) for t in scene.things)
    options = SHAPES if field == "shape" else tuple(COLOURS)
    a = pick(rng, tuple(counts))
    if rng.random() < 0.5:
        b = pick(rng, [option for option in options if counts[option] < counts[a]])
    else:
        b = pick(rng, [option for option in options if option != a])
        if counts[a] > counts[b]:
            a, b = b, a
    names = {v: plural(v) if field == "shape" else f"{v} things" for v in (a, b)}
    answer, sign = ("yes", ">") if counts[a] > counts[b] else ("no", "<" if counts[a] < counts[b] else "=")
    steps = f"{names[a]}: {counts[a]}, {names[b]}: {counts[b]}. {counts[a]} {sign} {counts[b]}."
    return f"Are there more {names[a]} than {names[b]}?", steps, answer


RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def _relate(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
    names = Counter(f"{t.colour} {t.shape}" for t in scene.things)
    unique = [t for t in scene.things if names[f"{t.colour} {t.shape}"] == 1]
    if len(unique) < 2:
        return None
    a, b = (unique[i] for i in rng.permutation(len(unique))[:2])
    relation = pick(rng, tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    lead = (a.x - b.x) * dx + (a.y - b.y) * dy
    if abs(lead) < RELATION_GAP:
        return None
    true = next(r for r, (u, v) in RELATIONS.items() if (u, v) == ((dx, dy) if lead > 0 else (-dx, -dy)))
    one, other = f"{a.colour} {a.shape}", f"{b.colour} {b.shape}"
    return (
        f"Is the {one} {relation} the {other}?",
        f"The {one} is {true} the {other}.",
        "yes" if lead > 0 else "no",
    )


def _attribute(rng: np.random.Generator, scene: Scene) -> tuple[str, str, str] | None:
    thing = pick(rng, scene.things)
    asked, known = pick(rng, (("colour", "shape"), ("shape", "colour"), ("size", "shape"), ("size", "colour")))
    if sum(getattr(t, known) == getattr(thing, known) for t in scene.things) > 1:
        return None  # "the star" must mean one star
    noun = thing.shape if known == "shape" else f"{thing.colour} thing"
    answer = getattr(thing, asked)
    is_answer = article(answer) if asked == "shape" else answer
    return f"What {asked} is the {noun}?", f"The {noun} is {is_answer}.", answer
