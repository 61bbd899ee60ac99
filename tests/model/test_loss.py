"""The model's loss is the library's, computed where labels are due alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from dps_hf.model.loss_dps import LARGE_BLOCK


def make_batch(config, rows=3, length=9):
    torch.manual_seed(1)
    ids = torch.randint(200, (rows, length))
    ids[:, :4] = config.image_token_id
    labels = ids.clone()
    labels[:, :5] = -100  # placeholders and a prompt
    labels[0, 6:] = -100
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 16, 16), "labels": labels}


def plain_loss(model, batch, **options):
    """The library's loss of all logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return ForCausalLMLoss(model(**inputs).logits, batch["labels"], model.config.vocab_size, **options)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": torch.tensor(24)}, {"num_items_in_batch": 7}])
@pytest.mark.parametrize("skips", [True, False])
def test_loss_and_gradients_are_those_of_all_logits(make_model, options, skips):
    model = make_model().train()
    batch = make_batch(model.config)
    outputs = model(**batch, skip_logits=skips, **options)
    assert (outputs.logits is None) == skips
    expected = plain_loss(model, batch, **options)
    torch.testing.assert_close(outputs.loss, expected)
    found, right = gradients(model, outputs.loss), gradients(model, expected)
    assert found.keys() == right.keys() and len(found) > 40
    for name, gradient in right.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_training_gives_no_logits_and_all_else_does(make_model):
    model = make_model()
    batch = make_batch(model.config)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for mode in (True, False):
        model.train(mode)
        assert (model(**batch).logits is None) == mode
        assert model(**batch, skip_logits=False).logits.shape == (3, 9, model.config.vocab_size)
        assert model(**inputs).logits.shape == (3, 9, model.config.vocab_size)
        assert model(**batch, skip_logits=True).logits is None


def test_the_head_sees_only_positions_with_labels(make_model):
    """A head with a hook is called as it is, so the hook can count."""
    model, seen = make_model().train(), []
    batch = make_batch(model.config)
    expected = model(**batch).loss
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    found = model(**batch).loss
    assert seen == [(int((batch["labels"][:, 1:] != -100).sum()), model.config.hidden_size)]
    torch.testing.assert_close(found, expected)


def test_no_logits_of_all_positions_are_made(make_model, make_config, make_text_config):
    """Of 8 labels among 512 positions, nothing of the forward or backward pass is as large as their logits."""
    model = make_model(make_config(text_config=make_text_config(max_position_embeddings=512))).train()
    ids = torch.randint(200, (2, 256))
    labels = torch.where(torch.arange(256) < 252, -100, ids)
    with torch.profiler.profile(record_shapes=True) as profile:
        model(input_ids=ids, labels=labels).loss.backward()
    shapes = [shape for event in profile.events() for shape in event.input_shapes if shape]
    vocab = model.config.vocab_size
    of_logits = [shape for shape in shapes if shape[-1] == vocab and len(shape) > 1 and shape[0] != 32]
    assert of_logits and max(torch.Size(shape).numel() for shape in of_logits) <= 8 * vocab, of_logits


def test_kept_positions_and_shifted_labels_are_those_of_the_library(make_model):
    model = make_model().train()
    batch = make_batch(model.config)
    kept = {**batch, "labels": batch["labels"][:, -4:]}
    logits = model(**batch, skip_logits=False).logits
    expected = ForCausalLMLoss(logits[:, -4:].contiguous(), kept["labels"], model.config.vocab_size)
    torch.testing.assert_close(model(**batch, logits_to_keep=4).loss, expected)
    shifted = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(model(**batch, shift_labels=shifted).loss, model(**batch).loss)


def test_labels_have_weights(make_model):
    model = make_model().train()
    batch = make_batch(model.config)
    weights = torch.rand(batch["labels"].shape)
    logits = model(**batch, skip_logits=False).logits[:, :-1]
    nats = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    due = batch["labels"][:, 1:] != -100
    expected = (nats * weights[:, 1:]).sum() / (weights[:, 1:] * due).sum()
    weights = torch.where(batch["labels"] == -100, 0, weights)
    for skips in (True, False):
        torch.testing.assert_close(model(**batch, loss_weights=weights, skip_logits=skips).loss, expected)


def test_a_batch_without_labels_has_a_loss_of_zero_with_gradients(make_model):
    model = make_model().train()
    batch = make_batch(model.config)
    loss = model(**{**batch, "labels": torch.full_like(batch["labels"], -100)}).loss
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(model, loss).values())


def test_a_loss_function_of_ones_own_gets_all_logits(make_model):
    model = make_model().train()
    batch, seen = make_batch(model.config), {}
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: seen.update(logits=logits) or logits.sum()
    model(**batch)
    assert seen["logits"].shape == (3, 9, model.config.vocab_size)


def test_an_adapted_head_learns(make_model):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["lm_head"])).train()
    batch = make_batch(model.base_model.model.config)
    gradient = gradients(model, model(**batch).loss)
    assert {name for name in gradient if "lm_head" in name} and all("lora" in name for name in gradient)


def test_under_autocast_the_loss_stays_in_float32(make_model):
    model = make_model().train()
    batch = make_batch(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = model(**batch).loss, plain_loss(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_many_labels_are_summed_in_parts(make_model):
    model = make_model().train()
    ids = torch.randint(200, (LARGE_BLOCK // 100 + 1, 128))
    batch = {"input_ids": ids, "labels": ids}
    found, expected = model(**batch).loss, plain_loss(model, batch)
    torch.testing.assert_close(found, expected)
    table = "lm_head.weight"
    weight = model.get_parameter(table)
    ours, right = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-5)


# A frozen tower


@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_tower_keeps_no_activations(make_model, trains):
    """Gradient checkpointing makes embeddings ask for gradients, and so the whole tower, if nothing else is done."""
    model = make_model().train()
    model.model.vision_tower.requires_grad_(trains)
    model.enable_input_require_grads()
    outputs = model(**make_batch(model.config))
    assert outputs.image_outputs.last_hidden_state.requires_grad == trains
    found = gradients(model, outputs.loss)
    assert any("connector" in name for name in found) and any("vision_tower" in name for name in found) == trains


def test_gradients_reach_the_pixels_through_a_frozen_tower(make_model):
    model = make_model().requires_grad_(False)
    batch = make_batch(model.config)
    batch["pixel_values"].requires_grad_()
    model(**batch).loss.backward()
    assert batch["pixel_values"].grad.abs().sum() > 0


def test_a_compiled_model_has_one_graph(make_model):
    model = make_model().train()
    batch = make_batch(model.config)
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)
    assert len(graphs) == 1
