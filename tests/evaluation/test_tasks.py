"""The tasks, put to one who knows all answers and to one who knows none; and the figures they give."""

from collections import Counter
from functools import lru_cache

import pytest
import torch
from PIL import Image

from dps_hf.data import emoji, scenes
from dps_hf.data.facts import CAPITALS
from dps_hf.evaluation import tasks
from dps_hf.evaluation.detector import detect


class Oracle(tasks.Subject):
    """Draws what it is told, and names what it sees."""

    def draw(self, prompts, guided=True):
        return [self.draw_one(prompt) for prompt in prompts]

    def draw_one(self, prompt: str) -> Image.Image:
        kinds = scenes.parse_caption(prompt)
        if kinds is None:
            return emoji.picture(next(p for p in emoji.pairs("validation") if tasks.emoji_prompt(p) == prompt))
        places = ((16, 16), (48, 48))
        things = (scenes.Thing(s, c, z or "big", *at) for (z, c, s), at in zip(kinds.elements(), places))
        return scenes.render(scenes.Scene(tuple(things)))

    def ask(self, questions, pictures=None, think=False):
        return [self.answer(q, p) for q, p in zip(questions, pictures or [None] * len(questions))]

    def answer(self, question: str, picture: Image.Image | None) -> str:
        if picture is None:
            capital = {**CAPITALS, **{city: country for country, city in CAPITALS.items()}}
            return next(answer for name, answer in capital.items() if question.find(name) in (0, 23))
        if question in scenes.DESCRIBE:
            return scenes.phrase(Counter((t.size, t.colour, t.shape) for t in detect(picture)))
        language = next(language for language, asked in emoji.QUESTIONS.items() if question in asked)
        return names_of()[picture.tobytes()][language]


@lru_cache
def names_of() -> dict[bytes, dict[str, str]]:
    return {emoji.picture(pair).tobytes(): pair.names for pair in emoji.pairs("validation")}


class Ignorant(tasks.Subject):
    def draw(self, prompts, guided=True):
        return [Image.new("RGB", (64, 64), "white")] * len(prompts)

    def ask(self, questions, pictures=None, think=False):
        return ["I do not know."] * len(questions)


ASKED = ["scenes_t2i", "scenes_i2t", "emoji_i2t", "emoji_t2i", "facts"]


@pytest.mark.parametrize("task", ASKED)
def test_who_knows_all_is_always_right(task):
    subject = Oracle(None, None, items=12, seed=0, sampling={})
    assert {name: figure["value"] for name, figure in tasks.TASKS[task](subject).items() if figure["value"] < 1} == {}


@pytest.mark.parametrize("task", [*ASKED, "scenes_cot"])
def test_who_knows_nothing_is_never_right(task):
    subject = Ignorant(None, None, items=12, seed=0, sampling={})
    # A white page may be the nearest to a white emoji.
    assert all(figure["value"] <= 0.2 for figure in tasks.TASKS[task](subject).values())


def test_loss_is_that_of_the_codes_after_the_right_words(make_model, tiny_processor):
    model = make_model()
    # Different pictures get different codes, which an untrained image tokenizer does not promise.
    model.encode_image = lambda pixels: ((pixels.sum((1, 2, 3)) * 100).long()[:, None] + torch.arange(4)) % 16
    subject = tasks.Subject(model, tiny_processor, items=2, seed=0, sampling={})
    losses = {"right": [], "shuffled": []}
    pairs = subject.held_out_emoji()
    for pair, other in (pairs, pairs[::-1]):
        pixels = tiny_processor.image_processor(emoji.picture(pair), return_tensors="pt")["pixel_values"]
        drawing = tiny_processor.drawing_text(model.encode_image(pixels)[0])
        for name, words in (("right", pair), ("shuffled", other)):
            text = f"<|im_start|>user\n{tasks.emoji_prompt(words)}<|im_end|>\n<|im_start|>assistant\n{drawing}"
            tokens = tiny_processor(text=text, return_tensors="pt")["input_ids"]
            labels = torch.where(tokens >= model.config.image_code_start_id, tokens, -100)
            losses[name].append(model(input_ids=tokens, labels=labels).loss.item())
    figures = tasks.right_vs_shuffled_words(subject)
    for name, values in losses.items():
        assert figures[name]["value"] == pytest.approx(sum(values) / 2, abs=1e-3), name
    gap = figures["shuffled"]["value"] - figures["right"]["value"]
    assert figures["gap"]["value"] == pytest.approx(gap, abs=1e-3) != 0


def test_share_and_mean_carry_their_uncertainty():
    assert tasks.share([True] * 10) == {"value": 1.0, "n": 10, "ci95": [0.7225, 1.0]}
    assert tasks.mean([1.0, 3.0]) == {"value": 2.0, "n": 2, "ci95": [0.04, 3.96]}
    assert tasks.mean([5.0]) == {"value": 5.0, "n": 1, "ci95": [5.0, 5.0]}
