import numpy as np
import pytest
from PIL import Image

from dps_hf.judges.verdict import Case
from dps_hf.nano import emoji
from dps_hf.nano.detector import detect, match_things
from dps_hf.nano.exact_judge import exact_judge, score_scene
from dps_hf.nano.scenes import Scene, Thing, render, sample_scene
from dps_hf.nano.wording import LANGUAGES, parse_caption, write_caption, write_relation


STAR = Thing("star", "red", "big", 16, 32)
CIRCLE = Thing("circle", "blue", "small", 48, 32)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red star",
        "Show me a red star.",
        "Bitte zeichnen: ein roter Stern.",
        "Dibuja una estrella roja.",
        "画一个红色的星形。",
    ],
)
def test_what_is_to_be_drawn_is_the_same_in_all_words(prompt):
    right, wrong = exact_judge([Case(prompt, render(Scene((thing,)))) for thing in (STAR, CIRCLE)])
    assert right.score == 1 > wrong.score


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_drawing_is_right_only_when_its_things_stand_as_they_should(language):
    star, circle = (None, "red", "star"), (None, "blue", "circle")
    drawing = render(Scene((STAR, CIRCLE)))
    prompts = [write_relation(star, relation, circle, language) for relation in ("left of", "right of")]
    right, wrong = exact_judge([Case(prompt, drawing) for prompt in prompts])
    assert right.score == 1
    assert wrong.scores == {"exact": 0, "things": 1, "shapes": 1, "colours": 1}
    assert wrong.rationale.endswith("; wanted a red star right of a blue circle")


def test_scenes_are_right_just_when_the_detector_finds_the_same_things():
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng) for _ in range(40)]
    wanted = [scene if i % 2 else sample_scene(rng) for i, scene in enumerate(drawn)]
    prompts = [write_caption(scene, sizes=i % 3 > 0) for i, scene in enumerate(wanted)]
    verdicts = exact_judge([Case(prompt, render(scene)) for prompt, scene in zip(prompts, drawn)])
    right = [match_things(detect(render(scene)), parse_caption(prompt)) for prompt, scene in zip(prompts, drawn)]
    assert [verdict.scores["exact"] for verdict in verdicts] == right
    assert [verdict.score == 1 for verdict in verdicts] == right


def test_a_drawing_that_is_half_right_scores_between_right_and_wrong():
    prompt = "a big red star and a small blue circle"
    drawings = [Scene((STAR, CIRCLE)), Scene((STAR,)), Scene((Thing("heart", "green", "big", 32, 32),)), Scene(())]
    both, one, other, blank = exact_judge([Case(prompt, render(scene)) for scene in drawings])
    assert both.score == 1 > one.score > other.score == blank.score == 0
    assert one.scores == pytest.approx({"exact": 0, "things": 2 / 3, "shapes": 2 / 3, "colours": 2 / 3})
    assert one.rationale == "wanted 1 big red star, 1 small blue circle; found 1 big red star"


def test_a_size_that_is_not_said_is_left_to_the_drawing_and_never_taken_twice():
    two = parse_caption("a big red star and a small red star")
    assert score_scene(two, parse_caption("two red stars"))[0]["exact"] == 1
    assert score_scene(two, parse_caption("a red star and a small red star"))[0]["exact"] == 1
    assert score_scene(two, parse_caption("a red star and two small red stars"))[0]["exact"] == 0


@pytest.mark.parametrize(
    ("prompt", "answer", "score"),
    [
        ("What is the capital of France?", "Paris.", 1),
        ("What is the capital of France?", "paris", 1),
        ("What is the capital of France?", "<think>France. Paris.</think>Lyon.", 0),
        ("What is the capital of France?", "<think>It is Paris", 0),
        ("Which country has the capital Nassau?", "Bahamas", 1),
        ("Wie heißt die Hauptstadt? Das Land: Frankreich.", "Paris.", 1),
        ("¿De qué país es capital París?", "Francia.", 1),
        ("法国的首都是哪里？", "里昂。", 0),
    ],
)
def test_facts_are_judged_by_the_answer_after_the_reasoning(prompt, answer, score):
    [verdict] = exact_judge([Case(prompt, answer, origin="somewhere")])
    assert (verdict.score, verdict.judge, verdict.origin) == (score, "exact", "somewhere")


STEPS = "a big red star: star? star, yes. 1. I count 1."  # four sentences


@pytest.mark.parametrize(
    ("thinking", "score"),
    [(STEPS, 1), ("a big red star: star? star, yes.", 4 / 6), ("", 0), ("I count 1. I count 1.", 2 / 6), ("?", 0)],
)
def test_steps_are_judged_where_they_are_known(thinking, score):
    (verdict,) = exact_judge([Case("How many stars?", f"<think>{thinking}</think>1", answers=("1",), steps=STEPS)])
    assert verdict.scores == {"exact": 1, "steps": pytest.approx(score)}


def test_who_was_not_asked_to_think_owes_no_steps():
    (verdict,) = exact_judge([Case("How many stars?", "1", answers=("1",), steps=STEPS)])
    assert verdict.scores == {"exact": 1}


def test_steps_are_not_judged_where_none_are_known():
    (verdict,) = exact_judge([Case("How many stars?", f"<think>{STEPS}</think>2", answers=("1",))])
    assert verdict.scores == {"exact": 0}


def test_answers_that_are_known_decide():
    picture = render(Scene((STAR, CIRCLE)))
    cases = [
        Case("Was ist die Hauptstadt von Frankreich?", "Paris", answers=("Paris",)),
        Case("What is this?", "a dog", (picture,), answers=("cat", "kitten")),
        Case("What do you see?", "a big red star", (picture,), answers=("a big red star and a small blue circle",)),
        Case("What do you see?", "something", (picture,), answers=("a big red star and a small blue circle",)),
    ]
    assert [v.scores["exact"] for v in exact_judge(cases)] == [1, 0, 0, 0]
    assert exact_judge(cases)[2].scores["things"] == pytest.approx(2 / 3)


def test_what_cannot_be_checked_has_no_verdict():
    white = Image.new("RGB", (64, 64), "white")
    assert (
        exact_judge([Case("Why?", "Because."), Case("a nice view", white), Case("dream, noto style", white)])
        == [None] * 3
    )


def test_an_emoji_is_right_when_none_of_its_style_is_nearer():
    pair = next(p for p in emoji.read_pairs() if p.names["en"] == "green apple" and p.style == "noto")
    other = next(p for p in emoji.read_pairs() if p.names["en"] == "snowman" and p.style == "noto")
    pictures = [emoji.get_picture(pair), emoji.get_picture(pair).resize((32, 32)), emoji.get_picture(other)]
    cases = [
        Case(prompt, p) for p in pictures for prompt in ("green apple, noto style", "Draw Green apple, noto style.")
    ]
    same, _, small, _, wrong, _ = verdicts = exact_judge(cases)
    assert same.scores == small.scores == {"exact": 1, "likeness": 1}
    assert wrong.scores["exact"] == 0 and wrong.scores["likeness"] < 1 and "snowman" in wrong.rationale
    assert [v.scores for v in verdicts[::2]] == [v.scores for v in verdicts[1::2]]


def test_a_name_that_begins_like_a_way_of_asking_is_a_name():
    pair = next(p for p in emoji.read_pairs() if p.names["zh"].startswith("画") and p.style == "noto")
    prompt = f"{pair.names['zh']}, noto style"
    verdicts = exact_judge([Case(prompt, emoji.get_picture(pair)), Case(f"画{prompt}。", emoji.get_picture(pair))])
    assert [verdict.score for verdict in verdicts] == [1, 1]
