"""The data on which dps-nano is evaluated: prompts, scenes and emoji that its training does not contain."""

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
"""Name of a figure for drawings to the arguments of `make_prompt` for its prompts."""


def select_emoji(subject: Subject, count: int | None = None) -> list[emoji.Pair]:
    """Emoji in styles that are excluded from training."""
    found = emoji.select_pairs("validation")
    return [found[i] for i in subject.rng("emoji").permutation(len(found))[: count or subject.items]]


def write_emoji_prompt(pair: emoji.Pair, language: str = "en") -> str:
    """The prompt for a drawing of an emoji in its style."""
    return f"{pair.names[language]}, {emoji.STYLES[pair.style]} style"


def sample_scenes(subject: Subject, count: int | None = None, unseen: str | None = None) -> list[Scene]:
    """Held-out scenes of `count` things, by default 1 to 4, on all backgrounds.

    Args:
        unseen: "pair" or "count", which each scene then contains. By default none does.
    """
    rng = subject.rng("scenes")
    return [sample_split(rng, "validation", count, unseen, grounds=HALF_WHITE) for _ in range(subject.items)]


def select_prompts(subject: Subject, name: str, count: int | None = None) -> list[str]:
    """Distinct prompts for the figure `name` of `FORMS`, none of which training contains.

    Half of them are English, and half give sizes. Held-out templates are used as well. There may be fewer than `count`
    prompts: only 456 exist for the unseen combinations of colour and shape.
    """
    rng, prompts, missed = subject.rng(name), dict[str, None](), 0
    while len(prompts) < (count or subject.items) and missed < 1000:
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        _, prompt = make_prompt(rng, "validation", language=language, sizes=bool(rng.random() < 0.5), **FORMS[name])
        prompt = pick(rng, DRAW[language]).format(prompt)
        missed = missed + 1 if prompt in prompts else 0
        prompts[prompt] = None
    return list(prompts)
