"""Emoji: 1,698 of them in up to 6 art styles, 64x64 pixels on white, with names in 12 languages.

`files/LICENSES.md` lists the sources and the licences of pictures and names.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.splits import UNSEEN_PAIRS, check_split, choose_held_out_style


STYLES = {
    "noto": "noto",
    "blob": "blob",
    "twemoji": "twemoji",
    "fluent_flat": "fluent flat",
    "fluent_3d": "fluent 3d",
    "emojitwo": "emojitwo",
}
"""Style in the data file to its name in prompts."""

QUESTIONS = {
    "en": ("What is this?", "Name this emoji.", "What emoji is this?", "Describe the picture."),
    "de": ("Was ist das?", "Welches Emoji ist das?"),
    "fr": ("Qu’est-ce que c’est ?", "Quel est cet émoji ?"),
    "es": ("¿Qué es esto?", "¿Qué emoji es este?"),
    "pt": ("O que é isto?", "Que emoji é este?"),
    "ru": ("Что это?", "Что это за эмодзи?"),
    "ar": ("ما هذا؟", "ما هذا الرمز التعبيري؟"),
    "hi": ("यह क्या है?", "यह कौन सा इमोजी है?"),
    "zh": ("这是什么？", "这是什么表情符号？"),
    "ja": ("これは何ですか？", "これは何の絵文字ですか？"),
    "sw": ("Hii ni nini?", "Hii ni emoji gani?"),
    "fi": ("Mikä tämä on?", "Mikä emoji tämä on?"),
}
"""Language to questions for the name of an emoji. Each question belongs to one language, that of the answer."""

OTHER_LANGUAGES = tuple(language for language in QUESTIONS if language != "en")
FOREIGN = 4  # number of languages besides English in one record


@dataclass(frozen=True)
class Pair:
    """One emoji in one style. `index` is its row in `read_pictures()`, and `names` maps language to name."""

    index: int
    emoji: str
    codepoints: str
    style: str
    names: dict[str, str]
    may_mirror: bool


@lru_cache(maxsize=1)
def read_pictures() -> np.ndarray:
    """All pictures, decoded once: `(8054, 64, 64, 3)` uint8, 99 MB."""
    images = _read_table()["image"].to_pylist()
    return np.stack([np.asarray(Image.open(BytesIO(image["bytes"])).convert("RGB")) for image in images])


@lru_cache(maxsize=1)
def read_pairs() -> tuple[Pair, ...]:
    """All emoji in all of their styles."""
    rows = _read_table().drop_columns(["image"]).to_pylist()
    return tuple(
        Pair(
            i,
            row["emoji"],
            row["codepoints"],
            row["style"],
            {language: row[f"name_{language}"] for language in QUESTIONS},
            may_mirror(row["codepoints"], [row["name_en"], *row["keywords_en"]]),
        )
        for i, row in enumerate(rows)
    )


def list_texts(english: int = 12) -> Iterator[str]:
    """Names, questions and styles to train a text tokenizer on. Each name also comes after a space, as in a sentence.

    Args:
        english: how many times each English name is repeated, so that most English words become one token.
    """
    for names in {pair.codepoints: pair.names for pair in read_pairs()}.values():
        for language, name in names.items():
            yield from [name, f" {name}"] * (english if language == "en" else 1)
    for questions in QUESTIONS.values():
        yield from questions * 10
    yield from [f", {style} style" for style in STYLES.values()] * 100


@lru_cache(maxsize=1)
def _read_table() -> Any:
    try:
        from pyarrow import parquet  # imported here because only emoji need it
    except ImportError as error:
        raise ImportError("Reading the emoji needs pyarrow. Install it with `pip install dps_hf[data]`.") from error
    return parquet.read_table(BytesIO(files("dps_hf.nano").joinpath("files/emoji64.parquet").read_bytes()))


# Split


@lru_cache(maxsize=2)
def select_pairs(split: str) -> tuple[Pair, ...]:
    """The pairs of a split, "train" or "validation".

    Both splits leave out emoji that are an unseen colour-shape combination, such as the green star. Validation also
    leaves out pictures that training contains as another emoji, such as some flags.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    styles = defaultdict(list)
    for pair in read_pairs():
        styles[pair.codepoints].append(pair.style)
    held_out = {codepoints: choose_held_out_style(codepoints, found) for codepoints, found in styles.items()}
    kept = [p for p in read_pairs() if not any({*unseen} <= {*p.names["en"].split()} for unseen in UNSEEN_PAIRS)]
    train = tuple(pair for pair in kept if held_out[pair.codepoints] != pair.style)
    if split == "train":
        return train
    art = _read_table()["image"].to_pylist()
    seen = {art[pair.index]["bytes"] for pair in train}
    return tuple(p for p in kept if held_out[p.codepoints] == p.style and art[p.index]["bytes"] not in seen)


# Pictures


def get_picture(pair: Pair) -> Image.Image:
    """The picture of a pair, 64x64 RGB."""
    return Image.fromarray(read_pictures()[pair.index])


_MIRRORED = ((0x1F330, 0x1F37F), (0x1F400, 0x1F43F), (0x1F600, 0x1F640), (0x1F950, 0x1F9AF), (0x1FAB0, 0x1FADF))
"""Code points of food, plants, animals and faces. The others include letters, numbers, hands, clocks and arrows."""
_SIDED = ("left", "right", "hand", "arrow", "clock", "finger", "leg", "foot", "zzz", "sleep")


def may_mirror(codepoints: str, words: Collection[str]) -> bool:
    """Whether the emoji keeps its meaning when it is mirrored. False when in doubt."""
    first = int(codepoints.split("-")[0], 16)
    text = " ".join(words).casefold()
    return any(low <= first <= high for low, high in _MIRRORED) and not any(word in text for word in _SIDED)


def augment(image: Image.Image, rng: np.random.Generator, mirror: bool = False) -> Image.Image:
    """Scales by 0.85 to 1.05, moves by up to 4 pixels, and with `mirror` mirrors half of the time. Fills in white."""
    scale = rng.uniform(0.85, 1.05)
    slack = image.width / 2 * (1 - scale) + 1  # a larger shift would cut the picture off
    dx, dy = rng.uniform(-1, 1, 2) * np.clip(slack, 1, 4)
    sign = -1 if mirror and rng.random() < 0.5 else 1
    centre = image.width / 2
    matrix = (sign / scale, 0, centre - (centre + dx) * sign / scale, 0, 1 / scale, centre - (centre + dy) / scale)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor="white")


def jitter_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darkens each channel by up to 10 %. For pictures to be read only, not for drawings to learn."""
    gain = rng.uniform(0.93, 1) * rng.uniform(0.97, 1, 3)
    return Image.fromarray((np.asarray(image) * gain).astype(np.uint8))


# Tasks


def emoji_t2i(rng: np.random.Generator, split: str) -> Record:
    """A record to learn drawing from "NAME, STYLE style". The name is English in 80 % of the records."""
    pair = pick(rng, select_pairs(split))
    language = "en" if rng.random() < 0.8 else pick(rng, OTHER_LANGUAGES)
    image = get_picture(pair)
    # Shifted slightly, so that the first codes do not identify the picture and the model has to use the prompt.
    if split == "train" and rng.random() < 0.5:
        image = augment(image, rng, pair.may_mirror)
    return record("emoji_t2i", [f"{pair.names[language]}, {STYLES[pair.style]} style"], [image])


def emoji_i2t(rng: np.random.Generator, split: str) -> Record:
    """A record to learn naming emoji, in the language of the question. 1 in 10 English answers also names the style.

    There are questions in English and in `FOREIGN` other languages: one is asked, and the others are `more`. The
    worked step is the English name, because recognising first and then translating needs far fewer pictures than
    doing both at once.
    """
    pair = pick(rng, select_pairs(split))
    image = get_picture(pair)
    if split == "train":
        image = jitter_colours(augment(image, rng, pair.may_mirror), rng)
    if rng.random() < 0.1:
        asked = [("What is this, and in which style?", f"{pair.names['en']}, {STYLES[pair.style]} style")]
    else:
        asked = [(pick(rng, QUESTIONS["en"]), pair.names["en"])]
    for language in rng.permutation(OTHER_LANGUAGES)[:FOREIGN]:
        asked.append((pick(rng, QUESTIONS[language]), pair.names[language]))
    question, answer = asked.pop(int(rng.integers(len(asked))))
    return {**record("emoji_i2t", [image, question], [answer], steps=pair.names["en"]), "more": asked}
