import numpy as np

from dps_hf.data.record import validate
from dps_hf.data.scenes import COLOURS, PALETTE, SHAPES
from dps_hf.data.scenes_palette import scenes_palette


def test_the_palette_is_drawn_as_it_is_named():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        example = scenes_palette(rng, "train")
        validate(example)
        prompt = example["messages"][0]["content"][0]["text"]
        words = {word.removesuffix("es").removesuffix("s") for word in prompt.split()} | set(prompt.split())
        named = {colour for colour in PALETTE if colour in words}
        pixels = {tuple(pixel) for pixel in np.asarray(example["images"][0]).reshape(-1, 3).tolist()}
        assert named == {colour for colour, rgb in PALETTE.items() if rgb in pixels}
        assert not any(rgb in pixels for rgb in COLOURS.values()), "colours that are scored are left to scenes_t2i"
        seen |= {(colour, shape) for colour in named for shape in SHAPES if shape in prompt}
    assert len({colour for colour, _ in seen}) == len(PALETTE) and len({shape for _, shape in seen}) == len(SHAPES)
