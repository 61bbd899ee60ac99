"""The scale of the decoder's last norm, trained at a rate of its own."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import TrainingArguments
from trl import ModelConfig

from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.trained_parts import make_lora_config


@pytest.mark.parametrize("decoder, norm", [("gpt2", "ln_f"), ("qwen2", "norm"), ("gemma2", "norm")])
def test_all_that_the_last_norm_multiplies_by_is_multiplied_by_one_factor(
    make_model, make_decoder_config, decoder, norm, tmp_path
):
    model = make_model(text_config=make_decoder_config(decoder))
    torch.nn.init.normal_(model.get_submodule(f"model.language_model.{norm}").weight)
    arguments = ModelConfig(use_peft=True, lora_r=2)
    adapted = get_peft_model(model, make_lora_config(model, arguments, last_norm=True))
    build, options = make_norm_optimizer(TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1), 0.1)
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
