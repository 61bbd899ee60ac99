"""Prompts for alignment on drawings. Many contain a colour-shape combination that training does not contain.

They have no reference drawings, because a judge scores the drawings of the model. None is a prompt of the evaluation.
"""

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.scenes_t2i import make_prompt, scenes_t2i
from dps_hf.nano.wording import DRAW, LANGUAGES


def make_prompts(rng: np.random.Generator, count: int, unseen_share: float) -> list[str]:
    """Makes `count` distinct prompts for drawings.

    Evaluation prompts contain an unseen combination alone. Here such a combination always comes with other things.

    Args:
        unseen_share: share of prompts with an unseen combination of colour and shape. The others are like in training.
    """
    prompts: dict[str, None] = {}
    while len(prompts) < count:  # the shares of languages, sizes and templates are those of `scenes_t2i`
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
