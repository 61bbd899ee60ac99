"""What a pair is compared in."""

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dps_hf.preferences.first_difference import FirstDifference


def batch(*pairs: tuple[list[int], list[int]]) -> dict[str, list]:
    examples = [{"prompt_ids": [1, 2], "chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
    made = FirstDifference(DataCollatorForPreference(0))(examples)
    return {name: tensor.tolist() for name, tensor in made.items()}


def test_only_the_first_token_that_differs_has_a_loss_and_nothing_follows_the_last_of_them():
    made = batch(([3, 4, 5, 6], [3, 7, 8, 6]), ([9, 9], [8, 9]))
    assert made["input_ids"] == [[1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 7], [1, 2, 8, 9]]
    assert made["completion_mask"] == [[0, 0, 0, 1], [0, 0, 1, 0]] * 2
    assert made["attention_mask"] == [[1] * 4] * 4


@pytest.mark.parametrize("sides", [([3, 4], [3, 4, 5]), ([3, 4, 5], [3, 4])])
def test_where_one_side_is_the_beginning_of_the_other_their_last_common_token_is_left(sides):
    made = batch(sides, ([6, 7, 8], [6, 7, 9]))
    assert made["completion_mask"] == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]] * 2


def test_pictures_and_all_that_is_no_token_pass_unchanged():
    pixels = torch.zeros(2, 3, 4, 4)
    ids = torch.tensor([[1, 2, 3], [1, 4, 3]])
    collated = {"input_ids": ids, "completion_mask": torch.tensor([[0, 1, 1]] * 2), "pixel_values": pixels}
    made = FirstDifference(lambda examples: collated)([{}])
    assert made["pixel_values"] is pixels
    assert made["input_ids"].tolist() == [[1, 2], [1, 4]]
