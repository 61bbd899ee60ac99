from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dps_hf.data.guidance import LEVELS, Schedule, guide, read_schedules
from dps_hf.data.mixture import Mixture
from dps_hf.data.record import record, validate


RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def question():
    return record("t", [RED, "How many?"], ["2"], hint="Count them.", steps="One, two.")


def texts(example) -> list[str]:
    return ["".join(part.get("text", "") for part in message["content"]) for message in example["messages"]]


def test_each_level_gives_its_help_and_no_other(question):
    guided = {level: guide(question, level) for level in LEVELS}
    assert texts(guided["none"]) == ["How many?", "2"]
    assert texts(guided["hint"]) == ["How many? Hint: Count them.", "2"]
    assert texts(guided["steps"]) == ["How many?", "<think>One, two.</think>2"]
    for example in guided.values():
        validate(example)
        assert example["images"] == [RED]
    assert texts(question) == ["How many?", "2"], "the record itself was changed"


def test_a_plan_stands_before_the_drawing():
    planned = guide(record("t", ["a blue square"], [BLUE], steps="row 2 column 2."), "steps")
    assert planned["messages"][1]["content"] == [
        {"type": "text", "text": "<think>row 2 column 2.</think>"},
        {"type": "image"},
    ]


def test_worked_steps_lead_to_the_answers_of_further_questions_too(question):
    asked = {**question, "more": [("Wie viele?", "zwei")]}
    assert guide(asked, "steps")["more"] == [("Wie viele?", "<think>One, two.</think>zwei")]
    assert guide(asked, "none")["more"] == asked["more"] == [("Wie viele?", "zwei")]


def test_where_there_is_no_help_of_a_kind_the_record_stays_as_it_is():
    plain = record("t", ["?"], ["!"])
    assert all(guide(plain, level) == plain for level in LEVELS)


def test_an_unknown_level_is_refused(question):
    with pytest.raises(ValueError, match="level must be one of none, hint, steps; got 'more'"):
        guide(question, "more")


def test_shares_change_evenly_from_start_to_end(rng):
    schedule = Schedule({"steps": 3, "none": 1}, {"none": 1})
    for progress, share in ((0, 0.75), (0.5, 0.375), (1, 0), (7, 0)):
        counts = Counter(schedule.level(rng, progress) for _ in range(1000))
        assert counts["steps"] / 1000 == pytest.approx(share, abs=0.05)
        assert set(counts) <= {"steps", "none"}


def test_without_an_end_nothing_changes():
    draws = [[Schedule().level(np.random.default_rng(i), progress) for i in range(50)] for progress in (0, 1)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("start", "end", "complaint"),
    [
        ({"more": 1}, None, "start must give shares of none, hint, steps; got 'more'"),
        ({"none": -1}, None, r"start\['none'\] must be 0 or more and finite; got -1"),
        ({"none": 1}, {"hint": float("inf")}, r"end\['hint'\] must be 0 or more and finite; got inf"),
        ({"none": 0}, None, "start must give at least one level a share above 0"),
        ({"none": 1}, {}, "end must give at least one level a share above 0"),
    ],
)
def test_bad_schedules_are_named(start, end, complaint):
    with pytest.raises(ValueError, match=complaint):
        Schedule(start, end)


def test_a_mixture_anneals_its_guidance_over_its_length():
    mixture = Mixture(
        {"dps_hf.nano.tasks.scenes_cot": 1}, length=300, guidance={"scenes_cot": Schedule({"steps": 1}, {"none": 1})}
    )
    thought = ["<think>" in texts(mixture[i])[1] for i in range(300)]
    assert sum(thought[:75]) > 50 and sum(thought[-75:]) < 25


def test_a_schedule_is_read_as_recipes_write_it():
    read = read_schedules({"facts": {"start": {"hint": 1}, "end": {"none": 1}}, "scenes_cot": {}})
    assert read == {"facts": Schedule({"hint": 1}, {"none": 1}), "scenes_cot": Schedule()}


@pytest.mark.parametrize("wrong", [{"hint": 1}, "hint", None])
def test_a_schedule_that_is_none_is_named_with_its_task(wrong):
    with pytest.raises(ValueError, match=r"guidance\['facts'\] must have start, and end if shares change"):
        read_schedules({"facts": wrong})
