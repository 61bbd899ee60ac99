from collections import Counter

import numpy as np
import pytest

from dps_hf.data.record import get_text, validate
from dps_hf.nano import emoji
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.everyday import QUESTIONS, find_usual, sample_wish
from dps_hf.nano.scenes import has_unseen_count, has_unseen_pair, render
from dps_hf.nano.scenes_t2i import arrange_scene, is_held_out_wish
from dps_hf.nano.talk import list_unknown
from dps_hf.nano.tasks import TASKS
from dps_hf.nano.wording import LANGUAGES


NEW = ("everyday_t2i", "everyday_i2t", "everyday_emoji_t2i", "everyday_emoji_i2t", "talk")


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_everyday_tasks_make_records(name, split):
    rng = np.random.default_rng(0)
    for _ in range(30):
        example = TASKS[name](rng, split)
        validate(example)
        assert example["task"] == name
    with pytest.raises(ValueError, match="split must be"):
        TASKS[name](rng, "test")


def test_wishes_are_drawn_as_they_are_meant_and_keep_to_their_split():
    rng, numbers = np.random.default_rng(0), Counter()
    for split in ("train", "validation"):
        for _ in range(100):
            wish = sample_wish(rng, split)
            scene = arrange_scene(wish)
            assert is_held_out_wish(wish) == (split == "validation")
            assert not has_unseen_pair(scene) and not has_unseen_count(scene)
            assert fulfils(detect(render(scene)), wish)
            numbers[tuple(sorted(wish.kinds.values()))] += 1
    assert {(1,), (1, 1), (1, 2), (3,)} <= {*numbers}


def test_questions_about_a_picture_share_it():
    example = TASKS["everyday_i2t"](np.random.default_rng(0), "train")
    assert len(example["images"]) == 1 and len(example["more"]) == QUESTIONS - 1
    assert example["steps"].startswith("row ")


def test_an_emoji_without_a_style_always_looks_the_same():
    for pair in emoji.select_pairs("train")[:200]:
        usual = find_usual(pair)
        assert usual.codepoints == pair.codepoints and find_usual(usual) == usual


def test_what_nobody_can_draw_is_no_emoji_and_is_said_so():
    for language in LANGUAGES:
        names = {pair.names[language].casefold() for pair in emoji.read_pairs()}
        assert len(list_unknown(language)) > 50 and not {*list_unknown(language)} & names
    rng = np.random.default_rng(0)
    answers = [get_text(TASKS["talk"](rng, "train")["messages"][1:]) for _ in range(300)]
    assert any(answer.startswith("I draw shapes and emoji; I do not know") for answer in answers)
    assert "I see no picture." in answers and "Hello! I draw shapes and emoji." in answers
