"""Prompts for drawings in alignment; many name a colour and a shape that are never together in training.

They come without right drawings: a judge scores those of the model. No prompt of the evaluation is among them.
"""

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.scenes_t2i import make_prompt, scenes_t2i
from dps_hf.nano.wording import DRAW, LANGUAGES


def make_prompts(rng: np.random.Generator, count: int, unseen_share: float) -> list[str]:
    """Different prompts for drawings.

    The evaluation measures prompts with an unseen pair alone; here such pairs always come with other things.

    Args:
        unseen_share: share of prompts that name an unseen pair of a colour and a shape. The others are as in training.
    """
    prompts: dict[str, None] = {}
    while len(prompts) < count:  # languages, sizes and ways of asking as often as there
        if rng.random() >= unseen_share:
            prompt = scenes_t2i(rng, "train")["messages"][0]["content"][0]["text"]
        else:
            form = pick(rng, ("things", "counting", "position"))
            number = int(rng.integers(2, 4)) if form == "things" else None
            language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
            _, prompt = make_prompt(rng, "validation", form, language, bool(rng.random() < 0.5), number, "pair")
            if rng.random() < 0.4:
                prompt = pick(rng, DRAW[language][:-1]).format(prompt)
        prompts[prompt] = None
    return list(prompts)
