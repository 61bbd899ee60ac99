"""Dropout of prompts and of image codes, chosen for each record of a training set."""

from typing import Protocol

import numpy as np

from dps_hf.data.record import Record


class Records(Protocol):
    """A map-style data set of records: a list, a [`~dps_hf.data.mixture.Mixture`], a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Dropouts:
    """Wraps a training set. Drops the prompt of some records, and hides image codes of some others.

    What is dropped depends on `(seed, index)` alone, not on the batch. It affects only records whose last answer has a
    drawing; of several drawings in that answer, the first one. Together with the prompt, all earlier turns are
    dropped. Hidden codes do not change earlier turns. Evaluation uses the records without this wrapper.

    Args:
        prompt_dropout: share of the drawings that are learned without the prompt, pictures and thoughts before them.
            Classifier-free guidance needs this.
        code_dropout: share of the other drawings in which a random share of the codes is hidden from later codes. It
            makes the model use the prompt instead of the earlier codes alone.
    """

    def __init__(self, records: Records, seed: int, prompt_dropout: float = 0.0, code_dropout: float = 0.0):
        self.records, self.seed, self.prompt_dropout, self.code_dropout = records, seed, prompt_dropout, code_dropout

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        # A third number in the seed, because these draws must be independent of those that make the record.
        rng = np.random.default_rng([self.seed, index, 0xD207])
        drop_prompt, hides_codes = rng.random(2) < (self.prompt_dropout, self.code_dropout)
        return {
            **self.records[index],
            "drop_prompt": bool(drop_prompt),
            "hidden_codes": float(rng.random()) if hides_codes and not drop_prompt else 0.0,
            "hidden_codes_seed": int(rng.integers(2**32)),
        }
