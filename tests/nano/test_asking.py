import numpy as np
import pytest

from dps_hf.nano.asking import ASK, ask_freely
from dps_hf.nano.forms import read_forms
from dps_hf.nano.scenes import COLOURS, Scene, Thing, sample_scene
from dps_hf.nano.wording import LANGUAGES, parse_caption, write_caption


STAR = Thing("star", "red", "big", 16, 32)
CIRCLE = Thing("circle", "blue", "small", 48, 32)
SCENE = Scene((STAR, CIRCLE))
WHITE = (255, 255, 255)


def ask_all(kind: str, language: str = "en", scene: Scene = SCENE) -> set[str]:
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(60):
        answers.add(ask_freely(rng, scene, language, kind).answer)
    return answers


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("colour", {"red", "blue"}),
        ("shape", {"star", "circle"}),
        ("exists", {"yes", "no"}),
        ("count", {"0", "1", "2"}),
        ("is_colour", {"yes", "no"}),
        ("same", {"no"}),
        ("describe", {"a big red star and a small blue circle"}),
    ],
)
def test_a_question_has_the_answers_that_the_scene_allows(kind, answers, monkeypatch):
    rng, found = np.random.default_rng(0), set()
    while len(found) < len(answers):
        try:
            found.add(ask_freely(rng, SCENE, "en", kind).answer)
        except ValueError:  # this draw fits no question
            continue
    assert found == answers


def test_questions_of_all_kinds_come_in_all_languages_with_answers_in_these():
    rng, seen = np.random.default_rng(0), {language: set() for language in LANGUAGES}
    for language in LANGUAGES:
        for _ in range(1200):
            scene = sample_scene(rng)
            asked = ask_freely(rng, scene, language)
            seen[language].add(asked.kind)
            assert asked.text and asked.answer and "{" not in asked.text
            if asked.kind == "describe":
                assert parse_caption(asked.answer) == parse_caption(write_caption(scene))
    assert all(kinds == {*ASK} for kinds in seen.values())


def test_a_colour_question_names_the_only_thing_of_its_shape():
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = sample_scene(rng, 3)
        asked = ask_freely(rng, scene, "en")
        if asked.kind == "colour":
            assert asked.answer in COLOURS and any(thing.colour == asked.answer for thing in scene.things)


def test_held_out_questions_are_in_forms_that_training_excludes():
    rng = np.random.default_rng(0)
    training = {ask_freely(rng, SCENE, "en").text.casefold().strip("?!. ") for _ in range(3000)}
    held_out = {ask_freely(rng, SCENE, "en", held_out=True).text.casefold().strip("?!. ") for _ in range(300)}
    assert len(training & held_out) < 0.03 * len(held_out)
    assert len(read_forms("questions")["en"]["colour"]) > 20
