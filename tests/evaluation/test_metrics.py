import numpy as np
import pytest
from PIL import Image

from dps_hf.evaluation.metrics import compute_psnr, find_right_neighbours, name_match, pool


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
    assert compute_psnr(black, black) == float("inf")
    assert compute_psnr(black, Image.new("RGB", (8, 8), "white")) == pytest.approx(0)
    assert compute_psnr(np.zeros((4, 4), np.uint8), np.full((4, 4), 10, np.uint8)) == pytest.approx(28.13, abs=0.01)
    with pytest.raises(ValueError, match="same shape"):
        compute_psnr(black, black.resize((4, 4)))


def test_pooling_averages():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, :2, :4, 1] = 255  # half of the first 4x4 cell, green
    cells = pool(image)
    assert cells.shape == (1, 16 * 16 * 3)
    assert cells[0, 1] == pytest.approx(0.5) and cells.sum() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="multiples of 16; got 20 and 20"):
        pool(np.zeros((1, 20, 20, 3)))


def test_nearest_neighbours_are_right_only_for_the_wanted_candidate():
    candidates = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    drawings = [Image.new("RGB", (64, 64), colour) for colour in ((200, 40, 0), (0, 10, 200))]
    assert find_right_neighbours(drawings, candidates, [0, 2]) == [True, True]
    assert find_right_neighbours(drawings, candidates, [1, 2]) == [False, True]
    with pytest.raises(ValueError, match="one index per drawing; got 1 for 2"):
        find_right_neighbours(drawings, candidates, [0])
