"""The model that a training script starts from."""

import pytest
import torch
from trl import ModelConfig

from dps_hf.training.loading import load_for_training
from dps_hf.training.trained_parts import check_trained, choose_trained_parts


def test_a_model_is_trained_but_for_its_tower_and_its_image_tokenizer(saved_model):
    model, _ = load_for_training(ModelConfig(saved_model))
    names = check_trained(model)
    assert any("lm_head" in name or "embed_tokens" in name for name in names)
    assert not any("vision_tower" in name for name in names)
    rates = choose_trained_parts(model, {"vision_tower": 1e-4}, 1e-4)
    assert any("vision_tower" in name for name in check_trained(model, rates=rates))


def test_four_bits_need_sizes_that_bitsandbytes_gets_right(saved_model):
    with pytest.raises(ValueError, match="multiples of 64"):
        load_for_training(ModelConfig(saved_model, load_in_4bit=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_codes_of_a_quantised_model_are_those_of_the_whole_one(
    bits, make_model, make_config, make_text_config, tiny_processor, pictures, tmp_path
):
    reference = make_model(
        make_config(text_config=make_text_config(hidden_size=64, intermediate_size=64, head_dim=64))
    )
    reference.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model, _ = load_for_training(ModelConfig(str(tmp_path), **{f"load_in_{bits}bit": True}))
    assert "bit" in type(model.model.language_model.layers[0].mlp.up_proj).__name__
    for training in (True, False):
        assert torch.equal(model.train(training).encode_image(pictures), reference.encode_image(pictures))


def test_the_vision_tower_beside_a_quantised_decoder_can_be_trained(saved_model):
    arguments = ModelConfig(saved_model, load_in_8bit=True)
    for vision_tower in (False, True):
        model, _ = load_for_training(arguments)
        choose_trained_parts(model, {"vision_tower": 1e-4} if vision_tower else {}, 1e-4, adapter=True)
        assert all(p.requires_grad == vision_tower for p in model.model.vision_tower.parameters())
        assert not any(p.requires_grad for p in model.model.image_tokenizer.parameters())
