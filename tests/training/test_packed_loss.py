"""The loss of packed rows is that of transformers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dps_hf.data.guidance import guide
from dps_hf.data.record import record
from dps_hf.model.loss_dps import BLOCK, LARGE_BLOCK, SumOfNats
from dps_hf.training.packed_loss import _smooth, packed_loss
from dps_hf.training.packing import PackingCollator, make_attention_mask


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
RECORDS = [
    {**record("t", [RED, "What is it?"], ["a square"]), "more": [("Welche Farbe?", "rot"), ("Size?", "16")]},
    guide(record("t", ["a red square"], [RED], steps="row 2: a square."), "steps"),
    record("t", ["How many?"], ["<think>one, two</think>2"]),
    record("t", [BLUE, "make it red"], [RED]),
    record("t", ["Which", BLUE, "colour?"], ["blue"]),
]


def test_the_loss_is_the_weighted_mean_over_the_whole_vocabulary(make_model, tiny_processor):
    model = make_model()
    batch = PackingCollator(model, tiny_processor)(RECORDS)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "pixel_values")}
    inputs["attention_mask"] = make_attention_mask(batch["examples"], batch["branches"])
    logits = model(**inputs).logits[:, :-1]
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    nats = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(packed_loss(model, model, batch), (nats * weights).sum() / weights.sum())


@pytest.mark.parametrize("tables", [[(4, 4)], [(4, 2), (2, 4)]])
def test_a_smoothed_code_is_aimed_at_with_its_neighbours_digit_by_digit(
    make_model, make_config, tiny_processor, tables
):
    codes = make_config().image_tokenizer_config.to_dict() | dict(zip(("levels", "colour_levels"), tables))
    model = make_model(make_config(image_tokenizer_config=codes))
    first, share = model.config.image_code_start_id, 0.1
    processor = copy.copy(tiny_processor)
    processor.num_codes = model.config.num_codes
    batch = PackingCollator(model, processor)([record("t", ["a red square"], [RED])])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    inputs["attention_mask"] = make_attention_mask(batch["examples"], batch["branches"])
    labels, weights = batch["labels"][0, 1:], batch["loss_weights"][0, 1:]
    is_code = (labels >= first) & (labels < first + model.config.codebook_size)
    logits = model(**inputs).logits[0, :-1]
    nats, expected = -logits.log_softmax(-1), 0.0
    for i in (labels != -100).nonzero().flatten().tolist():
        aims = {int(labels[i]): 1.0}
        if is_code[i]:
            start, levels = first, tables[0]
            if labels[i] >= first + np.prod(levels):
                start, levels = first + int(np.prod(levels)), tables[1]
            radix = np.cumprod([1, *levels[:-1]])
            digits = (int(labels[i]) - start) // radix % levels
            aims = {}
            for steps in itertools.product((-1, 0, 1), repeat=len(levels)):
                code = start + int(np.clip(digits + steps, 0, np.array(levels) - 1) @ radix)
                aims[code] = aims.get(code, 0.0) + float(np.prod([share if step else 1 - 2 * share for step in steps]))
            assert sum(aims.values()) == pytest.approx(1)
        expected += weights[i] * sum(odds * nats[i, token] for token, odds in aims.items())
    loss = packed_loss(model, model, batch, code_smoothing=share)
    torch.testing.assert_close(loss, expected / weights.sum())


def test_the_mean_of_neighbours_counts_a_code_twice_at_the_end_of_a_digit():
    line = torch.tensor([[8.0], [0.0], [0.0], [4.0]])
    torch.testing.assert_close(_smooth(line, [4], 0.25), torch.tensor([[6.0], [2.0], [1.0], [3.0]]))


def test_in_bfloat16_the_loss_by_blocks_is_that_of_the_library():
    torch.manual_seed(0)
    hidden, rows = torch.randn(9, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels, weights = torch.randint(50, (9,)), torch.rand(9)
    with torch.autocast("cpu", torch.bfloat16):
        ours = SumOfNats.apply(hidden, rows, labels, weights)
        reference = (F.cross_entropy(F.linear(hidden, rows).float(), labels, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, reference, rtol=1e-2, atol=1e-2)
    found = [torch.autograd.grad(total, (hidden, rows)) for total in (ours, reference)]
    for gradient, expected in zip(*found, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("count", [0, 1, BLOCK, LARGE_BLOCK + BLOCK + 3])
def test_the_loss_by_blocks_and_its_gradients_are_those_of_the_whole_table(count):
    torch.manual_seed(0)
    sides = [torch.randn(count, 16), torch.randn(50, 16)]
    labels, weights = torch.randint(50, (count,)), torch.rand(count)
    found = []
    for nats in (
        SumOfNats.apply,
        lambda hidden, rows, labels, weights: F.cross_entropy(hidden @ rows.T, labels, reduction="none") @ weights,
    ):
        hidden, rows = (side.clone().requires_grad_() for side in sides)
        total = nats(hidden, rows, labels, weights)
        (3 * total).backward()
        found.append((total, hidden.grad, rows.grad))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
