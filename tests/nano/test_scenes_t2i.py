import re
from collections import Counter

import numpy as np
import pytest

from dps_hf.data.record import validate
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.scenes import SIZES
from dps_hf.nano.scenes_t2i import arrange_scene, is_drawn_in_training, is_held_out_wish, make_prompt, scenes_t2i
from dps_hf.nano.wording import DRAW, LANGUAGES, RELATIONS, Wish, parse_caption, parse_wish, write_relation


FORMS = ("things", "counting", "position")
ONE, OTHER = ("small", "red", "circle"), (None, "blue", "star")


def test_prompts_ask_for_what_the_picture_shows():
    rng = np.random.default_rng(0)
    sized, placed = 0, 0
    for _ in range(60):
        example = scenes_t2i(rng, "train")
        validate(example)
        prompt = example["messages"][0]["content"][0]["text"]
        wish = parse_wish(prompt)
        assert wish is not None, prompt
        assert fulfils(detect(example["images"][0]), wish), prompt
        sized += next(iter(wish.kinds))[0] is not None
        placed += wish.relation is not None
    assert 15 < sized < 45 and 3 < placed < 36


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("form", ["things", "counting", "position"])
def test_every_form_is_asked_for_in_every_language(form, language):
    rng = np.random.default_rng(0)
    for sizes in (True, False):
        scene, prompt = make_prompt(rng, "train", form, language, sizes)
        wish = parse_wish(prompt)
        assert {size is not None for size, _, _ in wish.kinds} == {sizes}
        assert (wish.relation is not None) == (form == "position")
        if form == "counting":
            assert len(wish.kinds) == 1 and wish.kinds.total() == len(scene.things) > 1


def test_relations_hold_by_a_clear_distance():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene, prompt = make_prompt(rng, "train", "position")
        one, relation, other = parse_wish(prompt).relation
        a = next(t for t in scene.things if (t.colour, t.shape) == one[1:])
        b = next(t for t in scene.things if (t.colour, t.shape) == other[1:])
        dx, dy = RELATIONS[relation]
        assert (a.x - b.x) * dx + (a.y - b.y) * dy >= 16, prompt


def test_a_prompt_always_has_the_same_picture():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene, prompt = make_prompt(rng, "train", "things", sizes=True)
        assert arrange_scene(parse_wish(prompt)) == scene


def test_pictures_of_training_are_distinguished_from_new_ones():
    rng = np.random.default_rng(2)
    shown = [make_prompt(rng, "train", form, sizes=sizes)[0] for form in FORMS * 50 for sizes in (True, False)]
    assert all(map(is_drawn_in_training, shown))
    held_out = [make_prompt(rng, "validation", form, sizes=sizes)[0] for form in FORMS * 50 for sizes in (True, False)]
    new = [scene for scene in held_out if not is_drawn_in_training(scene)]
    # "a red circle" is held out and "a big red circle" is not: the words are new, their picture is known.
    assert set(held_out) & set(shown) and len(new) > 50
    assert not set(new) & set(shown)
    unseen = [make_prompt(rng, "validation", "things", count=1, unseen="pair")[0] for _ in range(8)]
    assert not any(map(is_drawn_in_training, unseen))
    # No wish says where a big purple star is from a small one, so the held-out list is the only wish for its picture.
    stars = arrange_scene(Wish(Counter({("big", "purple", "star"): 1, ("small", "purple", "star"): 1})))
    assert not is_drawn_in_training(stars)


def test_things_are_drawn_in_the_order_of_the_words_and_apart():
    rng = np.random.default_rng(1)
    for form in ("things", "counting", "position") * 20:
        scene, _ = make_prompt(rng, "train", form)
        for i, one in enumerate(scene.things):
            for other in scene.things[:i]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= (SIZES[one.size] + SIZES[other.size]) / 2 + 8
                assert form == "position" or (other.x, other.y) < (one.x, one.y)


def test_the_plan_gives_each_thing_and_its_cell():
    rng = np.random.default_rng(0)
    for _ in range(40):
        example = scenes_t2i(rng, "train")
        planned = re.findall(r"row (\d) column (\d): ([^.]+)\.", example["steps"])
        assert " ".join(f"row {r} column {c}: {words}." for r, c, words in planned) == example["steps"]
        found = detect(example["images"][0])
        assert len(found) == len(planned)
        for row, column, words in planned:
            (kind,) = parse_caption(words)
            y, x = 8 * int(row) - 8, 8 * int(column) - 8  # the cell's corner
            (thing,) = [t for t in found if -2 <= t.x - x <= 7 and -2 <= t.y - y <= 7]
            assert (thing.size, thing.colour, thing.shape) == kind
        bands = [(int(row) - 1) // 2 for row, _, _ in planned]
        assert bands == sorted(bands), "a plan goes from above"


def test_a_wish_is_held_out_in_all_wordings():
    held_out = set()
    for relation, mirrored in {"left of": "right of", "above": "below"}.items():
        said = {
            is_held_out_wish(parse_wish(words))
            for language in LANGUAGES
            for way in DRAW[language]
            for words in (
                way.format(write_relation(ONE, relation, OTHER, language)),
                way.format(write_relation(OTHER, mirrored, ONE, language)),
            )
        }
        assert len(said) == 1
        held_out |= said
    assert is_held_out_wish(Wish(Counter((ONE, OTHER)))) == is_held_out_wish(Wish(Counter((OTHER, ONE))))


def test_about_one_wish_in_ten_is_held_out():
    kinds = [(size, colour, shape) for size in (None, "small") for colour in "abcdefgh" for shape in "uvwxyz"]
    wishes = [Wish(Counter((a, b)), (a, r, b)) for a in kinds[:20] for b in kinds[-20:] for r in RELATIONS]
    assert 0.08 < np.mean([is_held_out_wish(wish) for wish in wishes]) < 0.12


@pytest.mark.parametrize(("split", "unseen"), [("train", "pair"), ("validation", "word")])
def test_unseen_pairs_and_counts_are_available_in_validation_only(split, unseen):
    with pytest.raises(ValueError, match=f"unseen must be None, .* got '{unseen}' in {split}"):
        make_prompt(np.random.default_rng(0), split, "things", unseen=unseen)
