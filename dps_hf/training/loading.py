"""Loads the model that a training script starts from, and checks that it can be trained as it is asked for."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from trl import ModelConfig, get_quantization_config

from dps_hf import NANO
from dps_hf.inference import load
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.trained_parts import freeze_parts


FOUR_BIT_BLOCK = 64  # bitsandbytes 0.50 silently gives wrong weights where a dimension is no multiple of it


def load_for_training(arguments: ModelConfig) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """The model that trl's arguments name, dps-nano where they name none, and its processor.

    Quantisation applies to the decoder alone. The image tokenizer and the vision tower are frozen;
    [`~dps_hf.training.trained_parts.choose_trained_parts`] may free the tower.

    Raises:
        ValueError: 4-bit weights are asked for and a layer has a size that they cannot have.
    """
    quantization = get_quantization_config(arguments)
    model, processor = load(
        arguments.model_name_or_path or NANO,
        arguments.model_revision,
        device="cpu",  # the trainer moves it
        dtype=arguments.dtype or "auto",
        attn_implementation=arguments.attn_implementation,
        quantization_config=quantization,
    )
    if isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_4bit:
        _check_four_bits(model)
    freeze_parts(model, vision_tower=False)
    return model, processor


def _check_four_bits(model: DPSForConditionalGeneration) -> None:
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear) and (
            module.in_features % FOUR_BIT_BLOCK or module.out_features % FOUR_BIT_BLOCK
        ):
            raise ValueError(
                f"load_in_4bit needs layers whose sizes are multiples of {FOUR_BIT_BLOCK}; {name} is "
                f"{module.in_features} to {module.out_features}. Take load_in_8bit."
            )


def check_four_bit_training(model: DPSForConditionalGeneration, evaluates: bool) -> None:
    """Refuses a training that 4-bit weights on a CPU would silently stop.

    Args:
        evaluates: whether anything runs the model in evaluation mode before training is over. bitsandbytes 0.50 then
            repacks the weights, and the adapter gets no gradient any more.

    Raises:
        ValueError: 4-bit weights are on a CPU, and `evaluates`.
    """
    if evaluates and getattr(model, "is_loaded_in_4bit", False) and torch.device(model.device).type == "cpu":
        raise ValueError(
            "4-bit weights on a CPU can be trained only without evaluation or generation in between. "
            'Set eval_strategy to "no", or take load_in_8bit.'
        )


def forbid_words(model: DPSForConditionalGeneration, but: Iterable[int] = ()) -> None:
    """Restricts the loss to image tokens where all completions are drawings, as generation does.

    Otherwise a loss that lowers the probability of a code raises that of words. Drawings would not show it, because
    words are never drawn, but codes would lose their probability. The restriction is a bias of the head, which is not
    saved with the model.

    Args:
        but: other tokens of the completions, such as the end of a turn.
    """
    config, head = model.config, model.get_output_embeddings()
    assert config.image_code_start_id is not None  # models that draw have one
    bias = torch.full((config.vocab_size,), -1e4).to(head.weight)
    bias[config.image_code_start_id : config.image_code_start_id + config.codebook_size] = 0
    bias[[config.boi_token_id, config.eoi_token_id, *but]] = 0
    own = head.bias
    del head.bias
    head.register_buffer("bias", bias if own is None else own.detach() + bias, persistent=False)
