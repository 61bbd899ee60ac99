"""The tasks, put to one who knows all answers and to one who knows none; and the figures they give."""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dps_hf.nano import emoji
from dps_hf.nano import evaluation as tasks
from dps_hf.nano.detector import detect
from dps_hf.nano.facts import read_capitals
from dps_hf.nano.held_out import sample_scenes, select_emoji
from dps_hf.nano.scenes import COLOURS, Scene, Thing, has_unseen_count, has_unseen_pair, is_held_out, render
from dps_hf.nano.wording import DESCRIBE, LANGUAGES, RELATIONS, Wish, parse_wish, write_caption


class Oracle(tasks.Subject):
    """Draws what it is told, changes what it is told to, and names what it sees."""

    def draw(self, prompts, pictures=None, guided=True, think=False):
        if pictures is not None:
            return [self.edit(*pair) for pair in zip(prompts, pictures)]
        return [self.draw_one(prompt) for prompt in prompts]

    def draw_one(self, prompt: str) -> Image.Image:
        wish = parse_wish(prompt)
        if wish is None:
            return emoji.get_picture(
                next(p for p in emoji.select_pairs("validation") if tasks.write_emoji_prompt(p) == prompt)
            )
        return self.draw_wish(wish)

    def draw_wish(self, wish: Wish) -> Image.Image:
        kinds, places = list(wish.kinds.elements()), ((16, 16), (48, 16), (16, 48), (48, 48))
        if wish.relation:
            one, relation, other = wish.relation
            dx, dy = RELATIONS[relation]
            kinds, places = [one, other], ((32 + 15 * dx, 32 + 15 * dy), (32 - 15 * dx, 32 - 15 * dy))
        return render(Scene(tuple(Thing(s, c, z or "big", *at) for (z, c, s), at in zip(kinds, places))))

    def edit(self, instruction: str, picture: Image.Image) -> Image.Image:
        things = seen(picture).things
        _, colour, shape, change = re.fullmatch(
            r"(Make|Turn|Remove) the (\w+) (\w+)(?: into an?)? ?(\w*)\.", instruction
        ).groups()
        edited = []
        for thing in things:
            if (thing.colour, thing.shape) != (colour, shape):
                edited.append(thing)
            elif change:
                edited.append(replace(thing, **{"colour" if change in COLOURS else "shape": change}))
        return render(Scene(tuple(edited)))

    def ask(self, questions, pictures=None, think=False):
        return [self.answer(q, p) for q, p in zip(questions, pictures or [None] * len(questions))]

    def answer(self, question: str, picture: Image.Image | None) -> str:
        if picture is None:
            return known_by_heart()[question]
        for language, asked in DESCRIBE.items():
            if question in asked:
                return write_caption(seen(picture), language=language)
        language = next(language for language, asked in emoji.QUESTIONS.items() if question in asked)
        return names_of()[picture.tobytes()][language]


class Careless(Oracle):
    """Knows all things and swaps the places of two; changes what it should and moves all else."""

    def draw_wish(self, wish):
        if wish.relation:
            one, relation, other = wish.relation
            wish = Wish(wish.kinds, (other, relation, one))
        return super().draw_wish(wish)

    def edit(self, instruction, picture):
        moved = Image.new("RGB", picture.size, "white")
        moved.paste(super().edit(instruction, picture), (0, 6))
        return moved


def seen(picture: Image.Image) -> Scene:
    return Scene(tuple(Thing(t.shape, t.colour, t.size, round(t.x), round(t.y)) for t in detect(picture)))


@lru_cache
def known_by_heart() -> dict[str, str]:
    answers: dict[str, str] = {}
    for language in LANGUAGES:
        for country, capital in read_capitals(language).items():
            answers |= {question.format(country): capital for question in tasks.FORWARD[language]}
            answers |= {question.format(capital): country for question in tasks.BACKWARD[language]}
    return answers


@lru_cache
def names_of() -> dict[bytes, dict[str, str]]:
    return {emoji.get_picture(pair).tobytes(): pair.names for pair in emoji.select_pairs("validation")}


class Ignorant(tasks.Subject):
    def draw(self, prompts, pictures=None, guided=True, think=False):
        return [Image.new("RGB", (64, 64), "white")] * len(prompts)

    def ask(self, questions, pictures=None, think=False):
        return ["I do not know."] * len(questions)


ASKED = [
    "scenes_t2i",
    "scenes_t2i_plan",
    "scenes_i2t",
    "scenes_i2t_languages",
    "scenes_edit",
    "emoji_i2t",
    "emoji_t2i",
    "emoji_t2i_guided_by_3",
    "facts",
]


@pytest.mark.parametrize("task", ASKED)
def test_who_knows_all_is_always_right(task):
    subject = Oracle(None, None, items=12, seed=0, sampling={})
    assert {
        name: figure["value"] for name, figure in getattr(tasks, task)(subject).items() if figure["value"] < 1
    } == {}


@pytest.mark.parametrize(
    "task", [*ASKED, "scenes_cot", "everyday_wishes", "everyday_questions", "everyday_descriptions", "talk"]
)
def test_who_knows_nothing_is_never_right(task):
    subject = Ignorant(None, None, items=12, seed=0, sampling={})
    # A white page may be the nearest to a white emoji.
    assert all(figure["value"] <= 0.2 for figure in getattr(tasks, task)(subject).values())


def test_things_in_the_wrong_places_are_wrong():
    subject = Careless(None, None, items=12, seed=0, sampling={})
    figures = tasks.scenes_t2i(subject)
    assert {name for name, figure in figures.items() if figure["value"] < 1} == {"position", "new_picture"}
    assert figures["position"]["value"] == 0
    assert tasks.scenes_edit(subject)["exact"]["value"] == 0


def test_a_pair_that_is_never_drawn_rightly_shows_and_widens_the_interval():
    class Blind(Oracle):
        def draw_wish(self, wish):
            known = all((colour, shape) != ("green", "star") for _, colour, shape in wish.kinds)
            return super().draw_wish(wish) if known else Image.new("RGB", (64, 64), "white")

    subject = Blind(None, None, items=400, seed=0, sampling={})
    figures = tasks.scenes_t2i(subject, ("unseen_pair",))
    whole = figures.pop("unseen_pair")
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "unseen_pair_green_star": 0,
        "unseen_pair_orange_square": 1,
        "unseen_pair_pink_triangle": 1,
        "unseen_pair_purple_cross": 1,
    }
    assert sum(figure["n"] for figure in figures.values()) == whole["n"] == 400
    # Four pairs in two sizes are eight pictures: they tell little of pairs.
    low, high = whole["ci95"]
    assert low < 0.5 and high > 0.9 and whole["value"] == pytest.approx(0.75, abs=0.05)


def test_descriptions_are_asked_for_in_each_language_as_in_training_and_in_held_out_words():
    class Pupil(Oracle):
        def answer(self, question, picture):
            return super().answer(question, picture) if question in DESCRIBE["de"][:-1] else "Ein Bauer."

    figures = tasks.scenes_i2t_languages(Pupil(None, None, items=4, seed=0, sampling={}))
    assert {name for name, figure in figures.items() if figure["value"]} == {"de"}
    assert set(figures) == {*LANGUAGES[1:], *(f"new_wording_{language}" for language in LANGUAGES)}


def test_edits_after_thinking_and_at_once_are_scored_apart():
    class Thoughtful(Oracle):
        def draw(self, prompts, pictures=None, guided=True, think=False):
            return super().draw(prompts, pictures) if think else Ignorant.draw(self, prompts)

    figures = tasks.scenes_edit(Thoughtful(None, None, items=12, seed=0, sampling={}))
    assert {name: figure["value"] for name, figure in figures.items()} == {"exact": 1, "direct": 0}


def test_answers_with_and_without_steps_and_of_each_kind_are_scored_apart(monkeypatch):
    truths, scenes, kinds, ask_about = [], [], [], tasks.ask_about

    def witnessed(rng, scene):
        asked = ask_about(rng, scene)
        truths.append(asked.answer)
        scenes.append(scene)
        kinds.append(asked.kind)
        return asked

    class Thinker(Ignorant):
        def ask(self, questions, pictures=None, think=False):
            return truths[-len(questions) :] if think else super().ask(questions)

    monkeypatch.setattr(tasks, "ask_about", witnessed)
    subject = Thinker(None, None, items=12, seed=0, sampling={})
    figures = tasks.scenes_cot(subject)
    assert {name: figure["value"] for name, figure in figures.items() if figure["value"] < 1} == {"direct": 0}
    by_kind = {name.removeprefix("answer_"): figure["n"] for name, figure in figures.items() if "answer_" in name}
    assert by_kind == Counter(kinds[:12])
    assert scenes[:12] == scenes[12:24] == sample_scenes(subject)  # thoughtfully and directly
    assert all(has_unseen_pair(scene) and is_held_out(scene) for scene in scenes[24:36])
    assert all(has_unseen_count(scene) and is_held_out(scene) for scene in scenes[36:])
    scenes.clear()
    assert list(tasks.scenes_cot(subject, ("unseen_pair",))) == ["unseen_pair"] and len(scenes) == 12


def test_emoji_are_guided_by_3_whatever_else_is_asked_for():
    class Witness(Ignorant):
        def draw(self, prompts, pictures=None, guided=True, think=False):
            assert guided and self.sampling == {"do_sample": False, "guidance_scale": 3.0}
            return super().draw(prompts)

    tasks.emoji_t2i_guided_by_3(Witness(None, None, 4, 0, {"do_sample": False, "guidance_scale": 1.5}))


def test_art_in_place_of_drawings_is_of_the_same_emoji_as_training_shows_it(monkeypatch):
    shown, picture = [], emoji.get_picture
    monkeypatch.setattr(tasks.emoji, "get_picture", lambda pair: shown.append(pair) or picture(pair))
    subject = Ignorant(None, None, items=12, seed=0, sampling={})
    figure = tasks.reference(subject)["emoji_art_nn50"]
    assert figure["n"] == 12 and 0 < figure["value"] < 1
    assert [pair.codepoints for pair in shown] == [pair.codepoints for pair in select_emoji(subject)]
    assert {pair.index for pair in shown} <= {pair.index for pair in emoji.select_pairs("train")}


def test_plans_are_asked_for_the_same_prompts():
    asked = []

    class Witness(Ignorant):
        def draw(self, prompts, pictures=None, guided=True, think=False):
            asked.append((tuple(prompts), think))
            return super().draw(prompts)

    subject = Witness(None, None, items=4, seed=0, sampling={})
    for task in ("scenes_t2i", "scenes_t2i_plan"):
        getattr(tasks, task)(subject)
    bare, planned = ({prompts for prompts, think in asked if think == wanted} for wanted in (False, True))
    assert len(planned) == 2 and planned < bare


def test_loss_is_that_of_the_codes_after_the_right_words(make_model, tiny_processor):
    model = make_model()
    # Different pictures get different codes, which an untrained image tokenizer does not promise.
    model.encode_image = lambda pixels: ((pixels.sum((1, 2, 3)) * 10).long()[:, None] + torch.arange(4)) % 16
    subject = tasks.Subject(model, tiny_processor, items=2, seed=0, sampling={})
    losses = {"right": [], "shuffled": []}
    pairs = select_emoji(subject)
    for pair, other in (pairs, pairs[::-1]):
        pixels = tiny_processor.image_processor(emoji.get_picture(pair), return_tensors="pt")["pixel_values"]
        drawing = tiny_processor.drawing_text(model.encode_image(pixels)[0])
        for name, words in (("right", pair), ("shuffled", other)):
            text = f"<|im_start|>user\n{tasks.write_emoji_prompt(words)}<|im_end|>\n<|im_start|>assistant\n{drawing}"
            tokens = tiny_processor(text=text, return_tensors="pt")["input_ids"]
            labels = torch.where(tokens >= model.config.image_code_start_id, tokens, -100)
            losses[name].append(model(input_ids=tokens, labels=labels).loss.item())
    figures = tasks.right_vs_shuffled_words(subject)
    for name, values in losses.items():
        assert figures[name]["value"] == pytest.approx(sum(values) / 2, abs=1e-3), name
    gap = figures["shuffled"]["value"] - figures["right"]["value"]
    assert figures["gap"]["value"] == pytest.approx(gap, abs=1e-3) != 0


@pytest.mark.parametrize(("items", "found", "right"), [(2, 2, 0.5), (3, 4, 0.5), (10_000, 640, 0.5)])
def test_features_are_looked_up_in_whole_galleries(make_model, tiny_processor, monkeypatch, items, found, right):
    model = make_model()
    # All alike: the first of each gallery is taken for everything.
    model.get_image_features = lambda pixels: SimpleNamespace(image_embeds=torch.ones(len(pixels), 2))
    monkeypatch.setattr(tasks, "GALLERY", 2)
    figure = tasks.features(tasks.Subject(model, tiny_processor, items=items, seed=0, sampling={}))["image_r1"]
    assert (figure["value"], figure["n"]) == (right, found)
