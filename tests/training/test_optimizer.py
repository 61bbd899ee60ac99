"""A learning rate for each part, and for the rows of new tokens."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from peft import get_peft_model
from transformers import TrainingArguments
from trl import ModelConfig

from dps_hf.components import find_new_tokens
from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.trained_parts import (
    choose_trained_parts,
    find_tables,
    make_lora_config,
    part_of,
)


@pytest.fixture
def train(tmp_path, pictures, text_ids):
    """Trains a model for some steps on two texts with a picture each, and returns it."""

    def run(model, rates, steps=1, **fields):
        training = TrainingArguments(str(tmp_path), use_cpu=True, **fields)
        make, options = make_optimizer(training, rates)
        optimizer = make()(model, **options)
        tokens = model.config
        placeholders = torch.full((2, tokens.num_image_tokens), tokens.image_token_id)
        codes = tokens.image_code_start_id + torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
        ids = torch.cat([placeholders, text_ids, codes], dim=1)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, pixel_values=pictures[:2], labels=ids).loss.backward()
            optimizer.step()
        return model

    return run


def copy_weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_each_part_moves_at_its_own_rate_and_frozen_parts_do_not(make_model, make_config, train, tied):
    model = make_model(make_config(tie_word_embeddings=tied))
    rates = choose_trained_parts(model, {"connector": "1e-3", "new_tokens": 1e-2, "vision_tower": 1e-5}, 1e-4)
    before, new = copy_weights(model), find_new_tokens(model.config)
    tables = {
        name for name, weight in model.named_parameters() if any(weight is table for table in find_tables(model))
    }
    train(model, rates)
    assert len(tables) == 2 - tied
    most = dict.fromkeys(rates, 0.0)
    for name, weight in model.named_parameters():
        moved = (weight - before[name]).abs().amax(-1)
        part = part_of(name)
        if part is None:
            assert not moved.any()
        elif name in tables:  # the first step of Adam is as long as the rate
            old = [row for row in range(len(weight)) if row not in new]
            assert moved[new].max().item() == pytest.approx(1e-2, rel=1e-3), name
            assert moved[old].max().item() == pytest.approx(1e-4, rel=1e-2), name
        else:
            most[part] = max(most[part], moved.max().item())
    assert most == pytest.approx({**rates, "new_tokens": 0.0}, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_both_rates_are_those_of_trainings_at_one_rate(make_model, make_config, train, tied):
    config = make_config(tie_word_embeddings=tied)
    new, both = find_new_tokens(config), {"decoder": 2e-4, "new_tokens": 5e-3}
    trained = {
        rates: train(make_model(config), {**dict.fromkeys(both, 0), **dict(rates)}, weight_decay=0.1)
        for rates in (
            tuple(both.items()),
            (("decoder", 2e-4), ("new_tokens", 2e-4)),
            (("new_tokens", 5e-3), ("decoder", 5e-3)),
        )
    }
    ours, slow, fast = (find_tables(model) for model in trained.values())
    for table, one, other in zip(ours, slow, fast, strict=True):
        torch.testing.assert_close(table[new], other[new], rtol=0, atol=2.5e-7)
        old = [row for row in range(len(table)) if row not in new]
        torch.testing.assert_close(table[old], one[old], rtol=0, atol=2.5e-7)  # a bit in the last place of 1


@pytest.mark.parametrize("tied", [True, False])
def test_old_tokens_stay_equal_bit_by_bit_while_new_ones_are_trained_alone(make_model, make_config, train, tied):
    model = make_model(make_config(tie_word_embeddings=tied))
    rates = choose_trained_parts(model, {"connector": 1e-3, "new_tokens": 1e-2, "decoder": 0}, 1.0)
    assert list(rates) == ["new_tokens", "connector"]
    before, new = copy_weights(model), find_new_tokens(model.config)
    train(model, rates, steps=3, weight_decay=0.1)
    old = [row for row in range(model.config.vocab_size) if row not in new]
    for name, weight in model.named_parameters():
        if any(weight is table for table in find_tables(model)):
            assert torch.equal(weight[old], before[name][old]) and not torch.equal(weight[new], before[name][new])
            assert not weight.grad[old].any(), "or clipping counts what is not trained"
            assert weight.grad[new].any()
        else:
            assert torch.equal(weight, before[name]) == (part_of(name) != "connector"), name


def test_new_tokens_can_be_frozen_alone(make_model, train):
    model = make_model()
    rates = choose_trained_parts(model, {"new_tokens": 0}, 1e-3)
    before, new = copy_weights(model), find_new_tokens(model.config)
    train(model, rates, steps=2)
    [table] = find_tables(model)
    [name] = [name for name, weight in model.named_parameters() if weight is table]
    assert torch.equal(table[new], before[name][new]) and not torch.equal(table[:256], before[name][:256])


@pytest.mark.parametrize("tied", [True, False])
def test_beside_lora_the_connector_and_new_tokens_move_at_their_rates(make_model, make_config, train, tied):
    model, asked = make_model(make_config(tie_word_embeddings=tied)), {"connector": 1e-3, "new_tokens": 1e-2}
    rates = choose_trained_parts(model, asked, 1e-4, adapter=True)
    adapted = get_peft_model(model, make_lora_config(model, ModelConfig(use_peft=True, lora_r=2), rates=rates))
    before = copy_weights(adapted)
    train(adapted, rates)
    moved = {part: 0.0 for part in rates}
    for name, weight in adapted.named_parameters():
        change = (weight - before[name]).abs().max().item()
        assert not change or weight.requires_grad
        if change:
            moved[part_of(name)] = max(moved[part_of(name)], change)
    assert moved == pytest.approx({"decoder": 1e-4, "new_tokens": 1e-2, "connector": 1e-3}, rel=1e-2)


def test_two_rates_for_rows_are_refused_with_deepspeed(make_model, train, monkeypatch):
    deepspeed = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr("dps_hf.training.optimizer.PartialState", lambda: deepspeed)
    with pytest.raises(ValueError, match=r"train.decoder and train.new_tokens must be equal.*0.001 and 0.01"):
        train(make_model(), {"decoder": 1e-3, "new_tokens": 1e-2})
