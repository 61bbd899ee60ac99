"""What to ask in alignment: much of it names or shows a colour and a shape that training never shows together.

No right drawing or reading of these is given: a judge says which of the model's own are right. What evaluation asks is in
none of it.
"""

from collections.abc import Iterator

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.data.scenes import HALF_WHITE, Scene, held_out, render, sample_scene, shows
from dps_hf.data.scenes_cot import asked_about
from dps_hf.data.scenes_t2i import prompted, scenes_t2i
from dps_hf.data.wording import DESCRIBE, DRAW, LANGUAGES, caption


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
            language = "en" if rng.random() < 0.6 else pick(rng, LANGUAGES[1:])
            _, prompt = prompted(rng, "validation", form, language, bool(rng.random() < 0.5), number, "pair")
            if rng.random() < 0.4:
                prompt = pick(rng, DRAW[language][:-1]).format(prompt)
        prompts[prompt] = None
    return list(prompts)


def descriptions(rng: np.random.Generator, count: int, unseen_share: float) -> list[Record]:
    """Pictures to be described in English, of which a share shows an unseen pair."""
    scenes = _scenes(rng, count, unseen_share)
    return [record("scenes_i2t", [render(scene), DESCRIBE["en"][0]], [caption(scene)]) for scene in scenes]


def questions(rng: np.random.Generator, count: int, unseen_share: float) -> list[Record]:
    """Questions with their worked steps; a share of the pictures shows an unseen pair."""
    return [asked_about(rng, scene) for scene in _scenes(rng, count, unseen_share)]


def _scenes(rng: np.random.Generator, count: int, unseen_share: float) -> Iterator[Scene]:
    """None of them is kept out, as all that are measured are, whatever they show."""
    for _ in range(count):
        unseen = "pair" if rng.random() < unseen_share else None
        while held_out(scene := sample_scene(rng, grounds=HALF_WHITE)) or not shows(scene, unseen):
            pass
        yield scene
