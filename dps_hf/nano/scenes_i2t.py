"""Describe a scene."""

import numpy as np

from dps_hf.data.record import Record, pick, record
from dps_hf.nano.scenes import HALF_WHITE, render, sample_split
from dps_hf.nano.wording import DESCRIBE, LANGUAGES, write_caption


def scenes_i2t(rng: np.random.Generator, split: str) -> Record:
    """A record that describes a scene in the language of the question. Half of the backgrounds are white."""
    scene = sample_split(rng, split, grounds=HALF_WHITE)
    language = "en" if rng.random() < 0.6 else pick(rng, LANGUAGES[1:])
    question = pick(rng, DESCRIBE[language][:-1])
    return record("scenes_i2t", [render(scene), question], [write_caption(scene, language=language)])
