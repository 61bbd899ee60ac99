from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest

from dps_hf.nano.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, sample_scene
from dps_hf.nano.wording import (
    DRAW,
    LANGUAGES,
    MOST,
    RELATIONS,
    Wish,
    count_kinds,
    parse_caption,
    parse_wish,
    say,
    strip_request,
    write_caption,
    write_phrase,
    write_relation,
)


KINDS = tuple(product((None, *SIZES), COLOURS, SHAPES))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(300)]


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ("a small red circle", "two small orange crosses", "an orange star")),
        ("de", ("ein kleiner roter Kreis", "zwei kleine orangefarbene Kreuze", "ein orangefarbener Stern")),
        ("es", ("un círculo rojo pequeño", "dos cruces naranja pequeñas", "una estrella naranja")),
        ("zh", ("一个红色的小圆形", "两个橙色的小十字", "一个橙色的星形")),
    ],
)
def test_phrases_follow_the_grammar_of_their_language(language, words):
    kinds = (("small", "red", "circle"), 1), (("small", "orange", "cross"), 2), ((None, "orange", "star"), 1)
    assert tuple(write_phrase(kind, number, language) for kind, number in kinds) == words


def test_no_phrase_is_ambiguous_in_any_language():
    phrases = Counter(
        write_phrase(kind, number, language).casefold()
        for language in LANGUAGES
        for kind in KINDS
        for number in range(1, MOST + 1)
    )
    assert phrases.most_common(1)[0][1] == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_parses_back(language):
    for kind, number in product(KINDS, range(1, MOST + 1)):
        assert parse_wish(write_phrase(kind, number, language)) == Wish(Counter({kind: number}))


def test_captions_go_row_by_row_and_group_equal_things():
    upper_left, upper_right = Thing("circle", "red", "small", 10, 14), Thing("star", "orange", "big", 45, 12)
    lower = Thing("circle", "red", "small", 30, 50)
    scene = Scene((lower, upper_right, upper_left))
    assert write_caption(scene) == "two small red circles and a big orange star"
    assert write_caption(scene, sizes=False) == "two red circles and an orange star"
    assert write_caption(Scene((lower, upper_right))) == "a big orange star and a small red circle"


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_parse_back_to_what_is_in_the_scene(language, scenes):
    for scene, sizes in product(scenes, (True, False)):
        kinds = count_kinds(scene, sizes)
        assert parse_caption(write_caption(scene, sizes, language)) == kinds
        assert parse_wish(write_caption(scene, sizes, language)) == Wish(kinds)


def test_parsing_ignores_case_and_spaces_and_rejects_other_texts():
    wanted = Counter({("small", "red", "circle"): 1, (None, "orange", "cross"): 2})
    for text in ("A small red circle, two orange crosses.", " a  small red circle and two orange crosses"):
        assert parse_caption(text) == wanted
    for text in ("", "hello", "a red", "a red circle and", "a grey circle", "five red circles", "a circle red"):
        assert parse_caption(text) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_templates_are_parsed_including_held_out_ones(language):
    one, other = ("small", "red", "circle"), (None, "orange", "star")
    wishes = [Wish(Counter({one: 2, other: 1})), Wish(Counter((one, other)), (one, "above", other))]
    for way, wish in product(DRAW[language], wishes):
        asked = way.format(say(wish, language))
        assert parse_wish(asked) == wish, asked
        assert parse_wish(asked.upper().rstrip(".。")) == wish, asked
        assert strip_request(asked) == say(wish, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_relations_are_parsed_without_ambiguity(language):
    rng = np.random.default_rng(0)
    for relation in RELATIONS:
        for i, j in rng.integers(len(KINDS), size=(50, 2)):
            sentence = write_relation(KINDS[i], relation, KINDS[j], language)
            assert parse_wish(sentence) == Wish(Counter((KINDS[i], KINDS[j])), (KINDS[i], relation, KINDS[j]))
    one, other = KINDS[0], KINDS[-1]
    sentences = {write_relation(a, r, b, language) for a, b in permutations((one, other)) for r in RELATIONS}
    assert len(sentences) == 2 * len(RELATIONS)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "Draw.", "Draw me a car.", "a red circle left of", "two red circles left of a blue star",
     "a red circle beside a blue star", "画。", "cat, noto style"],
)  # fmt: skip
def test_a_text_that_is_no_wish_is_parsed_to_none(text):
    assert parse_wish(text) is None
