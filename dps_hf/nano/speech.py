"""Wishes in people's own words: synonyms, digits, any case, please and thanks, misspellings.

`wording` has the words that dps-nano itself uses, and one sentence for each meaning.
"""

import re
from collections.abc import Sequence

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.forms import choose_form, read_forms
from dps_hf.nano.vocabulary import (
    CLOSINGS,
    FIXED,
    JOINTS,
    NOUNS,
    NUMBERS,
    OPENINGS,
    PAINTS,
    SHADES,
    SIZE_WORDS,
    UNINFLECTED,
)
from dps_hf.nano.wording import Kind, Wish


PLAIN = 0.6  # share of the words that are the first of their entry, the usual one
TYPO = 0.12  # share of the texts with a misspelled word
ENDINGS = {"nominative": {"m": "er", "f": "e", "n": "es"}, "accusative": {"m": "en", "f": "e", "n": "es"}}
"""German endings of an adjective after "ein". In the dative all of them are "en"."""


def say_freely(rng: np.random.Generator, wish: Wish, language: str, held_out: bool = False) -> str:
    """Puts a wish into words as a person would.

    Args:
        held_out: whether the request around it is one of those that training excludes.
    """
    form = choose_form(rng, read_forms("requests")[language], held_out) or "{}"
    case = "accusative" if "{a}" in form else "dative" if "{d}" in form else "nominative"
    form = form.replace("{a}", "{}").replace("{d}", "{}")
    if wish.relation:
        one, relation, other = wish.relation
        sentence = pick(rng, read_forms("relations")[language][relation])
        texts = [write_freely(rng, kind, 1, language, case) for kind in (one, other)]
        said = (
            sentence.format(*texts)
            if "{1d}" not in sentence
            else sentence.replace("{1d}", "{1}").format(texts[0], write_freely(rng, other, 1, language, "dative"))
        )
    else:
        said = _say_list(rng, list(wish.kinds.items()), language, case)
    return disturb(rng, form.format(said), language)


def _say_list(rng: np.random.Generator, items: list[tuple[Kind, int]], language: str, case: str) -> str:
    grouped = _say_grouped(rng, items, language) if rng.random() < 0.3 else None
    if grouped:
        return grouped
    texts = [write_freely(rng, kind, number, language, case) for kind, number in items]
    last = pick(rng, JOINTS[language])
    comma = pick(rng, ("、", "，") if language == "zh" else (", ", ", ", " and " if language == "en" else ", "))
    if len(texts) == 1:
        return texts[0]
    return comma.join(texts[:-1]) + last + texts[-1]


def _say_grouped(rng: np.random.Generator, items: list[tuple[Kind, int]], language: str) -> str | None:
    """Things of one shape, or of one colour, together: "two hearts, one red and one blue". English only."""
    (size, colour, shape), number = items[0]
    if language != "en":
        return None
    if len(items) == 1:
        if number == 1:
            return None
        noun = pick(rng, NOUNS["en"][shape])[1]
        count, paint = pick(rng, NUMBERS["en"][number]), say_colour(rng, colour, "en")
        sized = f"{pick(rng, SIZE_WORDS['en'][size])} " if size else ""
        both = "both" if number == 2 else "all"
        forms = (f"{count} {sized}{noun}, {both} {paint}", f"{count} {sized}{noun} in {paint}",
                 f"{sized}{noun} - {count} {paint} ones", f"{count} {sized}{noun} that are {paint}")  # fmt: skip
        return pick(rng, forms)
    shapes, colours = {kind[2] for kind, _ in items}, {kind[1] for kind, _ in items}
    if any(count > 1 for _, count in items) or any(kind[0] for kind, _ in items):
        return None
    total = pick(rng, NUMBERS["en"][len(items)])
    if len(shapes) == 1:
        nouns = pick(rng, NOUNS["en"][shape])
        paints = [say_colour(rng, kind[1], "en") for kind, _ in items]
        ones = [f"one {paint}" for paint in paints]
        joined = ", ".join(ones[:-1]) + " and " + ones[-1]
        bare = ", ".join(f"a {paint}" for paint in paints[:-1]) + f" and a {paints[-1]} {nouns[0]}"
        return pick(
            rng, (f"{total} {nouns[1]}, {joined}", f"{total} {nouns[1]}: {joined}", f"{joined} {nouns[0]}", bare)
        )
    if len(colours) == 1:
        nouns_of = [pick(rng, NOUNS["en"][kind[2]])[0] for kind, _ in items]
        joined = ", ".join(f"a {noun}" for noun in nouns_of[:-1]) + f" and a {nouns_of[-1]}"
        return f"{joined}, {'both' if len(items) == 2 else 'all'} {say_colour(rng, colour, 'en')}"
    return None


def say_colour(rng: np.random.Generator, colour: str, language: str) -> str:
    """A word for a colour: mostly the usual one."""
    words = PAINTS[language][colour]
    if rng.random() >= PLAIN:
        return pick(rng, words)
    return pick(rng, SHADES["en"]).format(words[0]) if language == "en" and rng.random() < 0.1 else words[0]


def _pick_usual(rng: np.random.Generator, options: Sequence) -> object:
    return options[0] if rng.random() < PLAIN else pick(rng, options)


def write_freely(
    rng: np.random.Generator, kind: Kind, number: int = 1, language: str = "en", case: str = "nominative"
) -> str:
    """A thing, or several of a kind, as a person would name it: "2 tiny stars in crimson", "einen knallroten Ball"."""
    size, colour, shape = kind
    noun = NOUNS[language][shape][0] if rng.random() < PLAIN else pick(rng, NOUNS[language][shape])
    many = pick(rng, NUMBERS[language][number])
    if rng.random() < 0.5:
        many = NUMBERS[language][number][0]
    paint = say_colour(rng, colour, language)
    sized = ""
    if size:
        sizes = SIZE_WORDS[language][size]
        sized = sizes[0] if rng.random() < PLAIN else pick(rng, sizes)
    write = {"en": _write_english, "de": _write_german, "es": _write_spanish, "zh": _write_chinese}[language]
    return write(rng, sized, paint, noun, number, many, case)


def _write_english(
    rng: np.random.Generator, sized: str, paint: str, noun: tuple[str, str, str], number: int, many: str, case: str
) -> str:
    name = noun[0] if number == 1 else noun[1]
    draw = rng.random()
    if draw < 0.72:
        words = [sized, paint, name]
        if sized and rng.random() < 0.1:
            words = [paint, sized, name]
        tail = ""
    elif draw < 0.8:
        words, tail = [sized, name], f" in {paint}"
    elif draw < 0.85:
        words, tail = [sized, name], f" that {'is' if number == 1 else 'are'} {paint}"
    elif draw < 0.9:
        words, tail = [sized, name], f", {paint}" if rng.random() < 0.5 else f" ({paint})"
    elif draw < 0.94:
        words, tail = [name], f" {paint}" if not sized else f", {sized} and {paint}"
    else:
        words, tail = [sized, name], f" of {paint} colour" if rng.random() < 0.3 else f" coloured {paint}"
    text = " ".join(word for word in words if word)
    if many == "a":
        if rng.random() < 0.25:
            return text + tail  # "red circle"
        many = "an" if text[0] in "aeiou" else "a"
    return f"{many} {text}{tail}"


def _write_german(
    rng: np.random.Generator, sized: str, paint: str, noun: tuple[str, str, str], number: int, many: str, case: str
) -> str:
    name, gender = noun[0] if number == 1 else noun[1], noun[2]
    draw = rng.random()
    if draw < 0.1:
        return f"{name} {paint}" if number == 1 else f"{many} {name}, alle {paint}"
    if number > 1 and many == "ein Paar":
        many = "zwei"
    bare = many == "ein" and rng.random() < 0.2
    if number > 1:
        ending = "en" if case == "dative" else "e"
    else:
        ending = "en" if case == "dative" and not bare else ENDINGS.get(case, ENDINGS["nominative"])[gender]
    in_colour = draw < 0.18
    words = [decline(word, ending) for word in ((sized,) if in_colour else (sized, paint)) if word]
    text = " ".join([*words, name])
    tail = f" in {paint[0].upper() + paint[1:]}" if in_colour else ""
    if many in ("ein", "ein einziges"):
        if bare:
            return text + tail
        article = {
            "nominative": {"m": "ein", "f": "eine", "n": "ein"},
            "accusative": {"m": "einen", "f": "eine", "n": "ein"},
            "dative": {"m": "einem", "f": "einer", "n": "einem"},
        }[case][gender]
        return f"{article} {text}{tail}"
    return f"{many} {text}{tail}"


def decline(adjective: str, ending: str) -> str:
    """A German adjective with its ending: "rot" and "er" give "roter"; "lila" has none."""
    if adjective in UNINFLECTED and adjective != "orange":
        return adjective if adjective != "pink" or not ending else "pink" + ending
    if adjective == "orange":
        return "orange"
    if adjective == "golden":
        return "golden" + ending
    return adjective + ending


def _write_spanish(
    rng: np.random.Generator, sized: str, paint: str, noun: tuple[str, str, str], number: int, many: str, case: str
) -> str:
    name, gender = noun[0] if number == 1 else noun[1], noun[2]
    draw = rng.random()
    adjectives = [agree(paint, gender, number)]
    tail = ""
    if draw < 0.12:
        adjectives, tail = [], f" de color {paint}" if rng.random() < 0.7 else f", {agree(paint, gender, number)}"
    if sized:
        size = agree(sized, gender, number)
        before = rng.random() < 0.15
        if before:
            name = f"{'gran' if sized == 'grande' and number == 1 else size} {name}"
        else:
            adjectives.insert(int(rng.integers(len(adjectives) + 1)), size)
    text = " ".join([name, *adjectives]) + tail
    if many in ("un", "un solo"):
        if many == "un" and rng.random() < 0.2:
            return text
        return (
            f"{'un' if gender == 'm' else 'una'}{'' if many == 'un' else ' solo' if gender == 'm' else ' sola'} {text}"
        )
    return f"{many} {text}"


def agree(adjective: str, gender: str, number: int) -> str:
    """A Spanish adjective with the gender and the number of its noun: "roja", "azules"; "naranja" stays."""
    if adjective in FIXED or " " in adjective or adjective == "naranja":
        return adjective
    if adjective.endswith("o") and gender == "f":
        adjective = adjective[:-1] + "a"
    return adjective + ("" if number == 1 else "s" if adjective[-1] in "aeo" else "es")


def _write_chinese(
    rng: np.random.Generator, sized: str, paint: str, noun: tuple[str, str, str], number: int, many: str, case: str
) -> str:
    name = noun[0]
    measure = "颗" if name in ("心形", "心", "爱心", "星形", "星星", "星", "五角星") and rng.random() < 0.6 else "个"
    link = "的" if len(paint) > 1 and rng.random() < 0.7 else ""
    if sized in ("小", "大") or rng.random() < 0.4:
        words = f"{paint}{link}{sized}{name}"
    else:
        words = f"{sized}{paint}{link}{name}"
    if rng.random() < 0.06:
        words = f"{sized}{name}，{paint}的"
    if number == 1 and rng.random() < 0.3:
        return words
    return f"{many}{measure}{words}"


# What happens to any text


def disturb(rng: np.random.Generator, text: str, language: str) -> str:
    """Opens and closes a text politely, changes the case and the punctuation, and misspells a word, each at times."""
    if rng.random() < 0.12:
        text = pick(rng, OPENINGS[language]) + text
    if rng.random() < 0.12:
        text = text.rstrip("?.？。") + pick(rng, CLOSINGS[language])
    if rng.random() < TYPO:
        text = misspell(rng, text, language)
    if language != "zh":
        draw = rng.random()
        if draw < 0.4:
            text = text[:1].upper() + text[1:]
        elif draw < 0.47:
            text = text.upper()
        elif draw < 0.52:
            text = text.title()
        elif draw < 0.75:
            text = text.lower()
    if language == "es" and rng.random() < 0.25:
        text = text.translate(str.maketrans("áéíóúü", "aeiouu", "¿¡"))
    if language == "de" and rng.random() < 0.15:
        text = text.replace("ß", "ss")
        for umlaut, plain in (("ü", "ue"), ("ö", "oe"), ("ä", "ae")):
            text = text.replace(umlaut, plain)
    draw = rng.random()
    if draw < 0.2 and text[-1] not in "?.!)？。":
        text += "。" if language == "zh" else "."
    elif draw < 0.25 and text[-1] not in "?？":
        text = text.rstrip("。.") + ("！" if language == "zh" else "!")
    elif draw < 0.45:
        text = text.rstrip("?？")
    return text


KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def misspell(rng: np.random.Generator, text: str, language: str) -> str:
    """Misspells one word of four or more letters: two letters swapped, one missing, doubled, or its neighbour hit."""
    words = list(re.finditer(r"[^\W\d_]{4,}", text))
    if language == "zh" or not words:
        return text
    word = pick(rng, words)
    at = int(rng.integers(word.start() + 1, word.end() - 1))
    kind = pick(rng, ("swap", "drop", "double", "hit"))
    if kind == "swap":
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == "drop":
        return text[:at] + text[at + 1 :]
    if kind == "double":
        return text[: at + 1] + text[at:]
    row = next((row for row in KEYS if text[at].lower() in row), None)
    if row is None:
        return text
    place = row.index(text[at].lower()) + int(rng.choice((-1, 1)))
    return text[:at] + row[min(max(place, 0), len(row) - 1)] + text[at + 1 :]
