"""What to ask to be drawn in alignment: much of it names a colour and a shape that training never shows together.

No right drawing of these is given: a judge says which of the model's own are right. What evaluation asks is in none of it.
"""

import numpy as np

from dps_hf.data.record import pick
from dps_hf.nano.scenes_t2i import prompted, scenes_t2i
from dps_hf.nano.wording import DRAW, LANGUAGES


def wishes(rng: np.random.Generator, count: int, unseen_share: float) -> list[str]:
    """Different prompts for drawings: as training hears them, and a share that names an unseen pair.

    Such a pair alone, which is measured, is in none of them; neither is any other prompt that is measured, nor the way of
    asking that is held out.
    """
    prompts: dict[str, None] = {}
    while len(prompts) < count:  # languages, sizes and ways of asking as often as there
        if rng.random() >= unseen_share:
            prompt = scenes_t2i(rng, "train")["messages"][0]["content"][0]["text"]
        else:
            form = pick(rng, ("things", "counting", "position"))
            number = int(rng.integers(2, 4)) if form == "things" else None
            language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
            _, prompt = prompted(rng, "validation", form, language, bool(rng.random() < 0.5), number, "pair")
            if rng.random() < 0.4:
                prompt = pick(rng, DRAW[language][:-1]).format(prompt)
        prompts[prompt] = None
    return list(prompts)
