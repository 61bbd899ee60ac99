"""Where adapters go, and where they must not."""

import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments
from trl import ModelConfig

from dps_hf.training.adapters import check_trained, load_for_training, lora_config, lora_targets, norm_optimizer


def matched(model, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("decoder", ["gpt2", "qwen2", "gemma2"])
def test_targets_are_the_linear_layers_of_any_decoder_and_nothing_else(make_model, make_decoder_config, decoder):
    model = make_model(text_config=make_decoder_config(decoder))
    found = matched(model, lora_targets(model))
    assert found and all(name.startswith("model.language_model.") for name in found)
    linear = (nn.Linear, type(model.get_submodule(next(iter(found)))))
    assert found == {name for name, module in model.model.language_model.named_modules(prefix="model.language_model")
                     if isinstance(module, linear)}  # fmt: skip


def test_the_vision_tower_is_a_target_only_where_it_is_asked_for(tiny_model):
    assert not any("vision" in name for name in matched(tiny_model, lora_targets(tiny_model)))
    found = matched(tiny_model, lora_targets(tiny_model, vision_tower=True))
    assert any("vision_tower" in name for name in found) and any("language_model" in name for name in found)
    assert not any(part in name for part in ("image_tokenizer", "lm_head", "connector") for name in found)


def test_named_targets_are_kept_and_no_peft_means_no_adapter(tiny_model):
    assert lora_config(tiny_model, ModelConfig()) is None
    named = lora_config(tiny_model, ModelConfig(use_peft=True, lora_target_modules=["q_proj", "v_proj"]))
    assert named.target_modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize("decoder, norm", [("gpt2", "ln_f"), ("qwen2", "norm"), ("gemma2", "norm")])
def test_the_last_norm_is_found_in_any_decoder_that_ends_in_one(make_model, make_decoder_config, decoder, norm):
    model, arguments = make_model(text_config=make_decoder_config(decoder)), ModelConfig(use_peft=True)
    assert lora_config(model, arguments).modules_to_save is None
    assert lora_config(model, arguments, last_norm=True).modules_to_save == [f"language_model.{norm}"]
    delattr(model.model.language_model, norm)
    with pytest.raises(ValueError, match="norm_learning_rate"):
        lora_config(model, arguments, last_norm=True)


@pytest.mark.parametrize("decoder, norm", [("gpt2", "ln_f"), ("qwen2", "norm"), ("gemma2", "norm")])
def test_all_that_the_last_norm_multiplies_by_is_multiplied_by_one_factor(
    make_model, make_decoder_config, decoder, norm, tmp_path
):
    model = make_model(text_config=make_decoder_config(decoder))
    torch.nn.init.normal_(model.get_submodule(f"model.language_model.{norm}").weight)
    arguments = ModelConfig(use_peft=True, lora_r=2)
    adapted = get_peft_model(model, lora_config(model, arguments, last_norm=True))
    build, options = norm_optimizer(TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1), 0.1)
    optimizer = build()(adapted, **options)
    last = adapted.get_submodule(f"base_model.model.model.language_model.{norm}")
    x = torch.randn(5, last.weight.shape[0])

    def scaled() -> torch.Tensor:  # what LayerNorm adds afterwards left out
        return (last(x) - last(-x)).detach() / 2

    before = scaled()
    for _ in range(2):
        optimizer.zero_grad()
        (-last(x).square().sum()).backward()  # falls where the scale grows
        optimizer.step()
    assert (scaled() / before).flatten().tolist() == pytest.approx([math.exp(0.2)] * before.numel(), rel=1e-4)


def test_what_an_adapter_trains_has_these_names(make_model):
    model = make_model()
    adapted = get_peft_model(model, lora_config(model, ModelConfig(use_peft=True, lora_r=2)))
    layers = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
    layers += tuple(f"self_attn.{name}_proj" for name in "koqv")
    assert sorted(check_trained(adapted)) == sorted(
        f"base_model.model.model.language_model.layers.{i}.{layer}.lora_{side}.default.weight"
        for i in range(2) for layer in layers for side in "AB"
    )  # fmt: skip


@pytest.mark.parametrize("wrong", ["lm_head", "image_tokenizer", "vision_tower"])
def test_adapters_in_the_wrong_places_are_refused(make_model, wrong):
    model = make_model()
    pattern = {
        "lm_head": "lm_head",
        "image_tokenizer": r".*image_tokenizer.*conv.*",
        "vision_tower": r".*vision.*q_proj",
    }
    if not matched(model, pattern[wrong]):
        convolutions = [n for n, m in model.model.image_tokenizer.named_modules() if isinstance(m, nn.Conv2d)]
        pattern[wrong] = rf"model\.image_tokenizer\.{re.escape(convolutions[0])}"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=pattern[wrong]))
    with pytest.raises(ValueError, match=wrong):
        check_trained(adapted)


def test_nothing_to_train_is_an_error(make_model):
    with pytest.raises(ValueError, match="Nothing is trained"):
        check_trained(make_model().requires_grad_(False))


def test_a_model_is_trained_but_for_its_tower_and_its_image_tokenizer(saved_model):
    model, _ = load_for_training(ModelConfig(saved_model))
    assert model.training, "or the first batch after a start would keep prompts that later ones drop"
    names = check_trained(model)
    assert any("lm_head" in name or "embed_tokens" in name for name in names)
    assert not any("vision_tower" in name for name in names)
    model, _ = load_for_training(ModelConfig(saved_model), vision_tower=True)
    assert any("vision_tower" in name for name in check_trained(model, vision_tower=True))


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
        model, _ = load_for_training(arguments, vision_tower=vision_tower)
        assert all(p.requires_grad == vision_tower for p in model.model.vision_tower.parameters())
        assert not any(p.requires_grad for p in model.model.image_tokenizer.parameters())
