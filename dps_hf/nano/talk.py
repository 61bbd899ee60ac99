"""Conversations without a picture: greetings, questions about the model, and what it can neither draw nor know.

Each answer is one honest sentence. The worked step says why.
"""

from functools import cache

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano import emoji
from dps_hf.nano.asking import ask_freely
from dps_hf.nano.facts import read_capitals, write_sentence
from dps_hf.nano.forms import choose_form, read_forms
from dps_hf.nano.scenes import sample_scene
from dps_hf.nano.speech import disturb
from dps_hf.nano.splits import check_split
from dps_hf.nano.wording import LANGUAGES, add_article


SYLLABLES = (
    *("ba", "bo", "dri", "du", "fa", "fle", "gor", "gu", "ki", "kra", "la", "lo", "mi", "mur", "na", "no", "pel"),
    *("plo", "ri", "ru", "sa", "sto", "ta", "tor", "u", "va", "vin", "wo", "ze", "zu"),
)
"""Of words that nobody knows: with them the model learns to repeat a word rather than a list of words."""

REPLIES = {
    # The worked step is English, whatever the question.
    "step": {
        "hello": "A greeting.",
        "how": "A greeting.",
        "who": "A question about me.",
        "can": "A question about me.",
        "thanks": "Thanks.",
        "bye": "A goodbye.",
        "other": "No shape, no emoji, no capital.",
        "no picture": "There is no picture.",
        "unknown": "{}: no shape, no emoji.",
        "capital": "The country is {}.",
        "country": "The capital is {}.",
    },
    "en": {
        "hello": "Hello! I draw shapes and emoji.",
        "how": "I am well. I draw shapes and emoji.",
        "who": "I am dps-nano, a small model that reads and draws shapes and emoji.",
        "can": "I draw and read shapes and emoji, and I know capitals.",
        "thanks": "You are welcome.",
        "bye": "Goodbye!",
        "other": "I do not know; I know only shapes, emoji and capitals.",
        "no picture": "I see no picture.",
    },
    "de": {
        "hello": "Hallo! Ich zeichne Formen und Emojis.",
        "how": "Mir geht es gut. Ich zeichne Formen und Emojis.",
        "who": "Ich bin dps-nano, ein kleines Modell, das Formen und Emojis liest und zeichnet.",
        "can": "Ich zeichne und lese Formen und Emojis, und ich kenne Hauptstädte.",
        "thanks": "Gern geschehen.",
        "bye": "Auf Wiedersehen!",
        "other": "Das weiß ich nicht; ich kenne nur Formen, Emojis und Hauptstädte.",
        "no picture": "Ich sehe kein Bild.",
    },
    "es": {
        "hello": "¡Hola! Dibujo figuras y emojis.",
        "how": "Estoy bien. Dibujo figuras y emojis.",
        "who": "Soy dps-nano, un modelo pequeño que lee y dibuja figuras y emojis.",
        "can": "Dibujo y leo figuras y emojis, y conozco capitales.",
        "thanks": "De nada.",
        "bye": "¡Adiós!",
        "other": "No lo sé; solo conozco figuras, emojis y capitales.",
        "no picture": "No veo ninguna imagen.",
    },
    "zh": {
        "hello": "你好！我画图形和表情符号。",
        "how": "我很好。我画图形和表情符号。",
        "who": "我是dps-nano，一个读图形、画图形和表情符号的小模型。",
        "can": "我会画、会读图形和表情符号，也知道首都。",
        "thanks": "不客气。",
        "bye": "再见！",
        "other": "我不知道；我只知道图形、表情符号和首都。",
        "no picture": "我没有看到图片。",
    },
}
UNKNOWN = {
    "en": 'I draw shapes and emoji; I do not know "{}".',
    "de": 'Ich zeichne Formen und Emojis; "{}" kenne ich nicht.',
    "es": 'Dibujo figuras y emojis; no conozco "{}".',
    "zh": "我画图形和表情符号；我不知道“{}”。",
}


def talk(rng: np.random.Generator, split: str) -> Record:
    """Something said without a picture, with an answer of one sentence. 6 in 10 records are English.

    Both splits ask alike, in other forms: those of validation are excluded from training.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    language = "en" if rng.random() < 0.6 else pick(rng, LANGUAGES[1:])
    kind = pick(rng, ("said", "said", "said", "question", "unknown", "unknown", "capital", "capital", "capital"))
    text, steps, answer = TALK[kind](rng, language, split == "validation")
    return record("talk", [disturb(rng, text, language)], [answer], steps=steps)


def _say(rng: np.random.Generator, language: str, held_out: bool) -> tuple[str, str, str]:
    while True:
        topic = pick(rng, tuple(read_forms("sayings")[language]))
        if text := choose_form(rng, read_forms("sayings")[language][topic], held_out):
            return text, REPLIES["step"][topic], REPLIES[language][topic]


def _ask_without_picture(rng: np.random.Generator, language: str, held_out: bool) -> tuple[str, str, str]:
    """A question about a picture that is not there."""
    text = ask_freely(rng, sample_scene(rng), language, held_out=held_out).text
    return text, REPLIES["step"]["no picture"], REPLIES[language]["no picture"]


def _wish_for_unknown(rng: np.random.Generator, language: str, held_out: bool) -> tuple[str, str, str]:
    """A wish for something that is neither a shape nor an emoji."""
    thing = pick(rng, list_unknown(language))
    if rng.random() < 0.35:
        thing = "".join(pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 4))))
    form = choose_form(rng, read_forms("wishes")[language], held_out) or "{}"
    text = form.format(add_article(thing) if language == "en" else thing)
    return text, REPLIES["step"]["unknown"].format(thing), UNKNOWN[language].format(thing)


def _ask_for_capital(rng: np.random.Generator, language: str, held_out: bool) -> tuple[str, str, str]:
    """A capital or its country, in people's words; `facts` has two sentences for each."""
    country, capital = pick(rng, tuple(read_capitals(language).items()))
    if rng.random() < 0.75:
        text = (choose_form(rng, read_forms("capitals")[language], held_out) or "{}").format(country)
        return text, REPLIES["step"]["capital"].format(country), write_sentence(capital)
    text = (choose_form(rng, read_forms("countries")[language], held_out) or "{}").format(capital)
    return text, REPLIES["step"]["country"].format(capital), write_sentence(country)


TALK = {
    "said": _say,
    "question": _ask_without_picture,
    "unknown": _wish_for_unknown,
    "capital": _ask_for_capital,
}


@cache
def list_unknown(language: str) -> tuple[str, ...]:
    """Things that are no emoji, by name, and no part of a name."""
    known = {word.strip(",:“”’").casefold() for pair in emoji.read_pairs() for word in pair.names[language].split()}
    return tuple(thing for thing in read_forms("things")[language] if not {*thing.split()} & known)
