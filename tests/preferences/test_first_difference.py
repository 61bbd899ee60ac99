"""What a pair is compared in."""

import pytest
import torch

from dps_hf.preferences.first_difference import FirstDifference


def example(chosen: list[int], rejected: list[int]) -> dict:
    return {"prompt_ids": [1, 2], "chosen_ids": chosen, "rejected_ids": rejected}


def test_a_pair_ends_with_the_first_token_that_differs_and_only_this_has_a_loss():
    batch = FirstDifference(0)([example([3, 4, 5, 6], [3, 7, 8, 6]), example([9, 9], [8, 9])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 9, 0], [1, 2, 3, 7], [1, 2, 8, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]] * 2
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] > 0).long())


def test_where_one_side_is_the_beginning_of_the_other_their_last_common_token_is_left():
    batch = FirstDifference(0)([example([3, 4], [3, 4, 5])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("length", [2, 5])
def test_what_is_alike_before_the_difference_changes_no_batch_but_its_prompt(length):
    shared = list(range(10, 10 + length))
    batch = FirstDifference(0)([example([*shared, 3, 5], [*shared, 4, 5])])
    assert batch["input_ids"].tolist() == [[1, 2, *shared, 3], [1, 2, *shared, 4]]
    assert batch["completion_mask"].sum() == 2
