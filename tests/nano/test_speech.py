from collections import Counter

import numpy as np
import pytest

from dps_hf.nano.forms import read_forms, select_forms
from dps_hf.nano.speech import agree, decline, misspell, say_freely, write_freely
from dps_hf.nano.vocabulary import NOUNS, PAINTS, SIZE_WORDS
from dps_hf.nano.wording import LANGUAGES, Wish


def test_a_wish_is_said_in_many_ways_and_each_names_its_colour():
    wish = Wish(Counter({(None, "red", "heart"): 2}))
    for language in LANGUAGES:
        rng = np.random.default_rng(0)
        said = {say_freely(rng, wish, language) for _ in range(100)}
        assert len(said) > 80
    rng = np.random.default_rng(0)
    plain = [write_freely(rng, (None, "red", "heart"), 2, "en") for _ in range(100)]
    assert all(any(paint in text for paint in PAINTS["en"]["red"]) for text in plain)
    assert all(any(noun[1] in text for noun in NOUNS["en"]["heart"]) for text in plain)
    assert {"two", "2"} <= {text.split()[0] for text in plain}


def test_no_word_for_a_colour_or_shape_means_two():
    for language in LANGUAGES:
        for entries in (PAINTS[language], NOUNS[language], SIZE_WORDS[language]):
            words = [word if isinstance(word, str) else word[0] for entry in entries.values() for word in entry]
            assert len(words) == len({*words})


def test_a_relation_names_its_two_things_in_the_right_order():
    one, other = (None, "red", "circle"), (None, "blue", "heart")
    wish = Wish(Counter((one, other)), (one, "above", other))
    rng = np.random.default_rng(1)
    said = [say_freely(rng, wish, "en").casefold() for _ in range(400)]
    assert any(" on top of " in text for text in said) and any(" higher than " in text for text in said)
    for text in said:
        first, above, second = text.partition(" higher than ")
        if above and "heart" in second:
            assert "heart" not in first


def test_german_and_spanish_adjectives_agree():
    assert (decline("rot", "er"), decline("lila", "er"), decline("pink", "es")) == ("roter", "lila", "pinkes")
    assert (agree("rojo", "f", 2), agree("azul", "m", 2), agree("naranja", "f", 2)) == ("rojas", "azules", "naranja")


def test_a_misspelling_changes_one_word_and_no_chinese():
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = misspell(rng, "draw a yellow star", "en").split()
        assert sum(one != other for one, other in zip(words, ("draw", "a", "yellow", "star"), strict=True)) <= 1
    assert misspell(rng, "一个红色的圆形", "zh") == "一个红色的圆形"


@pytest.mark.parametrize("group", ["requests", "wishes", "capitals"])
def test_training_and_evaluation_share_no_request(group):
    for language, forms in read_forms(group).items():
        seen, held_out = select_forms(forms, False), select_forms(forms, True)
        assert held_out and not {*seen} & {*held_out} and {*seen, *held_out} == {*forms}, language
        assert len({*held_out}) <= len({*forms}) / 5


def test_each_question_has_forms_that_training_sees():
    for language in LANGUAGES:
        questions = read_forms("questions")[language]
        assert questions.keys() == read_forms("questions")["en"].keys()
        assert all(select_forms(forms, False) for forms in questions.values())
        assert sum(bool(select_forms(forms, True)) for forms in questions.values()) > len(questions) / 2


def test_what_the_first_evaluations_hold_out_stays_held_out():
    describe = read_forms("questions")
    for language, held_out in (("en", "what does the picture show?"), ("es", "¿qué hay en la imagen?")):
        assert held_out in select_forms(describe[language]["describe"], True)
    assert "muéstrame {}" in select_forms(read_forms("requests")["es"], True)
