import numpy as np
import pytest

from dps_hf.data.record import validate
from dps_hf.nano.detector import detect
from dps_hf.nano.scenes import OUTLINES, PAINTS, PALETTE, SHAPES, SIZES, Scene, Thing, render
from dps_hf.nano.scenes_palette import scenes_palette
from dps_hf.nano.splits import UNSEEN_PAIRS


def test_the_palette_is_drawn_as_it_is_named():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(600):
        example = scenes_palette(rng, "train")
        validate(example)
        prompt = example["messages"][0]["content"][0]["text"]
        words = {word.removesuffix("es").removesuffix("s") for word in prompt.split()} | set(prompt.split())
        named = {colour for colour in PAINTS if colour in words}
        pixels = {tuple(pixel) for pixel in np.asarray(example["images"][0]).reshape(-1, 3).tolist()}
        assert named == {colour for colour, rgb in PAINTS.items() if rgb in pixels}
        if not any(shape in words for shape in OUTLINES):
            assert named <= set(PALETTE), "what is scored is left to scenes_t2i"
        if not named & set(PALETTE):
            assert not any(shape in words for shape in SHAPES), "what is scored is left to scenes_t2i"
        seen |= {*named, *(words & {*SHAPES, *OUTLINES})}
    assert seen == {*PAINTS, *SHAPES, *OUTLINES}


@pytest.mark.parametrize("outline", OUTLINES)
def test_no_palette_shape_is_detected_as_a_shape_of_an_unseen_pair(outline):
    for colour, _ in UNSEEN_PAIRS:
        for size in SIZES:
            found = detect(render(Scene((Thing(outline, colour, size, 28, 28),))))
            assert {thing.shape for thing in found} <= {"circle", "heart", "diamond", "unknown"}
