import numpy as np

from dps_hf.data.record import validate
from dps_hf.data.scenes import COLOURS
from dps_hf.data.scenes_spots import scenes_spots
from dps_hf.data.splits import UNSEEN_PAIRS
from dps_hf.evaluation.detector import detect


def test_spots_have_the_colour_that_the_prompt_names_and_no_shape_that_training_must_not_show():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        example = scenes_spots(rng, "train")
        validate(example)
        prompt = example["messages"][0]["content"][0]["text"]
        pixels = {tuple(pixel) for pixel in np.asarray(example["images"][0]).reshape(-1, 3).tolist()}
        assert {f"{colour} spots" for colour, rgb in COLOURS.items() if rgb in pixels} == {prompt}
        assert not UNSEEN_PAIRS & {(thing.colour, thing.shape) for thing in detect(example["images"][0])}
        seen.add(prompt)
    assert len(seen) == len(COLOURS)


def test_a_spot_stays_in_its_quarter_of_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(100):
        dark = np.asarray(scenes_spots(rng, "train")["images"][0].convert("L")) < 250
        quarters = [dark[y : y + 32, x : x + 32].any() for y in (0, 32) for x in (0, 32)]
        assert sum(quarters) in (2, 3, 4)
