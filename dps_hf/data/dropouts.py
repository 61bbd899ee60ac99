"""What the records of a training set lose, so that a model learns to do without it."""

from typing import Protocol

import numpy as np

from dps_hf.data.record import Record


class Records(Protocol):
    """A map-style data set of records: a list, a [`~dps_hf.data.mixture.Mixture`], a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Dropouts:
    """The records of a training set, some of which lose their prompt and some the codes of their drawing.

    What a record loses depends on `(seed, index)` alone, not on the batch it is in. Only records whose answer is a
    drawing lose anything. Evaluation uses the records without this wrapper.

    Args:
        prompt_dropout: share of the drawings that are learned without everything before them, pictures and plan
            included. Classifier-free guidance needs this.
        code_dropout: share of the other drawings in which a random share of the codes is hidden from the codes that
            follow. A model that sees all earlier codes can ignore the prompt. One that does not needs the prompt.
    """

    def __init__(self, records: Records, seed: int, prompt_dropout: float = 0.0, code_dropout: float = 0.0):
        self.records, self.seed, self.prompt_dropout, self.code_dropout = records, seed, prompt_dropout, code_dropout

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        # Three numbers: these draws must be independent of those that make the record.
        rng = np.random.default_rng([self.seed, index, 0xD207])
        drop_prompt, hides_codes = rng.random(2) < (self.prompt_dropout, self.code_dropout)
        return {
            **self.records[index],
            "drop_prompt": bool(drop_prompt),
            "hidden_codes": float(rng.random()) if hides_codes and not drop_prompt else 0.0,
            "hidden_codes_seed": int(rng.integers(2**32)),
        }
