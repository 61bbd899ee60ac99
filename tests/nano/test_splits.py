"""Training contains nothing that is held out, and the evaluation uses only what is held out."""

import importlib
import re
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from dps_hf.data.record import Record
from dps_hf.nano import emoji
from dps_hf.nano import evaluation as tasks
from dps_hf.nano.held_out import select_emoji, select_prompts
from dps_hf.nano.scenes import COLOURS, SHAPES, SIZES, Scene, has_unseen_count, has_unseen_pair, is_held_out
from dps_hf.nano.scenes_t2i import is_held_out_wish
from dps_hf.nano.splits import UNSEEN_COUNTS, UNSEEN_PAIRS, choose_held_out_style
from dps_hf.nano.tasks import TASKS
from dps_hf.nano.wording import DESCRIBE, DRAW, LANGUAGES, MOST, parse_wish, write_phrase


SCENES = [name for name in TASKS if name.startswith("scenes")]
RECORDS = 3000
DRAWN = [one.__name__ for one in tasks.EVALUATIONS if one.__name__.startswith("scenes_t2i")]
BLANK = Image.new("RGB", (64, 64), "white")


@lru_cache(maxsize=1)
def trained() -> tuple[dict[str, list[Scene]], dict[str, list[Record]]]:
    """Of each task: the scenes behind the pictures of its training records, and the records."""
    scenes: dict[str, list[Scene]] = {}
    records: dict[str, list[Record]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for task in SCENES:
            seen = scenes[task] = []
            module = importlib.import_module(f"dps_hf.nano.{task}")
            patch.setattr(module, "render", lambda scene, seen=seen: seen.append(scene) or BLANK)
            rng = np.random.default_rng(0)
            records[task] = [TASKS[task](rng, "train") for _ in range(RECORDS)]
    return scenes, records


def texts(task: str) -> list[str]:
    """All that the records say, hints and steps included."""
    records = trained()[1][task]
    parts = [part for example in records for message in example["messages"] for part in message["content"]]
    said = [part["text"] for part in parts if part["type"] == "text"]
    return said + [example[field] for example in records for field in ("hint", "steps")]


@pytest.mark.parametrize("task", SCENES)
def test_no_training_picture_contains_held_out_content(task):
    scenes = trained()[0][task]
    assert len(scenes) >= RECORDS
    assert not [scene for scene in scenes if has_unseen_pair(scene) or has_unseen_count(scene) or is_held_out(scene)]


@pytest.mark.parametrize("task", SCENES)
def test_no_training_text_names_an_unseen_pair(task):
    phrases = {
        write_phrase((size, colour, shape), number, language)
        for colour, shape in UNSEEN_PAIRS
        for size in (None, *SIZES)
        for number in range(1, MOST + 1)
        for language in LANGUAGES
    } | {f"{colour} {shape}" for colour, shape in UNSEEN_PAIRS}
    named = re.compile("|".join(map(re.escape, phrases)), re.IGNORECASE)
    assert not [text for text in texts(task) if named.search(text)]


@pytest.mark.parametrize("task", SCENES)
def test_no_training_text_uses_a_held_out_template(task):
    held_out_ways = [ways[-1] for ways in (*DRAW.values(), *DESCRIBE.values())]
    pattern = re.compile("|".join(re.escape(way).replace(r"\{\}", ".+") for way in held_out_ways))
    assert not [text for text in texts(task) if pattern.fullmatch(text)]


def test_training_contains_all_other_pairs_and_templates():
    pairs = {(thing.colour, thing.shape) for scene in trained()[0]["scenes_t2i"] for thing in scene.things}
    assert pairs == {(colour, shape) for colour in COLOURS for shape in SHAPES} - UNSEEN_PAIRS
    asked = set(texts("scenes_i2t"))
    for questions in DESCRIBE.values():
        assert set(questions[:-1]) <= asked
    for way in (way for ways in DRAW.values() for way in ways[:-1] if way != "{}"):
        pattern = re.compile(re.escape(way).replace(r"\{\}", ".+"))
        assert any(pattern.fullmatch(text) for text in texts("scenes_t2i")), way


def test_no_training_prompt_asks_for_a_held_out_wish():
    prompts = [example["messages"][0]["content"][0]["text"] for example in trained()[1]["scenes_t2i"]]
    wishes = [parse_wish(prompt) for prompt in prompts]
    assert None not in wishes
    assert not [wish for wish in wishes if is_held_out_wish(wish)]


@pytest.mark.parametrize("task", ["emoji_t2i", "emoji_i2t"])
def test_no_training_record_shows_a_held_out_emoji(task, monkeypatch):
    styles: dict[str, list[str]] = {}
    for pair in emoji.read_pairs():
        styles.setdefault(pair.codepoints, []).append(pair.style)
    shown: list[emoji.Pair] = []
    monkeypatch.setattr(emoji, "get_picture", lambda pair: shown.append(pair) or BLANK)
    rng = np.random.default_rng(0)
    for _ in range(RECORDS):
        TASKS[task](rng, "train")
    assert len(shown) == RECORDS
    assert not [
        pair for pair in shown if choose_held_out_style(pair.codepoints, styles[pair.codepoints]) == pair.style
    ]


# Evaluation


class Witness(tasks.Subject):
    """Remembers what it is asked to draw."""

    def draw(self, prompts, pictures=None, guided=True, think=False):
        self.prompts = [*getattr(self, "prompts", []), *prompts]
        return [BLANK] * len(prompts)

    def ask(self, questions, pictures=None, think=False):
        return [""] * len(questions)


@pytest.fixture
def witness(monkeypatch) -> Witness:
    """`shown`: the scenes behind the pictures that the tasks show."""
    subject = Witness(None, None, items=12, seed=0, sampling={})
    subject.shown = []
    monkeypatch.setattr(tasks, "render", lambda scene: subject.shown.append(scene) or BLANK)
    return subject


@pytest.mark.parametrize("task", DRAWN)
def test_training_contains_no_wish_of_the_evaluation(task, witness):
    figures = getattr(tasks, task)(witness)
    assert len(witness.prompts) == 12 * len(figures.keys() & tasks.FORMS.keys())
    for prompt in witness.prompts:
        wish = parse_wish(prompt)
        unseen = {(colour, shape) for _, colour, shape in wish.kinds} <= UNSEEN_PAIRS
        unseen |= {(number, shape) for (_, _, shape), number in wish.kinds.items()} <= UNSEEN_COUNTS
        assert is_held_out_wish(wish) or unseen, prompt


def test_evaluation_prompts_are_distinct():
    subject = Witness(None, None, items=500, seed=0, sampling={})
    found = {name: select_prompts(subject, name) for name in tasks.FORMS}
    assert all(len(set(prompts)) == len(prompts) <= 500 for prompts in found.values())
    assert len(found["unseen_pair"]) == 4 * 3 * sum(map(len, DRAW.values())) and len(found["position"]) == 500


@pytest.mark.parametrize(
    "task", ["scenes_i2t", "scenes_i2t_languages", "scenes_cot", "scenes_edit", "scenes_edit_unguided"]
)
def test_training_contains_no_scene_that_evaluation_reads_or_edits(task, witness):
    getattr(tasks, task)(witness)
    assert len(witness.shown) >= 12
    assert all(is_held_out(scene) for scene in witness.shown)


def test_no_emoji_that_is_trained_on_is_an_unseen_pair():
    for colour, shape in UNSEEN_PAIRS:
        assert not [p for p in emoji.select_pairs("train") if {colour, shape} <= set(p.names["en"].split())]


def test_every_emoji_in_evaluation_is_held_out():
    seen = {(pair.codepoints, pair.style) for pair in emoji.select_pairs("train")}
    subject = Witness(None, None, items=500, seed=0, sampling={})
    assert not {(pair.codepoints, pair.style) for pair in select_emoji(subject)} & seen


def test_no_held_out_picture_is_in_training_under_another_name():
    art = emoji.read_pictures()
    trained = {art[pair.index].tobytes() for pair in emoji.select_pairs("train")}
    assert not {art[pair.index].tobytes() for pair in emoji.select_pairs("validation")} & trained
