import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dps_hf.data.record import validate
from dps_hf.data.scenes import (
    COLOURS,
    GAP,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    ask,
    caption,
    held_out,
    parse_caption,
    render,
    sample_scene,
    scenes_cot,
    scenes_i2t,
    scenes_t2i,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(1500)]


def box(thing: Thing) -> tuple[int, int, int, int]:
    half = SIZES[thing.size] // 2
    return thing.x - half, thing.y - half, thing.x + half - 1, thing.y + half - 1


def test_things_stay_inside_and_apart(scenes):
    for scene in scenes:
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = box(thing)
            assert min(left, top) >= 1 and max(right, bottom) <= 62
            for other in scene.things[:i]:
                a, b = box(thing), box(other)
                assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) > GAP


def test_in_a_tidy_scene_boxes_begin_and_end_at_multiples_of_8():
    rng = np.random.default_rng(0)
    for thing in (thing for _ in range(200) for thing in sample_scene(rng, tidy=True).things):
        left, top, right, bottom = box(thing)
        assert left % 8 == top % 8 == (right + 1) % 8 == (bottom + 1) % 8 == 0
        assert min(left, top) >= 0 and max(right, bottom) <= 63


def test_a_third_of_the_scenes_hold_one_thing_and_none_more_than_four(scenes):
    counts = Counter(len(scene.things) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert counts[1] / len(scenes) == pytest.approx(0.35, abs=0.04)
    assert counts[2] / len(scenes) == pytest.approx(0.30, abs=0.04)


def test_the_same_generator_gives_the_same_scene():
    assert sample_scene(np.random.default_rng(7)) == sample_scene(np.random.default_rng(7))
    assert len(sample_scene(np.random.default_rng(7), count=3).things) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_is_drawn_in_its_colour_around_its_centre(shape):
    image = render(Scene((Thing(shape, "green", "big", 20, 40),)))
    pixels = np.asarray(image)
    assert image.size == (64, 64) and image.mode == "RGB"
    assert tuple(pixels[40, 20]) == COLOURS["green"]
    rows, columns = np.nonzero((pixels != 255).any(-1))
    assert (columns.min() + columns.max()) / 2 == pytest.approx(20, abs=1)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(40, abs=1)
    assert columns.max() - columns.min() + 1 == pytest.approx(SIZES["big"], abs=2)


def test_outlines_are_anti_aliased():
    pixels = np.asarray(render(Scene((Thing("circle", "black", "big", 30, 30),))))
    assert len(np.unique(pixels[..., 0])) > 10


def test_captions_go_from_left_to_right_and_count_what_is_alike():
    red = Thing("circle", "red", "small", 40, 10)
    scene = Scene((red, Thing("star", "orange", "big", 20, 50), Thing("circle", "red", "small", 55, 30)))
    assert caption(scene) == "a big orange star and two small red circles"
    assert caption(scene, sizes=False) == "an orange star and two red circles"
    assert caption(Scene((*scene.things, Thing("cross", "blue", "big", 10, 10)))) == (
        "a big blue cross, a big orange star and two small red circles"
    )


def test_captions_parse_back_to_what_is_in_the_scene(scenes):
    for scene in scenes:
        kinds = Counter((t.size, t.colour, t.shape) for t in scene.things)
        assert parse_caption(caption(scene)) == kinds
        assert parse_caption(caption(scene, sizes=False)) == Counter((None, t.colour, t.shape) for t in scene.things)


def test_parsing_forgives_how_it_is_written_and_refuses_everything_else():
    wanted = Counter({("small", "red", "circle"): 1, (None, "orange", "cross"): 2})
    for text in ("A small red circle, two orange crosses.", " a  small red circle and two orange crosses"):
        assert parse_caption(text) == wanted
    for text in ("", "hello", "a red", "a red circle and", "a grey circle", "five red circles", "a circle red"):
        assert parse_caption(text) is None


def test_one_scene_in_ten_is_held_out_whatever_its_count(scenes):
    for several in (False, True):
        found = [held_out(scene) for scene in scenes if (len(scene.things) > 1) == several]
        assert 0.06 < np.mean(found) < 0.14


def test_holding_out_ignores_the_order_of_things_and_small_moves():
    things = (Thing("circle", "red", "big", 20, 20), Thing("star", "blue", "small", 50, 50))
    moved = (Thing("circle", "red", "big", 21, 20), things[1])
    assert held_out(Scene(things)) == held_out(Scene(things[::-1])) == held_out(Scene(moved))


def test_drawing_tasks_keep_the_splits_apart():
    def pictures(split):
        rng = np.random.default_rng(0)
        return {scenes_t2i(rng, split)["images"][0].tobytes() for _ in range(150)}

    assert not pictures("train") & pictures("validation")
    with pytest.raises(ValueError, match="split must be 'train' or 'validation'; got 'test'"):
        scenes_t2i(np.random.default_rng(0), "test")


def test_prompts_ask_for_what_the_picture_shows():
    from dps_hf.evaluation.detector import detect, same_things

    rng = np.random.default_rng(0)
    named = 0
    for _ in range(60):
        example = scenes_t2i(rng, "train")
        validate(example)
        prompt = example["messages"][0]["content"][0]["text"]
        kinds = parse_caption(re.sub(r"^(Draw|A picture of|Please draw) ", "", prompt))
        assert kinds is not None, prompt
        assert same_things(detect(example["images"][0]), kinds), prompt
        named += next(iter(kinds))[0] is not None
    assert 15 < named < 45


def test_descriptions_fit_the_picture():
    from dps_hf.evaluation.detector import detect, same_things

    rng = np.random.default_rng(0)
    for _ in range(30):
        example = scenes_i2t(rng, "validation")
        validate(example)
        kinds = parse_caption(example["messages"][1]["content"][0]["text"])
        assert kinds is not None and same_things(detect(example["images"][0]), kinds)


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


def test_questions_are_answered_rightly_and_all_kinds_are_asked(scenes):
    rng = np.random.default_rng(1)
    kinds: Counter[str] = Counter()
    for scene in scenes:
        question, steps, answer = ask(rng, scene)
        assert answer == answer_to(question, scene), (question, scene)
        assert steps.endswith(".")
        kinds[" ".join(question.split()[:2])] += 1
    assert set(kinds) == {"Is there", "Is the", "How many", "Are there", "What colour", "What shape", "What size"}


@pytest.mark.parametrize("opening", ["Is there", "Is the", "Are there"])
def test_yes_and_no_are_equally_common(opening, scenes):
    rng = np.random.default_rng(2)
    asked = [ask(rng, scene) for scene in scenes + scenes]
    answers = [answer for question, _, answer in asked if question.startswith(opening)]
    assert set(answers) == {"yes", "no"}
    assert answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.08)


def test_two_of_three_answers_are_thought_through():
    rng = np.random.default_rng(3)
    texts = []
    for _ in range(300):
        example = scenes_cot(rng, "train")
        validate(example)
        texts.append(example["messages"][1]["content"][0]["text"])
    thought = [text for text in texts if re.fullmatch(r"<think>I see .+\..+\.</think>\w+", text)]
    assert len(thought) / len(texts) == pytest.approx(2 / 3, abs=0.1)
    assert all("<" not in text for text in texts if text not in thought)


def test_pictures_are_plain_pil_images():
    assert isinstance(scenes_i2t(np.random.default_rng(0), "train")["images"][0], Image.Image)
