"""Drawing and reading as people ask for it: any words of `vocabulary`, any pictures of `views`, emoji among them.

The tasks `scenes_t2i`, `scenes_i2t`, `scenes_cot`, `emoji_t2i` and `emoji_i2t` have the words and pictures of the
first evaluations, and remain as they are.
"""

from collections import Counter
from functools import cache

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano import emoji
from dps_hf.nano.asking import ask_freely
from dps_hf.nano.forms import choose_form, read_forms
from dps_hf.nano.scenes import COLOURS, HALF_WHITE, SHAPES, SIZES, is_held_out, render, sample_split, shows
from dps_hf.nano.scenes_t2i import arrange_scene, is_held_out_wish
from dps_hf.nano.speech import disturb, say_freely
from dps_hf.nano.splits import check_split
from dps_hf.nano.views import sample_view
from dps_hf.nano.vocabulary import NOUNS, PAINTS, SIZE_WORDS
from dps_hf.nano.wording import LANGUAGES, RELATIONS, Wish, write_places


QUESTIONS = 5  # about each picture
VIEWS = 0.6  # share of the pictures that have any geometry; the others are those of `scenes`
ALIKE = 0.3  # share of these that have something to count
MOST_THINGS = 4


# Scenes


def everyday_t2i(rng: np.random.Generator, split: str) -> Record:
    """A record with a wish in people's own words and its drawing. Half of the wishes are English.

    The split is that of the wish, whatever its words.
    """
    wish = sample_wish(rng, split)
    language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
    scene = arrange_scene(wish)
    return record("everyday_t2i", [say_freely(rng, wish, language)], [render(scene)], steps=write_places(scene))


def sample_wish(rng: np.random.Generator, split: str) -> Wish:
    """A wish for one to four things, in mixed numbers, or for two in a relation.

    A third of the wishes gives all sizes, another third some of them.

    Raises:
        ValueError: the split is unknown.
    """
    check_split(split)
    while True:
        wish = _sample_any_wish(rng)
        scene = arrange_scene(wish)
        if not shows(scene, None) or (split == "train" and is_held_out(scene)):
            continue
        if is_held_out_wish(wish) == (split == "validation"):
            return wish


def _sample_any_wish(rng: np.random.Generator) -> Wish:
    share = pick(rng, (0.0, 0.5, 1.0))

    def any_kind() -> tuple[str | None, str, str]:
        size = pick(rng, tuple(SIZES)) if rng.random() < share else None
        return size, pick(rng, tuple(COLOURS)), pick(rng, SHAPES)

    form = pick(rng, ("one", "one", "several", "several", "mixed", "relation", "relation"))
    one, other = any_kind(), any_kind()
    if form == "one":
        return Wish(Counter([one]))
    if form == "relation" and one[1:] != other[1:]:
        return Wish(Counter((one, other)), (one, pick(rng, tuple(RELATIONS)), other))
    if form == "several":
        return Wish(Counter({one: int(rng.integers(2, MOST_THINGS + 1))}))
    if rng.random() < 0.3:  # "a red and a blue heart"
        other = (other[0], other[1], one[2])
    kinds = Counter({one: int(rng.integers(1, MOST_THINGS))})
    kinds[other] += int(rng.integers(1, MOST_THINGS + 1 - kinds[one]))
    if kinds.total() < MOST_THINGS and rng.random() < 0.4:
        kinds[any_kind()] += 1
    return Wish(kinds)


def everyday_i2t(rng: np.random.Generator, split: str) -> Record:
    """A record with `QUESTIONS` about one picture in people's own words, each in a language of its own.

    The first is asked, the others are `more`. The worked steps say what is where, so they lead to all answers.
    """
    if rng.random() < VIEWS:
        alike = bool(rng.random() < ALIKE)
        picture, scene = sample_view(rng, split, int(rng.integers(2, 5)) if alike else None, alike=alike)
    else:
        scene = sample_split(rng, split, grounds=HALF_WHITE)
        picture = render(scene)
    asked = []
    for _ in range(QUESTIONS):
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        asked.append(ask_freely(rng, scene, language)[:2])
    (question, answer), *more = asked
    return {**record("everyday_i2t", [picture, question], [answer], steps=write_places(scene)), "more": more}


# Emoji


def everyday_emoji_t2i(rng: np.random.Generator, split: str) -> Record:
    """A record to learn drawing an emoji from a wish in people's own words.

    Half of the wishes name a style. Otherwise the style is the first of `STYLES` in which training has the emoji.
    """
    pairs = emoji.select_pairs(split)
    while True:
        pair = pick(rng, pairs)
        language = "en" if rng.random() < 0.7 else pick(rng, LANGUAGES[1:])
        if not _is_shape(pair.names[language], language):
            break
    name, styled = pair.names[language], rng.random() < 0.5
    if not styled:
        pair = find_usual(pair)
    if language == "en":
        name = f"{pick(rng, ('', '', 'a ', 'the ', 'an emoji of '))}{name}{pick(rng, ('', '', '', ' emoji'))}"
    elif rng.random() < 0.2:
        name += pick(rng, {"de": (" Emoji", " als Emoji"), "es": (" emoji",), "zh": ("表情", "表情符号")}[language])
    text = choose_form(rng, read_forms("wishes")[language]).format(name)
    if styled:
        style = emoji.STYLES[pair.style]
        text = pick(
            rng, (f"{text}, {style} style", f"{text} in {style} style", f"{style} {text}", f"{text} ({style})")
        )
    return record("everyday_emoji_t2i", [disturb(rng, text, language)], [emoji.get_picture(pair)])


@cache
def _index_usual() -> dict[str, emoji.Pair]:
    usual: dict[str, emoji.Pair] = {}
    order = tuple(emoji.STYLES)
    for pair in sorted(emoji.select_pairs("train"), key=lambda pair: order.index(pair.style)):
        usual.setdefault(pair.codepoints, pair)
    return usual


def find_usual(pair: emoji.Pair) -> emoji.Pair:
    """The same emoji in the style in which it is drawn if none is named."""
    return _index_usual().get(pair.codepoints, pair)


def _is_shape(name: str, language: str) -> bool:
    """Whether a name is also a wish for a shape, such as "red heart"."""
    return {*name.casefold().replace("-", " ").split()} <= _list_shape_words(language)


@cache
def _list_shape_words(language: str) -> set[str]:
    words = [noun for nouns in NOUNS[language].values() for forms in nouns for noun in forms]
    words += [paint for paints in PAINTS[language].values() for paint in paints]
    words += [size for sizes in SIZE_WORDS[language].values() for size in sizes]
    return {part for word in words for part in word.casefold().split()} | {"medium"}


YES = {"en": ("yes", "no"), "de": ("ja", "nein"), "es": ("sí", "no"), "zh": ("是", "不是")}


def everyday_emoji_i2t(rng: np.random.Generator, split: str) -> Record:
    """A record with four questions about an emoji: its name in people's own words, or whether it is what one says."""
    pairs = emoji.select_pairs(split)
    pair = pick(rng, pairs)
    image = emoji.get_picture(pair)
    if split == "train":
        image = emoji.jitter_colours(emoji.augment(image, rng, pair.may_mirror), rng)
    asked = []
    for _ in range(4):
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        if rng.random() < 0.2:
            right = bool(rng.random() < 0.5)
            named = pair if right else pick(rng, pairs)
            text = choose_form(rng, read_forms("emoji checks")[language]).format(named.names[language])
            answer = YES[language][0 if named.codepoints == pair.codepoints else 1]
        else:
            by_name = rng.random() < 0.5
            forms = read_forms("emoji names")[language] if by_name else read_forms("questions")[language]["describe"]
            text, answer = choose_form(rng, forms), pair.names[language]
        asked.append((disturb(rng, text, language), answer))
    (question, answer), *more = asked
    return {**record("everyday_emoji_i2t", [image, question], [answer], steps=pair.names["en"]), "more": more}
