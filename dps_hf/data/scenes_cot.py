"""Answer a question about a scene: directly, or after worked steps."""

import numpy as np

from dps_hf.data.questions import ask
from dps_hf.data.record import Record, record
from dps_hf.data.scenes import HALF_WHITE, render, sample_split
from dps_hf.data.wording import caption


def scenes_cot(rng: np.random.Generator, split: str) -> Record:
    """A question; the hint is what is seen. Half of the grounds are white."""
    scene = sample_split(rng, split, grounds=HALF_WHITE)
    question, steps, answer, _ = ask(rng, scene)
    return record("scenes_cot", [render(scene), question], [answer], hint=f"I see {caption(scene)}.", steps=steps)
