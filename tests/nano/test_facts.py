import numpy as np
import pytest

from dps_hf.data.record import validate
from dps_hf.nano.facts import BACKWARD, FORWARD, facts, read_capitals
from dps_hf.nano.wording import LANGUAGES


def dialogue(example) -> tuple[str, str]:
    return tuple(message["content"][0]["text"] for message in example["messages"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_country_has_a_different_capital(language):
    assert len(read_capitals(language)) == 195
    assert len(set(read_capitals(language).values())) == 195
    assert all(name == name.strip() != "" for pair in read_capitals(language).items() for name in pair)


def test_capitals_have_their_names_in_each_language():
    assert read_capitals()["France"] == "Paris" and read_capitals()["the Netherlands"] == "Amsterdam"
    assert (read_capitals("de")["Österreich"], read_capitals("es")["Austria"], read_capitals("zh")["奥地利"]) == (
        "Wien",
        "Viena",
        "维也纳",
    )
    with pytest.raises(ValueError, match="language must be one of en, de, es, zh; got 'fr'"):
        read_capitals("fr")


def test_questions_are_answered_from_the_table_both_ways_in_every_language():
    rng = np.random.default_rng(0)
    right, asked_in = {}, {}
    for language in LANGUAGES:
        for country, capital in read_capitals(language).items():
            forward = {question.format(country): capital for question in FORWARD[language]}
            backward = {question.format(capital): country for question in BACKWARD[language]}
            assert not right.keys() & (forward | backward).keys(), "a question has two answers"
            right |= forward | backward
            asked_in |= dict.fromkeys(forward, (language, True)) | dict.fromkeys(backward, (language, False))
    asked = []
    for _ in range(600):
        example = facts(rng, "train")
        validate(example)
        question, answer = dialogue(example)
        assert answer.casefold() == right[question].casefold().rstrip(".") + "."
        assert not answer[0].islower()
        asked.append(asked_in[question])
    assert {language for language, _ in asked} == set(LANGUAGES)
    assert np.mean([language == "en" for language, _ in asked]) == pytest.approx(0.6, abs=0.08)
    assert np.mean([forward for _, forward in asked]) == pytest.approx(2 / 3, abs=0.08)


def test_nothing_is_held_out():
    assert dialogue(facts(np.random.default_rng(3), "train")) == dialogue(
        facts(np.random.default_rng(3), "validation")
    )
