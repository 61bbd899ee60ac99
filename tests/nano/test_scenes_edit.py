import re
from dataclasses import replace

import numpy as np

from dps_hf.data.record import validate
from dps_hf.nano.detector import detect, match_scene
from dps_hf.nano.scenes import render
from dps_hf.nano.scenes_edit import edit, scenes_edit
from dps_hf.nano.wording import write_places


FIELDS = {"Make": "colour", "Turn": "shape"}


def test_an_edit_changes_what_it_says_and_nothing_else():
    rng = np.random.default_rng(0)
    forms = set()
    for split in ("train", "validation"):
        for _ in range(40):
            before, instruction, after = edit(rng, split)
            form, colour, shape, change = re.fullmatch(
                r"(Make|Turn|Remove) the (\w+) (\w+)(?: into an?)? ?(\w*)\.", instruction
            ).groups()
            (thing,) = [t for t in before.things if (t.colour, t.shape) == (colour, shape)]
            wanted = () if form == "Remove" else (replace(thing, **{FIELDS[form]: change}),)
            assert set(after.things) == {*before.things} - {thing} | {*wanted}, instruction
            assert after.things and after != before
            forms.add(form)
    assert forms == {"Make", "Turn", "Remove"}


def test_a_record_contains_both_pictures_in_order():
    rng = np.random.default_rng(5)
    before, instruction, after = edit(np.random.default_rng(5), "train")
    example = scenes_edit(rng, "train")
    validate(example)
    assert [[part["type"] for part in message["content"]] for message in example["messages"]] == [
        ["image", "text"],
        ["image"],
    ]
    assert example["messages"][0]["content"][1]["text"] == instruction
    assert [image.tobytes() for image in example["images"]] == [render(scene).tobytes() for scene in (before, after)]


def test_the_steps_describe_the_scene_after_the_edit():
    example = scenes_edit(np.random.default_rng(5), "train")
    _, _, after = edit(np.random.default_rng(5), "train")
    assert example["steps"] == write_places(after)
    for thing in after.things:
        place = f"row {thing.y // 8 + 1} column {thing.x // 8 + 1}"
        assert re.search(rf"{place}: an? {thing.size} {thing.colour} {thing.shape}\.", example["steps"])


def test_the_detector_sees_the_edit():
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, _, after = edit(rng, "train")
        assert match_scene(detect(render(after)), after)
        assert not match_scene(detect(render(before)), after)
