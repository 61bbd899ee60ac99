import ast
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dps_hf.nano import detector
from dps_hf.nano.detector import Detected, detect, fulfils, match_scene, match_things
from dps_hf.nano.scenes import COLOURS, SHAPES, Scene, Thing, render, sample_scene
from dps_hf.nano.wording import RELATIONS, Wish, parse_wish


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.7))


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


@pytest.mark.parametrize(
    ("degrade", "at_least"),
    [(None, 0.995), (noisy, 0.95), (blurred, 0.95), (compressed, 0.95)],
    ids=["clean", "noisy", "blurred", "compressed"],
)
def test_the_detector_finds_the_things_of_rendered_scenes(degrade, at_least):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(100)]
    pictures = [render(scene) for scene in scenes]
    found = [detect(degrade(picture) if degrade else picture) for picture in pictures]
    assert np.mean([match_things(*pair) for pair in zip(found, scenes)]) >= at_least


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "big"])
def test_every_shape_is_found_in_every_colour_at_its_position(shape, size):
    for colour in COLOURS:
        (found,) = detect(render(Scene((Thing(shape, colour, size, 25, 40),))))
        assert (found.shape, found.colour, found.size) == (shape, colour, size)
        assert (found.x, found.y) == pytest.approx((25.5, 40.5), abs=1.5)


@pytest.mark.parametrize("side", [32, 128])
def test_pictures_of_another_size_are_resized(side):
    scene = Scene((Thing("circle", "red", "small", 16, 28), Thing("star", "blue", "big", 52, 28)))
    assert match_scene(detect(render(scene).resize((side, side))), scene)


def test_nothing_is_found_in_an_empty_picture():
    assert detect(Image.new("RGB", (64, 64), "white")) == []


def test_specks_are_ignored():
    image = render(Scene((Thing("circle", "red", "big", 20, 20),)))
    image.paste("blue", (50, 50, 53, 53))
    assert [found.colour for found in detect(image)] == ["red"]


@pytest.mark.parametrize(
    "box_and_method", [((10, 10, 50, 24), "rectangle"), ((10, 10, 50, 30), "ellipse"), ((5, 5, 60, 9), "rectangle")]
)
def test_other_outlines_are_unknown(box_and_method):
    box, method = box_and_method
    image = Image.new("RGB", (64, 64), "white")
    getattr(ImageDraw.Draw(image), method)(box, fill=COLOURS["red"])
    assert [found.shape for found in detect(image)] == ["unknown"]


def test_touching_things_of_different_colours_are_separated():
    image = Image.new("RGB", (64, 64), "white")
    image.paste(COLOURS["red"], (5, 20, 30, 45))
    image.paste(COLOURS["blue"], (30, 20, 55, 45))
    assert [(found.colour, found.shape) for found in detect(image)] == [("red", "square"), ("blue", "square")]


def test_same_things_compares_kinds_counts_and_sizes():
    scene = Scene((Thing("star", "red", "big", 20, 20), Thing("star", "red", "small", 50, 50)))
    found = detect(render(scene))
    assert match_things(found, scene)
    assert match_things(found, Counter({(None, "red", "star"): 2}))
    assert match_things(found, Counter({("big", "red", "star"): 1, (None, "red", "star"): 1}))
    assert match_things(found, Counter({(None, "red", "star"): 1, ("big", "red", "star"): 1}))
    assert not match_things(found, Counter({("big", "red", "star"): 2}))
    assert not match_things(found, Counter({(None, "red", "star"): 1})), "one star too many"
    assert not match_things(found[:1], scene), "one star too few"
    assert not match_things(found, Counter({(None, "red", "star"): 1, (None, "blue", "star"): 1}))
    assert not match_things([Detected("unknown", "red", "big", 0, 0)], Counter({(None, "red", "star"): 1}))


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_must_hold_by_four_pixels(relation):
    one, other = (None, "red", "star"), ("big", "blue", "circle")
    wish = Wish(Counter((one, other)), (one, relation, other))
    dx, dy = RELATIONS[relation]

    def found(lead: float) -> list[Detected]:
        star = Detected("star", "red", "small", 30 + dx * lead, 30 + dy * lead)
        return [Detected("circle", "blue", "big", 30, 30), star]

    assert fulfils(found(4), wish) and fulfils(found(4)[::-1], wish)
    assert not fulfils(found(3.9), wish) and not fulfils(found(-20), wish)
    assert not fulfils(found(20)[:1], wish)
    assert not fulfils([*found(20), Detected("cross", "black", "big", 50, 50)], wish), "one thing too many"
    assert fulfils(found(-20), Wish(wish.kinds)), "without a relation it does not matter where they stand"


def test_things_of_one_kind_can_stand_in_a_relation():
    wish = parse_wish("a red star above a big red star")
    big, small = Detected("star", "red", "big", 20, 50), Detected("star", "red", "small", 20, 10)
    assert fulfils([big, small], wish)
    assert not fulfils([Detected("star", "red", "big", 20, 10), Detected("star", "red", "small", 20, 50)], wish)


def test_the_same_scene_has_the_same_things_within_four_pixels():
    scene = Scene((Thing("star", "red", "big", 20, 20), Thing("star", "red", "big", 50, 50)))

    def moved(*shifts: tuple[float, float]) -> list[Detected]:
        things = zip(scene.things, shifts)
        return [Detected(t.shape, t.colour, t.size, t.x + dx, t.y + dy) for t, (dx, dy) in things]

    assert match_scene(detect(render(scene)), scene)
    assert match_scene(moved((4, -4), (0, 0))[::-1], scene)
    assert not match_scene(moved((4.1, 0), (0, 0)), scene)
    assert not match_scene(moved((0, 0), (-30, -30)), scene), "one thing stands where the other does"
    assert not match_scene(moved((0, 0)), scene)
    assert not match_scene([*moved((0, 0), (0, 0)), Detected("star", "red", "big", 50, 10)], scene)
    assert not match_scene([Detected("star", "red", "small", 20, 20), *moved((0, 0), (0, 0))[1:]], scene)


def test_the_detector_shares_no_drawing_code_with_the_scenes():
    tree = ast.parse(Path(detector.__file__).read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dps_hf")
        for alias in node.names
    }
    assert names <= {"COLOURS", "IMAGE_SIZE", "RELATIONS", "SHAPES", "Kind", "Scene", "Wish"}
