"""Answer a question about a scene: directly, or after worked steps."""

from contextlib import suppress

import numpy as np

from dps_hf.data.record import Record, record
from dps_hf.nano.questions import ask
from dps_hf.nano.scenes import HALF_WHITE, render, sample_split
from dps_hf.nano.wording import write_caption


def scenes_cot(rng: np.random.Generator, split: str) -> Record:
    """A record with a question about a scene. Half of the backgrounds are white. The hint is its caption."""
    scene = sample_split(rng, split, grounds=HALF_WHITE)
    asked = ask(rng, scene)
    if rng.random() < 0.3:  # relations need more examples than the other questions
        with suppress(ValueError):  # the scene has no two things with different names
            asked = ask(rng, scene, "relate")
    question, steps, answer, _ = asked
    return record(
        "scenes_cot", [render(scene), question], [answer], hint=f"I see {write_caption(scene)}.", steps=steps
    )
