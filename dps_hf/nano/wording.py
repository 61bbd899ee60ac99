"""Captions and prompts for scenes in four languages, and parsers that reverse them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dps_hf.nano.scenes import COLOURS, SHAPES, SIZES, Scene, Thing


Kind = tuple[str | None, str, str]
"""Size, colour and shape. The size is None if it is not mentioned."""


@dataclass(frozen=True)
class Wish:
    """The meaning of a prompt, whatever its wording: the kinds of things, and optionally the relation between two."""

    kinds: Counter[Kind]
    relation: tuple[Kind, str, Kind] | None = None


LANGUAGES = ("en", "de", "es", "zh")
MOST = 4  # largest number that has a word

DESCRIBE = {
    "en": (
        "Describe the picture.", "What do you see?", "What is in the picture?", "Describe what you see.",
        "What is drawn here?", "Tell me what you see.", "What does the picture show?",
    ),
    "de": (
        "Beschreibe das Bild.", "Was siehst du?", "Was zeigt das Bild?", "Was ist hier zu sehen?",
        "Beschreibe, was du siehst.", "Was erkennst du auf dem Bild?", "Welche Dinge sind das?",
        "Was ist hier abgebildet?", "Was ist zu sehen?", "Was siehst du auf dem Bild?", "Was ist auf dem Bild?",
    ),
    "es": (
        "Describe la imagen.", "¿Qué ves?", "¿Qué muestra la imagen?", "¿Qué se ve aquí?", "Describe lo que ves.",
        "¿Qué cosas hay aquí?", "¿Qué hay en la imagen?",
    ),
    "zh": (
        "描述这张图片。", "你看到了什么？", "图片显示了什么？", "请描述图片。", "描述你看到的东西。",
        "这张图画了什么？", "图上能看到什么？", "图片里有什么？",
    ),
}  # fmt: skip
DRAW = {
    "en": (
        "{}", "Draw {}.", "Draw me {}.", "A picture of {}.", "An image of {}.", "Please draw {}.", "Can you draw {}?",
        "I want to see {}.", "Show me {}.", "A picture: {}.",
    ),
    "de": (
        "{}", "Ein Bild: {}.", "Bitte zeichnen: {}.", "Zeichne dies: {}.", "Ich möchte ein Bild: {}.",
        "Kannst du das zeichnen: {}?", "Das will ich sehen: {}.", "Mal mir das: {}.", "Mach mir ein Bild: {}.",
        "Zeig mir das: {}.",
    ),
    "es": (
        "{}", "Dibuja {}.", "Dibújame {}.", "Una imagen de {}.", "Por favor, dibuja {}.", "¿Puedes dibujar {}?",
        "Quiero ver {}.", "Muéstrame {}.",
    ),
    "zh": (
        "{}", "画{}。", "请画{}。", "帮我画{}。", "给我画{}。", "一张图片：{}。", "你能画{}吗？", "我想看{}。",
        "请给我{}。", "给我看{}。",
    ),
}  # fmt: skip
"""Templates of prompts. The last template of each language, here and in `DESCRIBE`, is excluded from training."""

_SHAPES = {
    # singular, plural, gender
    "de": {
        "circle": ("Kreis", "Kreise", "m"),
        "square": ("Quadrat", "Quadrate", "n"),
        "triangle": ("Dreieck", "Dreiecke", "n"),
        "star": ("Stern", "Sterne", "m"),
        "cross": ("Kreuz", "Kreuze", "n"),
        "heart": ("Herz", "Herzen", "n"),
        "diamond": ("Karo", "Karos", "n"),
    },
    "es": {
        "circle": ("círculo", "círculos", "m"),
        "square": ("cuadrado", "cuadrados", "m"),
        "triangle": ("triángulo", "triángulos", "m"),
        "star": ("estrella", "estrellas", "f"),
        "cross": ("cruz", "cruces", "f"),
        "heart": ("corazón", "corazones", "m"),
        "diamond": ("rombo", "rombos", "m"),
    },
}
_CHINESE_SHAPES = dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形", "十字", "心形", "菱形"), strict=True))
_ADJECTIVES = {
    "de": {
        **dict(
            zip(
                COLOURS,
                ("rot", "grün", "blau", "gelb", "orangefarben", "violett", "rosafarben", "schwarz"),
                strict=True,
            )
        ),
        **dict(zip(SIZES, ("klein", "groß"), strict=True)),
    },
    "es": {
        **dict(zip(COLOURS, ("rojo", "verde", "azul", "amarillo", "naranja", "morado", "rosa", "negro"), strict=True)),
        **dict(zip(SIZES, ("pequeño", "grande"), strict=True)),
    },
    "zh": {
        **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "黑色"), strict=True)),
        **dict(zip(SIZES, "小大", strict=True)),
    },
}
_NUMBERS = {
    "en": ("two", "three", "four"),
    "de": ("zwei", "drei", "vier"),
    "es": ("dos", "tres", "cuatro"),
    "zh": ("一个", "两个", "三个", "四个"),
}
_COMMA = {"en": ", ", "de": ", ", "es": ", ", "zh": "、"}
_AND = {"en": " and ", "de": " und ", "es": " y ", "zh": "和"}

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Relation of one thing to another, and the direction `(x, y)` from the other to it; y points down."""

_RELATE = {
    "en": {relation: f"{{}} {relation} {{}}" for relation in RELATIONS},
    "de": {
        "left of": "links {}, rechts {}",
        "right of": "rechts {}, links {}",
        "above": "oben {}, unten {}",
        "below": "unten {}, oben {}",
    },
    "es": {
        "left of": "{} a la izquierda de {}",
        "right of": "{} a la derecha de {}",
        "above": "{} encima de {}",
        "below": "{} debajo de {}",
    },
    "zh": {
        "left of": "{}在{}的左边",
        "right of": "{}在{}的右边",
        "above": "{}在{}的上面",
        "below": "{}在{}的下面",
    },
}


def write_phrase(kind: Kind, number: int = 1, language: str = "en") -> str:
    """Phrases such as "two small red circles", "zwei kleine rote Kreise", "两个红色的小圆形"."""
    size, colour, shape = kind
    if language == "en":
        words = " ".join(word for word in kind if word)
        return add_article(words) if number == 1 else f"{_NUMBERS['en'][number - 2]} {make_plural(words)}"
    adjectives = _ADJECTIVES[language]
    if language == "zh":
        thing = (adjectives[size] if size else "") + _CHINESE_SHAPES[shape]
        return f"{_NUMBERS['zh'][number - 1]}{adjectives[colour]}的{thing}"
    singular, several, gender = _SHAPES[language][shape]
    noun = singular if number == 1 else several
    if language == "de":
        ending = "e" if number > 1 else {"m": "er", "n": "es"}[gender]
        words = " ".join(adjectives[word] + ending for word in (size, colour) if word)
        return f"{'ein' if number == 1 else _NUMBERS['de'][number - 2]} {words} {noun}"
    words = " ".join(_inflect_spanish(adjectives[word], gender, number) for word in (colour, size) if word)
    one = "un" if gender == "m" else "una"
    return f"{one if number == 1 else _NUMBERS['es'][number - 2]} {noun} {words}"


def _inflect_spanish(adjective: str, gender: str, number: int) -> str:
    if adjective in ("naranja", "rosa"):  # nouns used as adjectives, which are not inflected
        return adjective
    if adjective.endswith("o") and gender == "f":
        adjective = adjective[:-1] + "a"
    return adjective + ("" if number == 1 else "s" if adjective[-1] in "aeo" else "es")


def write_phrases(kinds: Counter[Kind], language: str = "en") -> str:
    """Lists kinds with their numbers, in the order of the counter: "a red circle and two blue stars"."""
    return join([write_phrase(kind, number, language) for kind, number in kinds.items()], language)


def get_kind(thing: Thing, sizes: bool = True) -> Kind:
    """The kind of a thing. With `sizes=False`, its size is None."""
    return (thing.size if sizes else None, thing.colour, thing.shape)


def sort_in_reading_order(scene: Scene) -> list[Thing]:
    """Sorts things by row, and within a row from left to right.

    A row is 16 pixels high, like the patches of dps-nano's image encoder, so the order is that of the patches.
    """
    return sorted(scene.things, key=lambda thing: (thing.y // 16, thing.x))


def count_kinds(scene: Scene, sizes: bool = True) -> Counter[Kind]:
    """Counts the things of each kind, in reading order."""
    return Counter(get_kind(thing, sizes) for thing in sort_in_reading_order(scene))


def write_caption(scene: Scene, sizes: bool = True, language: str = "en") -> str:
    """Describes a scene in reading order: "a small red circle and two big blue stars"."""
    return write_phrases(count_kinds(scene, sizes), language)


def write_place(thing: Thing) -> str:
    """The position of a thing: "row 2 column 5". Rows and columns measure 8 pixels and count from 1."""
    return f"row {thing.y // 8 + 1} column {thing.x // 8 + 1}"


def write_places(scene: Scene) -> str:
    """The position of each thing, in reading order: "row 2 column 5: a small red circle." """
    return " ".join(
        f"{write_place(thing)}: {write_phrase(get_kind(thing))}." for thing in sort_in_reading_order(scene)
    )


def write_relation(one: Kind, relation: str, other: Kind, language: str = "en") -> str:
    """Two things and their relation: "a red circle left of a blue star"."""
    return _RELATE[language][relation].format(write_phrase(one, 1, language), write_phrase(other, 1, language))


def say(wish: Wish, language: str = "en") -> str:
    """Puts a wish into words. `parse_wish` is the reverse."""
    return write_relation(*wish.relation, language) if wish.relation else write_phrases(wish.kinds, language)


def add_article(noun: str) -> str:
    """Adds the English article: "a red circle", "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def make_plural(noun: str) -> str:
    """The English plural: "crosses", "stars"."""
    return noun + ("es" if noun.endswith("s") else "s")


def join(items: Sequence[str], language: str = "en") -> str:
    """Joins items as in "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return f"{_COMMA[language].join(items[:-1])}{_AND[language]}{items[-1]}"


@cache
def _list_kinds() -> dict[str, tuple[Kind, int]]:
    """Every phrase of every language with its kind and number. No phrase is ambiguous."""
    return {
        write_phrase((size, colour, shape), number, language).casefold(): ((size, colour, shape), number)
        for language in LANGUAGES
        for size in (None, *SIZES)
        for colour in COLOURS
        for shape in SHAPES
        for number in range(1, MOST + 1)
    }


_SEPARATORS = re.compile(r", and |、|和|, |,| and | und | y ")


def parse_caption(text: str) -> Counter[Kind] | None:
    """Parses a caption of any of the languages into the number of things of each kind, or None if it is no caption.

    Ignores case, a final full stop and surplus spaces. Accepts commas in place of "and".
    """
    kinds: Counter[Kind] = Counter()
    for item in _SEPARATORS.split(_strip_punctuation(text).casefold()):
        if item not in _list_kinds():
            return None
        kind, number = _list_kinds()[item]
        kinds[kind] += number
    return kinds


def parse_wish(text: str) -> Wish | None:
    """Parses a prompt, in any template of `DRAW`: a caption, or two things and their relation. None if it is neither.

    Tolerates what `parse_caption` tolerates.
    """
    wanted = strip_request(text)
    for sentence, relation in _compile_relations():
        if match := sentence.fullmatch(wanted):
            one, other = (_list_kinds().get(words.casefold()) for words in match.groups())
            if one and other and one[1] == other[1] == 1:
                return Wish(Counter([one[0], other[0]]), (one[0], relation, other[0]))
    kinds = parse_caption(wanted)
    return None if kinds is None else Wish(kinds)


def strip_request(text: str) -> str:
    """Removes the template from a prompt: "Please draw a red star." becomes "a red star"."""
    text = _strip_punctuation(text)
    match = _compile_requests().fullmatch(text)
    return next(filter(None, match.groups())) if match else text


def _strip_punctuation(text: str) -> str:
    """Removes surplus spaces and the final punctuation."""
    return " ".join(text.split()).rstrip(" .!?。！？")


@cache
def _compile_requests() -> re.Pattern[str]:
    # The longest first, because "Draw {}." would match "Draw me {}.", too.
    ways = sorted(
        (_compile_template(_strip_punctuation(way)) for ways in DRAW.values() for way in ways if way != "{}"),
        key=len,
        reverse=True,
    )
    return re.compile("|".join(ways), re.IGNORECASE)


@cache
def _compile_relations() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(_compile_template(sentence), re.IGNORECASE), relation)
        for sentences in _RELATE.values()
        for relation, sentence in sentences.items()
    )


def _compile_template(template: str) -> str:
    return re.escape(template).replace(r"\{\}", "(.+)")
