"""The training tasks of dps-nano. A task is a function `(rng, split) -> Record`."""

from collections.abc import Callable

import numpy as np

from dps_hf.data.record import Record, record, validate
from dps_hf.nano.emoji import emoji_i2t, emoji_t2i
from dps_hf.nano.everyday import everyday_emoji_i2t, everyday_emoji_t2i, everyday_i2t, everyday_t2i
from dps_hf.nano.facts import facts
from dps_hf.nano.scenes_cot import scenes_cot
from dps_hf.nano.scenes_edit import scenes_edit
from dps_hf.nano.scenes_i2t import scenes_i2t
from dps_hf.nano.scenes_palette import scenes_palette
from dps_hf.nano.scenes_t2i import scenes_t2i
from dps_hf.nano.talk import talk


TASKS: dict[str, Callable[[np.random.Generator, str], Record]] = {
    "scenes_t2i": scenes_t2i,
    "scenes_palette": scenes_palette,
    "scenes_i2t": scenes_i2t,
    "scenes_cot": scenes_cot,
    "scenes_edit": scenes_edit,
    "emoji_t2i": emoji_t2i,
    "emoji_i2t": emoji_i2t,
    "facts": facts,
    "everyday_t2i": everyday_t2i,
    "everyday_i2t": everyday_i2t,
    "everyday_emoji_t2i": everyday_emoji_t2i,
    "everyday_emoji_i2t": everyday_emoji_i2t,
    "talk": talk,
}

__all__ = ["TASKS", "Record", "record", "validate"]
