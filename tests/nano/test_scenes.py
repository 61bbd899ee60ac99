from collections import Counter

import numpy as np
import pytest

from dps_hf.nano.detector import detect, match_things
from dps_hf.nano.scenes import (
    COLOURS,
    GAP,
    GROUNDS,
    HALF_WHITE,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    has_unseen_count,
    has_unseen_pair,
    is_held_out,
    render,
    sample_scene,
    sample_split,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(1500)]


def box(thing: Thing) -> tuple[int, int, int, int]:
    half = SIZES[thing.size] // 2
    return thing.x - half, thing.y - half, thing.x + half - 1, thing.y + half - 1


def test_things_stay_inside_and_apart(scenes):
    for scene in scenes:
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = box(thing)
            assert min(left, top) >= 1 and max(right, bottom) <= 62
            for other in scene.things[:i]:
                a, b = box(thing), box(other)
                assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) > GAP


def test_in_a_tidy_scene_boxes_begin_and_end_at_multiples_of_8():
    rng = np.random.default_rng(0)
    for thing in (thing for _ in range(200) for thing in sample_scene(rng, tidy=True).things):
        left, top, right, bottom = box(thing)
        assert left % 8 == top % 8 == (right + 1) % 8 == (bottom + 1) % 8 == 0
        assert min(left, top) >= 0 and max(right, bottom) <= 63


def test_a_third_of_the_scenes_hold_one_thing_and_none_more_than_four(scenes):
    counts = Counter(len(scene.things) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert counts[1] / len(scenes) == pytest.approx(0.35, abs=0.04)
    assert counts[2] / len(scenes) == pytest.approx(0.30, abs=0.04)


def test_the_same_generator_gives_the_same_scene():
    assert sample_scene(np.random.default_rng(7)) == sample_scene(np.random.default_rng(7))
    assert len(sample_scene(np.random.default_rng(7), count=3).things) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_is_drawn_in_its_colour_around_its_centre(shape):
    image = render(Scene((Thing(shape, "green", "big", 20, 40),)))
    pixels = np.asarray(image)
    assert image.size == (64, 64) and image.mode == "RGB"
    assert tuple(pixels[40, 20]) == COLOURS["green"]
    rows, columns = np.nonzero((pixels != 255).any(-1))
    assert (columns.min() + columns.max()) / 2 == pytest.approx(20, abs=1)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(40, abs=1)
    assert columns.max() - columns.min() + 1 == pytest.approx(SIZES["big"], abs=2)


def test_outlines_are_anti_aliased():
    pixels = np.asarray(render(Scene((Thing("circle", "black", "big", 30, 30),))))
    assert len(np.unique(pixels[..., 0])) > 10


def test_one_scene_in_ten_is_held_out_whatever_its_count(scenes):
    for several in (False, True):
        found = [is_held_out(scene) for scene in scenes if (len(scene.things) > 1) == several]
        assert 0.06 < np.mean(found) < 0.14


def test_holding_out_ignores_the_order_of_things_and_small_moves():
    things = (Thing("circle", "red", "big", 20, 20), Thing("star", "blue", "small", 50, 50))
    moved = (Thing("circle", "red", "big", 21, 20), things[1])
    assert is_held_out(Scene(things)) == is_held_out(Scene(things[::-1])) == is_held_out(Scene(moved))


def test_half_of_the_backgrounds_are_white_and_the_others_equally_common():
    counts = Counter(HALF_WHITE)
    assert counts["white"] / len(HALF_WHITE) == 0.5
    assert {counts[ground] for ground in GROUNDS[1:]} == {1}


@pytest.mark.parametrize("ground", GROUNDS)
def test_things_are_detected_on_every_background(ground):
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, grounds=(ground,)) for _ in range(60)]
    right = [match_things(detect(render(scene)), scene) for scene in scenes]
    assert np.mean(right) >= 0.98
    (empty,) = {detect(render(Scene((), scene.ground))) == [] for scene in scenes}
    assert empty, "a ground is taken for a thing"


def test_backgrounds_differ():
    pictures = {render(Scene((), (ground, (230, 240, 235)))).tobytes() for ground in GROUNDS}
    assert len(pictures) == len(GROUNDS)


def test_an_unknown_split_raises_an_error():
    with pytest.raises(ValueError, match="split must be 'train' or 'validation'; got 'test'"):
        sample_split(np.random.default_rng(0), "test")


@pytest.mark.parametrize("unseen", ["pair", "count"])
def test_validation_contains_unseen_pairs_and_counts_on_request(unseen):
    rng = np.random.default_rng(0)
    scenes = [sample_split(rng, "validation", unseen=unseen) for _ in range(30)]
    assert all(is_held_out(scene) for scene in scenes)
    assert {(has_unseen_pair(scene), has_unseen_count(scene)) for scene in scenes} == {
        (unseen == "pair", unseen == "count")
    }
    with pytest.raises(ValueError, match=f"got '{unseen}' in train"):
        sample_split(rng, "train", unseen=unseen)


def test_a_scene_contains_one_to_four_things():
    with pytest.raises(ValueError, match="count must be 1 to 4; got 5"):
        sample_scene(np.random.default_rng(0), 5)
