"""Answer a question about a scene: directly, or after worked steps."""

from contextlib import suppress

import numpy as np

from dps_hf.data.record import Record, record
from dps_hf.nano.questions import ask
from dps_hf.nano.scenes import HALF_WHITE, render, sample_split
from dps_hf.nano.wording import caption


def scenes_cot(rng: np.random.Generator, split: str) -> Record:
    """A question about a scene of a split; half of the grounds are white. The hint is what is seen."""
    scene = sample_split(rng, split, grounds=HALF_WHITE)
    asked = ask(rng, scene)
    if rng.random() < 0.3:  # how two things stand takes more practice than all else
        with suppress(ValueError):  # no two of them can be told apart
            asked = ask(rng, scene, "relate")
    question, steps, answer, _ = asked
    return record("scenes_cot", [render(scene), question], [answer], hint=f"I see {caption(scene)}.", steps=steps)
