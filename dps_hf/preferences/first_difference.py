"""Pairs that trl's trainer compares only where they part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class FirstDifference:
    """trl's own batches of pairs, each cut after the first token in which its sides differ, which alone has a loss.

    What leads to a wrong drawing is one decision; all codes after it follow from it, almost surely, and are as they
    should be: whole drawings make them less likely, too. So with thoughts:
    Step-DPO (arXiv 2406.18629, section 3.1) compares the first wrong step, after the right ones that precede it.

    Args:
        collator: makes the batches: trl's `DataCollatorForPreference`, or its `DataCollatorForVisionPreference`.
    """

    collator: Callable[[list[dict[str, Any]]], Any]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        ids, completed = batch["input_ids"], batch["completion_mask"].bool()
        (chosen, rejected), common = ids.chunk(2), completed.chunk(2)[0] & completed.chunk(2)[1]
        # Where one side is the beginning of the other there is no such token: the last common one has no margin.
        differ = common & (chosen != rejected)
        last = common.shape[1] - 1 - common.flip(1).int().argmax(1)
        first = torch.where(differ.any(1), differ.int().argmax(1), last)
        length = int(first.max()) + 1
        decision = (torch.arange(length) == first[:, None]).long()
        shorter = {name: batch[name][:, :length] for name in batch if batch[name].shape == ids.shape}
        return {**batch, **shorter, "completion_mask": decision.repeat(2, 1)}
