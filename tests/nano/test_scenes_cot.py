import numpy as np

from dps_hf.data.record import validate
from dps_hf.nano.detector import detect, match_things
from dps_hf.nano.scenes_cot import scenes_cot
from dps_hf.nano.wording import parse_caption


def test_the_hint_is_a_caption_and_steps_are_separate_from_the_answer():
    rng = np.random.default_rng(3)
    right = []
    for _ in range(40):
        example = scenes_cot(rng, "train")
        validate(example)
        seen = example["hint"].removeprefix("I see ").removesuffix(".")
        right.append(match_things(detect(example["images"][0]), parse_caption(seen)))
        assert example["steps"].endswith(".")
        answer = example["messages"][1]["content"][0]["text"]
        assert answer.isalnum() and "<" not in answer
    assert np.mean(right) > 0.95
