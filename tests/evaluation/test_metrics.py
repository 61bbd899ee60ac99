import numpy as np
import pytest
from PIL import Image

from dps_hf.evaluation.metrics import (
    effective_items,
    name_match,
    nearest_neighbours_right,
    pooled,
    psnr,
    wilson_interval,
)


def test_wilson_interval_gives_the_published_figures():
    # Brown, Cai and DasGupta (2001) and any table: 8 of 10, and the ends, where the textbook's interval has no width
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-3)
    assert wilson_interval(20, 20) == pytest.approx((0.8389, 1), abs=1e-3)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} and {n}"):
        wilson_interval(successes, n)


def test_items_that_stand_and_fall_together_count_once():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 5)
    together, alone = (rng.random(200) < 0.3)[groups], rng.random(1000) < 0.3
    assert effective_items(together, groups) == pytest.approx(200 * 199 / 200)
    assert effective_items(alone, groups) == pytest.approx(1000, rel=0.1)
    assert effective_items(alone, range(1000)) == pytest.approx(1000, rel=0.01)


def test_the_variance_of_items_in_groups_is_what_repeated_trials_show():
    rng = np.random.default_rng(1)
    shares, found = [], []
    for _ in range(400):
        mood = rng.beta(3, 1, size=30)  # of each of 30 groups
        marks = rng.random((30, 10)) < mood[:, None]
        shares.append(marks.mean())
        found.append(effective_items(marks.ravel(), np.repeat(np.arange(30), 10)))
    promised = 0.75 * 0.25 / np.median(found)
    assert promised == pytest.approx(np.var(shares), rel=0.2)


def test_items_all_alike_or_of_one_group_are_counted_as_they_are():
    assert effective_items([True] * 6, [1, 1, 2, 2, 3, 3]) == 6
    assert effective_items([True, False], "aa") == 2


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("A Red Apple.", "red apple"),
        ("the cactus", "cactus"),
        ("flag France", "flag: France"),
        ("T-rex", "T rex"),
        ("PARIS!", "Paris"),
        ("यह।", "यह"),
        ("红中。", "红中"),
        ("a", "A"),
    ],
)
def test_names_match_apart_from_dress(answer, name):
    assert name_match(answer, name)
    assert name_match(answer, ["something else", name])


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("apple", "red apple"),
        ("", "apple"),
        ("an", "a"),
        ("कि", "की"),
        ("theatre", "atre"),
        ("keycap: *", "keycap: #"),
    ],
)
def test_different_names_do_not_match(answer, name):
    assert not name_match(answer, name)


def test_psnr_follows_its_definition():
    black = Image.new("RGB", (8, 8), "black")
    assert psnr(black, black) == float("inf")
    assert psnr(black, Image.new("RGB", (8, 8), "white")) == pytest.approx(0)
    assert psnr(np.zeros((4, 4), np.uint8), np.full((4, 4), 10, np.uint8)) == pytest.approx(28.13, abs=0.01)
    with pytest.raises(ValueError, match="same shape"):
        psnr(black, black.resize((4, 4)))


def test_pooling_averages():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, :2, :4, 1] = 255  # half of the first 4x4 cell, green
    cells = pooled(image)
    assert cells.shape == (1, 16 * 16 * 3)
    assert cells[0, 1] == pytest.approx(0.5) and cells.sum() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="multiples of 16; got 20 and 20"):
        pooled(np.zeros((1, 20, 20, 3)))


def test_nearest_neighbours_are_right_only_for_the_wanted_candidate():
    candidates = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    drawings = [Image.new("RGB", (64, 64), colour) for colour in ((200, 40, 0), (0, 10, 200))]
    assert nearest_neighbours_right(drawings, candidates, [0, 2]) == [True, True]
    assert nearest_neighbours_right(drawings, candidates, [1, 2]) == [False, True]
    with pytest.raises(ValueError, match="one index per drawing; got 1 for 2"):
        nearest_neighbours_right(drawings, candidates, [0])
