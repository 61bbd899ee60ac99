"""What evaluation asks of dps-nano: prompts, scenes and emoji that its training never shows."""

from typing import Any

from dps_hf.data.record import pick
from dps_hf.evaluation.subject import Subject
from dps_hf.nano import emoji
from dps_hf.nano.scenes import HALF_WHITE, Scene, sample_split
from dps_hf.nano.scenes_t2i import make_prompt
from dps_hf.nano.wording import DRAW, LANGUAGES


FORMS: dict[str, dict[str, Any]] = {
    "one_object": {"form": "things", "count": 1},
    "two_objects": {"form": "things", "count": 2},
    "counting": {"form": "counting"},
    "position": {"form": "position"},
    "unseen_pair": {"form": "things", "count": 1, "unseen": "pair"},
    "unseen_count": {"form": "counting", "unseen": "count"},
}
"""Figures of drawn scenes, and the arguments of `make_prompt` that make the prompts of each."""


def held_out_emoji(subject: Subject, count: int | None = None) -> list[emoji.Pair]:
    """Emoji in a style in which training never shows them."""
    found = emoji.pairs("validation")
    return [found[i] for i in subject.rng("emoji").permutation(len(found))[: count or subject.items]]


def emoji_prompt(pair: emoji.Pair, language: str = "en") -> str:
    """The prompt for a drawing of an emoji in its style."""
    return f"{pair.names[language]}, {emoji.STYLES[pair.style]} style"


def held_out_scenes(subject: Subject, count: int | None = None, unseen: str | None = None) -> list[Scene]:
    """Scenes of `count` things, or of 1 to 4, on all grounds.

    Args:
        unseen: "pair" or "count", which each scene then holds; by default none does.
    """
    rng = subject.rng("scenes")
    return [sample_split(rng, "validation", count, unseen, grounds=HALF_WHITE) for _ in range(subject.items)]


def held_out_prompts(subject: Subject, name: str, count: int | None = None) -> list[str]:
    """Different prompts for the figure `name` of `FORMS`, none of which training contains.

    Half of them are English, and half name sizes. The last way of asking in each language is held out as well. There
    may be fewer prompts than asked for: only 456 ask for a colour and a shape that training never shows together.
    """
    rng, prompts, missed = subject.rng(name), dict[str, None](), 0
    while len(prompts) < (count or subject.items) and missed < 1000:
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        _, prompt = make_prompt(rng, "validation", language=language, sizes=bool(rng.random() < 0.5), **FORMS[name])
        prompt = pick(rng, DRAW[language]).format(prompt)
        missed = missed + 1 if prompt in prompts else 0
        prompts[prompt] = None
    return list(prompts)
