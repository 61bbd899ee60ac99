"""Pairs that trl's trainer compares only where they part."""

from dataclasses import dataclass
from typing import Any

from trl.trainer.dpo_trainer import DataCollatorForPreference


@dataclass
class FirstDifference(DataCollatorForPreference):
    """trl's own batches, each pair ending with the first token in which its sides differ, which alone has a loss.

    What leads to a wrong drawing is one decision; all codes after it follow from it, almost surely, and are as they
    should be. To make them less likely, as whole drawings do, spoils what they know. The same for thoughts: Step-DPO
    (arXiv 2406.18629, section 3.1) compares the first wrong step, after the right ones that precede it.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call([_decision(example) for example in examples])


def _decision(example: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = example["chosen_ids"], example["rejected_ids"]
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)) - 1)
    return {
        **example,
        "prompt_ids": example["prompt_ids"] + chosen[:same],
        "chosen_ids": chosen[same : same + 1],
        "rejected_ids": rejected[same : same + 1],
    }
