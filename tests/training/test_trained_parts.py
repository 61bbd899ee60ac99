"""Which parts are trained, with an adapter or without, on one process or on several."""

import re
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import ModelConfig
from two_processes import run_on_two

from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.training.trained_parts import (
    PARTS,
    SkipUnusedParts,
    check_trained,
    choose_trained_parts,
    describe_trained,
    find_lora_targets,
    make_lora_config,
    read_rates,
)


def matched(model, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("decoder", ["gpt2", "qwen2", "gemma2"])
def test_targets_are_the_linear_layers_of_any_decoder_and_nothing_else(make_model, make_decoder_config, decoder):
    model = make_model(text_config=make_decoder_config(decoder))
    found = matched(model, find_lora_targets(model))
    assert found and all(name.startswith("model.language_model.") for name in found)
    linear = (nn.Linear, type(model.get_submodule(next(iter(found)))))
    assert found == {name for name, module in model.model.language_model.named_modules(prefix="model.language_model")
                     if isinstance(module, linear)}  # fmt: skip


def test_the_vision_tower_is_a_target_only_where_it_is_asked_for(tiny_model):
    assert not any("vision" in name for name in matched(tiny_model, find_lora_targets(tiny_model)))
    found = matched(tiny_model, find_lora_targets(tiny_model, vision_tower=True))
    assert any("vision_tower" in name for name in found) and any("language_model" in name for name in found)
    assert not any(part in name for part in ("image_tokenizer", "lm_head", "connector") for name in found)


def test_named_targets_are_kept_and_no_peft_means_no_adapter(tiny_model):
    assert make_lora_config(tiny_model, ModelConfig()) is None
    named = make_lora_config(tiny_model, ModelConfig(use_peft=True, lora_target_modules=["q_proj", "v_proj"]))
    assert named.target_modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize("decoder, norm", [("gpt2", "ln_f"), ("qwen2", "norm"), ("gemma2", "norm")])
def test_the_last_norm_is_found_in_any_decoder_that_ends_in_one(make_model, make_decoder_config, decoder, norm):
    model, arguments = make_model(text_config=make_decoder_config(decoder)), ModelConfig(use_peft=True)
    assert make_lora_config(model, arguments).modules_to_save is None
    assert make_lora_config(model, arguments, last_norm=True).modules_to_save == [f"language_model.{norm}"]
    delattr(model.model.language_model, norm)
    with pytest.raises(ValueError, match="norm_learning_rate"):
        make_lora_config(model, arguments, last_norm=True)


def test_what_an_adapter_trains_has_these_names(make_model):
    model = make_model()
    adapted = get_peft_model(model, make_lora_config(model, ModelConfig(use_peft=True, lora_r=2)))
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


@pytest.mark.parametrize(
    "train, message",
    [
        ({"conector": 1e-3}, "train must name parts of decoder, new_tokens, connector, vision_tower; got conector"),
        ({"connector": "fast"}, "train.connector must be a learning rate of 0 or more; got 'fast'"),
        ({"decoder": -1}, "train.decoder must be a learning rate of 0 or more; got -1"),
        (dict.fromkeys(PARTS, 0), "train must give a part a rate above 0"),
    ],
)
def test_rates_that_mean_nothing_are_refused(train, message):
    with pytest.raises(ValueError, match=message):
        read_rates(train, 1e-4)


def test_parts_that_are_not_named_have_the_learning_rate_if_they_are_trained_by_default():
    assert read_rates({}, 1e-4) == {"decoder": 1e-4, "new_tokens": 1e-4, "connector": 1e-4}
    assert read_rates({"decoder": 0}, 1e-4, vision_tower=True).keys() == {"new_tokens", "connector", "vision_tower"}
    assert read_rates({"connector": "1e-3"}, 1e-4, adapter=True) == {"decoder": 1e-4, "connector": 1e-3}
    with pytest.raises(ValueError, match="use_peft needs a decoder or a vision tower to adapt"):
        read_rates({"connector": 1e-3, "decoder": 0}, 1e-4, adapter=True)


def test_new_tokens_beside_an_adapter_are_refused_with_fsdp(make_model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"train.new_tokens must be 0 beside an adapter with FSDP.*0.01"):
        choose_trained_parts(make_model(), {"new_tokens": 1e-2}, 1e-4, adapter=True)


def test_what_is_trained_is_described_by_part(make_model):
    model = make_model()
    rates = choose_trained_parts(model, {"connector": 1e-3, "new_tokens": 1e-2, "decoder": 0}, 1e-4)
    assert describe_trained(model, rates) == "Trained: new_tokens 608 at 0.01, connector 1.6k at 0.001."


def test_weights_that_zero3_has_sharded_are_counted_whole(make_model):
    model = make_model()
    rates = choose_trained_parts(model, {"connector": 1e-3, "new_tokens": 1e-2, "decoder": 0}, 1e-4)
    whole = describe_trained(model, rates)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert describe_trained(model, rates) == whole


def test_a_part_that_the_adapter_leaves_out_is_named(make_model):
    model, arguments = make_model(), ModelConfig(use_peft=True, lora_target_modules=["gate_proj", "up_proj"])
    rates = choose_trained_parts(model, {"vision_tower": 1e-4}, 1e-4, adapter=True)
    adapted = get_peft_model(model, make_lora_config(model, arguments, rates=rates))
    with pytest.raises(ValueError, match="train gives vision_tower a rate, and nothing of it would be trained"):
        check_trained(adapted, rates=rates)


def test_nothing_to_train_is_an_error(make_model):
    with pytest.raises(ValueError, match="Nothing is trained"):
        check_trained(make_model().requires_grad_(False))


def skip_unused(rank: int, folder: str) -> list[set[str]]:
    """In steps without pictures and with some in the second process alone, the weights that the optimizer moves."""
    moved = []
    for pictures in (False, rank == 1):
        model = DPSForConditionalGeneration.from_pretrained(folder).train()
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            is_vision = "vision_tower" in name or "connector" in name
            used = not is_vision or (pictures and ".head." not in name)
            weight.grad = torch.full_like(weight, float(used)) if weight.requires_grad else None
        training = SimpleNamespace(world_size=2, device=torch.device("cpu"))
        SkipUnusedParts().on_pre_optimizer_step(training, None, None, model=model)
        torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
        moved.append({name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])})
    return moved


def test_a_step_without_pictures_in_any_process_leaves_the_parts_that_read_them(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    for moved in run_on_two(skip_unused, tmp_path, str(tmp_path)):
        without, with_some = ({name.split(".")[1] for name in names} for names in moved)
        assert without == {"language_model"}
        assert with_some == {"language_model", "vision_tower", "connector"}
        assert not any(".vision_tower." in name and ".head." in name for name in moved[1]), "the pooling head"
