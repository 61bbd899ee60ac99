import numpy as np

from dps_hf.data.facts import BACKWARD, CAPITALS, FORWARD, facts
from dps_hf.data.record import validate


def dialogue(example) -> tuple[str, str]:
    return tuple(message["content"][0]["text"] for message in example["messages"])


def test_every_country_has_one_capital_of_its_own():
    assert len(CAPITALS) == 195
    assert len(set(CAPITALS.values())) == 195
    assert CAPITALS["France"] == "Paris" and CAPITALS["the Netherlands"] == "Amsterdam"


def test_questions_are_answered_from_the_table_both_ways():
    rng = np.random.default_rng(0)
    right = {}
    for country, capital in CAPITALS.items():
        right |= {question.format(country): capital for question in FORWARD}
        right |= {question.format(capital): country for question in BACKWARD}
    backward = 0
    for _ in range(500):
        example = facts(rng, "train")
        validate(example)
        question, answer = dialogue(example)
        assert answer.casefold() == right[question].casefold().rstrip(".") + "."
        assert answer[0].isupper()
        backward += "of which" in question or "has the" in question
    assert 100 < backward < 240


def test_nothing_is_held_out():
    assert dialogue(facts(np.random.default_rng(3), "train")) == dialogue(
        facts(np.random.default_rng(3), "validation")
    )
