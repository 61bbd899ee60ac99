import re
from collections import Counter

import numpy as np
import pytest

from dps_hf.nano.questions import ASK, ask
from dps_hf.nano.scenes import Scene, Thing, sample_scene
from dps_hf.nano.wording import sort_in_reading_order, write_place


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(1000)]


def answer_to(question: str, scene: Scene) -> str:
    """Answers by other means than `ask` does: from the words of the question."""

    def fits(words: str) -> list[Thing]:
        singular = re.sub(r"(?<=cross)es$|(?<!s)s$", "", words)
        return [t for t in scene.things if set(singular.split()) <= {t.colour, t.shape, "thing"}]

    def yes(truth: bool) -> str:
        return "yes" if truth else "no"

    if match := re.fullmatch(r"Is there an? (.+)\?", question):
        return yes(bool(fits(match[1])))
    if match := re.fullmatch(r"How many (.+) are there\?", question):
        return str(len(fits(match[1])))
    if match := re.fullmatch(r"Are there more (.+) than (.+)\?", question):
        return yes(len(fits(match[1])) > len(fits(match[2])))
    if match := re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", question):
        (a,), (b,) = fits(match[1]), fits(match[3])
        return yes({"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[match[2]])
    match = re.fullmatch(r"What (size|colour|shape) is the (.+)\?", question)
    assert match, question
    (thing,) = fits(match[2])
    return getattr(thing, match[1])


def test_all_kinds_of_questions_are_asked_and_answered_correctly(scenes):
    rng = np.random.default_rng(1)
    kinds: Counter[str] = Counter()
    for scene in scenes:
        question, steps, answer, _ = ask(rng, scene)
        assert answer == answer_to(question, scene), (question, scene)
        assert steps.endswith(".")
        kinds[" ".join(question.split()[:2])] += 1
    assert set(kinds) == {"Is there", "Is the", "How many", "Are there", "What colour", "What shape", "What size"}


def test_steps_compare_thing_by_thing_and_end_in_the_answer(scenes):
    rng = np.random.default_rng(3)
    seen = 0
    for scene in scenes:
        question, steps, answer, _ = ask(rng, scene)
        compared = re.findall(r"(\w+)\? (\w+), (yes|no)\.", steps)
        assert all((asked == found) == (verdict == "yes") for asked, found, verdict in compared)
        if question.startswith(("How many", "Is there")):
            things = re.findall(r"an? (\w+) (\w+) (\w+):", steps)
            assert things == [(t.size, t.colour, t.shape) for t in sort_in_reading_order(scene)]
            counted = re.fullmatch(r".* I count (\d)\.", steps)
            assert counted and answer in (counted[1], "yes" if int(counted[1]) else "no")
            seen += 1
        if question.startswith("What "):
            assert steps.endswith(f"{answer}.") and steps.count("yes") == 1, (
                "it names one thing, and what was asked of it"
            )
        if question.startswith("Is the "):
            asked = re.fullmatch(r"Is the (.+) (.+ of|above|below) the (.+)\?", question)
            assert asked
            start, walk, end = re.fullmatch(
                r"(.+?\.) (row .+) (first: (?:row|column) \d\. second: .+)", steps
            ).groups()
            relation, line, sign = re.fullmatch(r"(.+): (row|column) ([<>])\.", start).groups()
            assert relation == asked[2]
            assert (line, sign) == {
                "left of": ("column", "<"),
                "right of": ("column", ">"),
                "above": ("row", "<"),
                "below": ("row", ">"),
            }[relation]
            match = re.fullmatch(rf"first: {line} (\d)\. second: {line} (\d)\. \1 {sign} \2\? (yes|no)\.", end)
            assert match and match[3] == answer
            assert (answer == "yes") == (match[1] < match[2] if sign == "<" else match[1] > match[2])
            met = re.findall(r"(row (\d) column (\d)): an? (\w+) (\w+ \w+): (.*?)(?= row \d column \d: |$)", walk)
            in_order = sort_in_reading_order(scene)
            assert [(one[0], one[3]) for one in met] == [(write_place(thing), thing.size) for thing in in_order]
            for _, row, column, _, name, comparisons in met:
                assert ("first: " in comparisons, "second: " in comparisons) == (name == asked[1], name == asked[3])
                if name in (asked[1], asked[3]):
                    number = {"row": row, "column": column}[line]
                    assert number == match[1 if name == asked[1] else 2]
                    assert f": {line} {number}." in comparisons
    assert seen > 20


@pytest.mark.parametrize("opening", ["Is there", "Is the", "Are there"])
def test_yes_and_no_are_equally_common(opening, scenes):
    rng = np.random.default_rng(2)
    asked = [ask(rng, scene) for scene in scenes + scenes]
    answers = [answer for question, _, answer, _ in asked if question.startswith(opening)]
    assert set(answers) == {"yes", "no"}
    assert answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        ("exists", "Is there a"),
        ("count", "How many"),
        ("compare", "Are there more"),
        ("relate", "Is the"),
        ("attribute", "What"),
    ],
)
def test_a_kind_of_question_can_be_chosen(kind, opening):
    scene = Scene((Thing("circle", "red", "big", 16, 16), Thing("star", "blue", "small", 48, 48)))
    rng = np.random.default_rng(0)
    asked = [ask(rng, scene, kind) for _ in range(10)]
    assert kind in ASK and all(one.kind == kind and one.text.startswith(opening) for one in asked)


def test_a_question_that_does_not_fit_the_scene_raises_an_error():
    scene = Scene((Thing("circle", "red", "big", 16, 16),))
    with pytest.raises(ValueError, match="found no question of kind 'relate'"):
        ask(np.random.default_rng(0), scene, "relate")
    with pytest.raises(ValueError, match=r"kind must be one of exists, .*; got 'colour'"):
        ask(np.random.default_rng(0), scene, "colour")
