"""Questions about pictures of scenes, in the forms in which people ask them, in four languages.

`questions` has one form for each meaning, in English, with worked steps.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.forms import choose_form, read_forms
from dps_hf.nano.scenes import COLOURS, RELATION_GAP, SHAPES, Scene, Thing
from dps_hf.nano.speech import agree, decline, disturb, say_colour
from dps_hf.nano.splits import UNSEEN_PAIRS
from dps_hf.nano.vocabulary import NOUNS
from dps_hf.nano.wording import RELATIONS, add_article, join, sort_in_reading_order, write_caption, write_phrase


THINGS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "en": (("thing", "things", ""), ("shape", "shapes", ""), ("one", "ones", ""), ("object", "objects", "")),
    "de": (("Ding", "Dinge", "n"), ("Figur", "Figuren", "f"), ("Form", "Formen", "f")),
    "es": (("cosa", "cosas", "f"), ("figura", "figuras", "f"), ("objeto", "objetos", "m")),
    "zh": (("东西", "", ""), ("形状", "", ""), ("图形", "", "")),
}
"""Words for a thing whose shape the question leaves open: singular, plural, gender."""

ANSWERS = {
    "en": {
        "colour": {c: c for c in ("red", "green", "blue", "yellow", "orange", "purple", "pink", "black")},
        "yes": {"yes": "yes", "no": "no"},
        "exists": {"yes": "yes", "no": "no"},
        "place": {"left of": "left", "right of": "right", "above": "top", "below": "bottom"},
        "size": {"big": "big", "small": "small"},
    },
    "de": {
        "colour": {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "orange": "orange",
                   "purple": "violett", "pink": "rosa", "black": "schwarz"},
        "yes": {"yes": "ja", "no": "nein"},
        "exists": {"yes": "ja", "no": "nein"},
        "place": {"left of": "links", "right of": "rechts", "above": "oben", "below": "unten"},
        "size": {"big": "groß", "small": "klein"},
    },
    "es": {
        "colour": {"red": "rojo", "green": "verde", "blue": "azul", "yellow": "amarillo", "orange": "naranja",
                   "purple": "morado", "pink": "rosa", "black": "negro"},
        "yes": {"yes": "sí", "no": "no"},
        "exists": {"yes": "sí", "no": "no"},
        "place": {"left of": "izquierda", "right of": "derecha", "above": "arriba", "below": "abajo"},
        "size": {"big": "grande", "small": "pequeño"},
    },
    "zh": {
        "colour": {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色",
                   "purple": "紫色", "pink": "粉色", "black": "黑色"},
        "yes": {"yes": "是", "no": "不是"},
        "exists": {"yes": "有", "no": "没有"},
        "place": {"left of": "左边", "right of": "右边", "above": "上面", "below": "下面"},
        "size": {"big": "大", "small": "小"},
    },
}  # fmt: skip


class Asked(NamedTuple):
    """A question in its language, its answer, and what it asks for, one of `ASK`."""

    text: str
    answer: str
    kind: str


def ask_freely(
    rng: np.random.Generator, scene: Scene, language: str, kind: str | None = None, held_out: bool = False
) -> Asked:
    """Asks about a scene as a person would.

    Args:
        kind: one of `ASK`. By default any that the scene allows.
        held_out: whether the form of the question is one of those that training excludes.
    """
    while True:
        chosen = kind or pick(rng, KINDS)
        found = ASK[chosen](rng, scene, language)
        if found is None:
            if kind:
                raise ValueError(f"kind must fit the scene; found no question of kind {kind!r} about {scene}.")
            continue
        form, parts, answer = found
        sentence = choose_form(rng, read_forms("questions")[language][form], held_out)
        if not sentence:
            continue  # this question has too few forms to hold one out
        text = sentence.format(**parts)
        if language == "es":
            for apart, joined in ((" de el ", " del "), (" a el ", " al ")):
                text = text.replace(apart, joined)
        return Asked(disturb(rng, text, language), answer, chosen)


def name_thing(rng: np.random.Generator, colour: str | None, shape: str | None, language: str) -> dict[str, str]:
    """The ways in which a question may name a thing by its colour, its shape, or both: `a`, `the`, `many` and more."""
    paint = say_colour(rng, colour, language) if colour else ""
    one, many, gender = (
        (NOUNS[language][shape][0] if rng.random() < 0.8 else pick(rng, NOUNS[language][shape]))
        if shape
        else pick(rng, THINGS[language])
    )
    if language == "zh":
        name = f"{paint}{'的' if paint and len(paint) > 1 else ''}{one}"
        return dict.fromkeys(("a", "the", "many", "acc", "acc_the", "dat_the"), name)
    if language == "en":
        name = f"{paint} {one}".strip()
        return {"a": add_article(name), "the": f"the {name}", "many": f"{paint} {many}".strip()}
    if language == "es":
        name = f"{one} {agree(paint, gender, 1)}".strip() if paint else one
        several = f"{many} {agree(paint, gender, 2)}".strip() if paint else many
        un, el = ("un", "el") if gender == "m" else ("una", "la")
        return {"a": f"{un} {name}", "the": f"{el} {name}", "many": several}

    def german(article: str, ending: str, noun: str) -> str:
        return " ".join(part for part in (article, decline(paint, ending) if paint else "", noun) if part)

    place = "mfn".index(gender)
    nominative, accusative = ("er", "e", "es")[place], ("en", "e", "es")[place]
    return {
        "a": german(("ein", "eine", "ein")[place], nominative, one),
        "acc": german(("einen", "eine", "ein")[place], accusative, one),
        "the": german(("der", "die", "das")[place], "e", one),
        "acc_the": german(("den", "die", "das")[place], "en" if gender == "m" else "e", one),
        "dat_the": german(("dem", "der", "dem")[place], "en", one),
        "many": german("", "e", many),
    }


Found = tuple[str, dict[str, str], str] | None
"""The name of its forms in `files/forms.json`, what fills it, and the answer."""


def _word(group: str, key: str, language: str) -> str:
    return ANSWERS[language][group][key]


def _yes(right: bool, language: str, exists: bool = False) -> str:
    return _word("exists" if exists else "yes", "yes" if right else "no", language)


def _phrase(thing: Thing, language: str) -> str:
    return write_phrase((None, thing.colour, thing.shape), 1, language)


def _pick_unique(rng: np.random.Generator, scene: Scene, *fields: str) -> Thing | None:
    """A thing that is the only one with its colour, its shape, or both."""
    counts = Counter(tuple(getattr(t, field) for field in fields) for t in scene.things)
    thing = pick(rng, scene.things)
    return thing if counts[tuple(getattr(thing, field) for field in fields)] == 1 else None


def _describe_unique(rng: np.random.Generator, scene: Scene, thing: Thing) -> tuple[str | None, str | None] | None:
    """Colour and shape that name one thing of the scene, and no more of them than needed, mostly."""
    ways = [(None, thing.shape), (None, thing.shape), (thing.colour, None), (thing.colour, thing.shape)]
    colour, shape = pick(rng, ways)
    same = [t for t in scene.things if (colour or t.colour) == t.colour and (shape or t.shape) == t.shape]
    return (colour, shape) if len(same) == 1 else None


def _ask_colour(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) == 1 and rng.random() < 0.4:
        return "its_colour", {}, _word("colour", scene.things[0].colour, language)
    thing = _pick_unique(rng, scene, "shape")
    if thing is None:
        return None
    return "colour", name_thing(rng, None, thing.shape, language), _word("colour", thing.colour, language)


def _ask_shape(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) == 1 and rng.random() < 0.5:
        return "its_shape", {}, NOUNS[language][scene.things[0].shape][0][0]
    thing = _pick_unique(rng, scene, "colour")
    if thing is None:
        return None
    parts = name_thing(rng, thing.colour, None, language) | {"paint": say_colour(rng, thing.colour, language)}
    return "shape", parts, NOUNS[language][thing.shape][0][0]


def _choose_description(
    rng: np.random.Generator, scene: Scene, wanted: bool
) -> tuple[str | None, str | None, int] | None:
    """Colour, shape or both, and the number of their matches, which is 0 unless `wanted`."""
    seen = pick(rng, scene.things)
    colour = seen.colour if wanted or rng.random() < 0.3 else pick(rng, tuple(COLOURS))
    shape = seen.shape if wanted or rng.random() < 0.3 else pick(rng, SHAPES)
    if not wanted and (colour, shape) in UNSEEN_PAIRS:
        return None  # in training, the answer for those would always be no
    by_colour, by_shape = pick(rng, ((False, True), (False, True), (True, False), (True, True)))
    described = (colour if by_colour else None, shape if by_shape else None)
    number = sum((described[0] or t.colour, described[1] or t.shape) == (t.colour, t.shape) for t in scene.things)
    return (*described, number) if bool(number) == wanted else None


def _ask_existence(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    found = _choose_description(rng, scene, bool(rng.random() < 0.5))
    if found is None:
        return None
    colour, shape, number = found
    parts = name_thing(rng, colour, shape, language)
    if colour and not shape:
        words = say_colour(rng, colour, language)
        return (
            "exists_colour",
            {**parts, "paint": words, "neuter": decline(words, "es").capitalize()},
            _yes(bool(number), language, True),
        )
    return "exists", parts, _yes(bool(number), language, True)


def _ask_count(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    rare = rng.random() < 0.4  # most pictures show one of each thing, and "1" is not to be the answer to everything
    if rng.random() < 0.3:
        return ("count_all", {}, str(len(scene.things))) if rare or len(scene.things) > 1 else None
    found = _choose_description(rng, scene, bool(rng.random() < 0.85))
    if found is None or (found[2] == 1 and not rare):
        return None
    colour, shape, number = found
    return "count", name_thing(rng, colour, shape, language), str(number)


def _ask_is_colour(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    thing = _pick_unique(rng, scene, "shape")
    if thing is None:
        return None
    right = bool(rng.random() < 0.5)
    colour = thing.colour if right else pick(rng, [c for c in COLOURS if c != thing.colour])
    parts = name_thing(rng, None, thing.shape, language) | {"paint": say_colour(rng, colour, language)}
    form = "it_is_colour" if len(scene.things) == 1 and rng.random() < 0.4 else "is_colour"
    return form, parts, _yes(right, language)


def _ask_is_shape(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) > 1:
        return None
    right = bool(rng.random() < 0.5)
    shape = scene.things[0].shape if right else pick(rng, [s for s in SHAPES if s != scene.things[0].shape])
    return "is_shape", name_thing(rng, None, shape, language), _yes(right, language)


def _ask_either(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    thing = _pick_unique(rng, scene, "shape")
    if thing is None:
        return None
    if len(scene.things) == 1 and rng.random() < 0.4:
        other = pick(rng, [s for s in SHAPES if s != thing.shape])
        pair = [name_thing(rng, None, shape, language)["a"] for shape in (thing.shape, other)]
        one, two = (pair[i] for i in rng.permutation(2))
        return "either_shape", {"one": one, "two": two}, NOUNS[language][thing.shape][0][0]
    words = [say_colour(rng, thing.colour, language)]
    words.append(say_colour(rng, pick(rng, [c for c in COLOURS if c != thing.colour]), language))
    one, two = (words[i] for i in rng.permutation(2))
    parts = name_thing(rng, None, thing.shape, language) | {"one": one, "two": two}
    return "either_colour", parts, _word("colour", thing.colour, language)


def _find_extreme(scene: Scene, relation: str) -> Thing | None:
    """The thing that is furthest in a direction, by `RELATION_GAP` pixels."""
    dx, dy = RELATIONS[relation]
    *_, second, first = sorted(scene.things, key=lambda t: t.x * dx + t.y * dy)
    return first if (first.x - second.x) * dx + (first.y - second.y) * dy >= RELATION_GAP else None


def _ask_place(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    """What is on the left, the right, at the top, at the bottom?"""
    if len(scene.things) < 2:
        return None
    relation = pick(rng, tuple(RELATIONS))
    thing = _find_extreme(scene, relation)
    if thing is None:
        return None
    if rng.random() < 0.3:
        return f"colour_{relation}", {}, _word("colour", thing.colour, language)
    return relation, {}, _phrase(thing, language)


def _ask_neighbour(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    """What is left of the star, or next to it, in a scene of two things?"""
    if len(scene.things) != 2:
        return None
    thing, other = (scene.things[i] for i in rng.permutation(2))
    named = _describe_unique(rng, scene, other)
    if named is None:
        return None
    relation = pick(rng, (*RELATIONS, "next to"))
    if relation != "next to" and _find_extreme(scene, relation) is not thing:
        return None
    return f"what {relation}", name_thing(rng, *named, language), _phrase(thing, language)


def _ask_where(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    """Where is the star, left or right?"""
    if len(scene.things) != 2:
        return None
    thing = pick(rng, scene.things)
    named = _describe_unique(rng, scene, thing)
    upright = bool(rng.random() < 0.5)
    relation = next(
        (r for r in RELATIONS if (RELATIONS[r][1] != 0) == upright and _find_extreme(scene, r) is thing), None
    )
    if named is None or relation is None:
        return None
    form = "where_upright" if upright else "where_level"
    return form, name_thing(rng, *named, language), _word("place", relation, language)


def _ask_relation(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) < 2:
        return None
    one, other = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    named = [_describe_unique(rng, scene, thing) for thing in (one, other)]
    relation = pick(rng, tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    lead = (one.x - other.x) * dx + (one.y - other.y) * dy
    if named[0] is None or named[1] is None or abs(lead) < RELATION_GAP:
        return None
    first, second = (name_thing(rng, *some, language) for some in (named[0], named[1]))
    return f"is {relation}", first | {f"{key}2": text for key, text in second.items()}, _yes(lead > 0, language)


def _ask_size(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    thing = pick(rng, scene.things)
    named = _describe_unique(rng, scene, thing)
    if named is None:
        return None
    parts = name_thing(rng, *named, language)
    if rng.random() < 0.4:
        return "size", parts, _word("size", thing.size, language)
    size = pick(rng, ("big", "small"))
    return f"is_{size}", parts, _yes(thing.size == size, language)


def _ask_bigger(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) != 2 or scene.things[0].size == scene.things[1].size:
        return None
    wanted = pick(rng, ("big", "small"))
    thing = next(t for t in scene.things if t.size == wanted)
    one, other = (scene.things[i] for i in rng.permutation(2))
    named = [_describe_unique(rng, scene, t) for t in (one, other)]
    draw = rng.random()
    if draw < 0.3:
        return f"which_{wanted}", {}, _phrase(thing, language)
    if draw < 0.5:
        return f"colour_{wanted}", {}, _word("colour", thing.colour, language)
    if named[0] is None or named[1] is None:
        return None
    first, second = (name_thing(rng, *some, language) for some in (named[0], named[1]))
    parts = first | {f"{key}2": text for key, text in second.items()}
    if draw < 0.75:
        return f"or_{wanted}", parts, _phrase(thing, language)
    return f"than_{wanted}", parts, _yes(one.size == wanted, language)


def _ask_same(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    if len(scene.things) < 2:
        return None
    field = pick(rng, ("colour", "shape"))
    same = len({getattr(t, field) for t in scene.things}) == 1
    return f"same_{field}", {}, _yes(same, language)


def _ask_list(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    things = sort_in_reading_order(scene)
    if rng.random() < 0.5:
        colours = list(dict.fromkeys(_word("colour", t.colour, language) for t in things))
        return "colours", {}, join(colours, language)
    nouns = dict.fromkeys(NOUNS[language][t.shape][0] for t in things)
    ones = [add_article(n[0]) if language == "en" else _add_one(n, language) for n in nouns]
    return "shapes", {}, join(ones, language)


def _add_one(noun: tuple[str, str, str], language: str) -> str:
    if language == "zh":
        return noun[0]
    article = {"de": {"m": "ein", "f": "eine", "n": "ein"}, "es": {"m": "un", "f": "una", "n": "un"}}[language][
        noun[2]
    ]
    return f"{article} {noun[0]}"


def _ask_more(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    counts = Counter(t.shape for t in scene.things)
    if len(counts) < 2:
        return None
    one, other = (tuple(counts)[i] for i in rng.permutation(len(counts))[:2])
    first, second = (name_thing(rng, None, shape, language) for shape in (one, other))
    return "more", {"many": first["many"], "many2": second["many"]}, _yes(counts[one] > counts[other], language)


def _ask_everything(rng: np.random.Generator, scene: Scene, language: str) -> Found:
    return "describe", {}, write_caption(scene, language=language)


ASK: dict[str, Callable[[np.random.Generator, Scene, str], Found]] = {
    "describe": _ask_everything,
    "colour": _ask_colour,
    "shape": _ask_shape,
    "exists": _ask_existence,
    "count": _ask_count,
    "is_colour": _ask_is_colour,
    "is_shape": _ask_is_shape,
    "either": _ask_either,
    "place": _ask_place,
    "neighbour": _ask_neighbour,
    "where": _ask_where,
    "relation": _ask_relation,
    "size": _ask_size,
    "bigger": _ask_bigger,
    "same": _ask_same,
    "list": _ask_list,
    "more": _ask_more,
}
# How often each is asked: people ask for colours and numbers first.
KINDS = (
    *("colour",) * 4, *("exists",) * 4, *("count",) * 4, *("describe",) * 2, *("shape",) * 2, *("is_colour",) * 2,
    *("place",) * 3, *("relation",) * 3, *("neighbour",) * 2, "is_shape", "either", "where", "size", "size", "bigger",
    "bigger", "same", "list", "more",
)  # fmt: skip
