"""transformers' tensor parallelism: a decoder that is divided between two processes says what a whole one does."""

import os

import torch
from torch.distributed.tensor import DTensor
from two_processes import run_on_two

from dps_hf.model.modeling_dps import DPSForConditionalGeneration


def compare(rank: int, folder: str) -> tuple[int, float]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    whole = DPSForConditionalGeneration.from_pretrained(folder).eval()
    divided = DPSForConditionalGeneration.from_pretrained(folder, tp_plan="auto").eval()
    ids = torch.tensor([[72, 105, 32, 70]])
    with torch.no_grad():
        difference = (whole(input_ids=ids).logits - divided(input_ids=ids).logits).abs().max().item()
    return sum(isinstance(weight, DTensor) for weight in divided.parameters()), difference


def test_a_divided_decoder_gives_the_logits_of_a_whole_one(saved_model, tmp_path):
    for count, difference in run_on_two(compare, tmp_path, saved_model):
        assert count > 0 and difference < 1e-5
