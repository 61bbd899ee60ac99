from collections import Counter

import pytest

from dps_hf.nano.people import is_right, parse_scene, read_questions, read_wishes
from dps_hf.nano.scenes_t2i import arrange_scene
from dps_hf.nano.wording import LANGUAGES, Wish


@pytest.mark.parametrize("read", [read_wishes, read_questions])
def test_people_wrote_300_in_four_languages_half_of_them_in_english(read):
    counts = Counter(one.language for one in read())
    assert counts == dict(zip(LANGUAGES, (150, 50, 50, 50)))


def test_each_wish_and_each_scene_can_be_drawn():
    for scene in (*(one.wish for one in read_wishes()), *(one.scene for one in read_questions())):
        assert 1 <= len(arrange_scene(scene).things) <= 4


def test_a_scene_is_parsed():
    assert parse_scene("big red heart + 2 blue star").kinds == {("big", "red", "heart"): 1, (None, "blue", "star"): 2}
    one, other = (None, "red", "circle"), (None, "blue", "star")
    assert parse_scene("red circle left of blue star") == Wish(Counter((one, other)), (one, "left of", other))
    with pytest.raises(ValueError, match="got 'red cat' in 'red cat'"):
        parse_scene("red cat")


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("Red.", ("red",), True),
        ("a big red heart", ("red heart",), True),
        ("reddish", ("red",), False),
        ("no", ("no",), True),
        ("It is not, no", ("no",), False),
        ("2", ("two", "2"), True),
        ("不是", ("是",), False),
        ("是", ("是",), True),
        ("红色", ("红",), True),
        ("sí", ("sí", "si"), True),
        ("", ("yes",), False),
    ],
)
def test_an_answer_is_right_if_it_contains_an_accepted_one(answer, accepted, right):
    assert is_right(answer, accepted) == right
