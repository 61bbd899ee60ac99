"""What trl's trainers need to be told of a DPS: which weights an adapter goes to, and which bits they may have."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config, get_quantization_config

from dps_hf import NANO
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


_LAST_NORM = re.compile(r"\.language_model\.\w+\.modules_to_save\.\w+\.weight$")
FOUR_BIT_BLOCK = 64  # bitsandbytes 0.50 gives wrong weights, silently, where a dimension is no multiple of it


def load_for_training(
    arguments: ModelConfig, vision_tower: bool = False
) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """The model that trl's arguments name, dps-nano where they name none, and its processor.

    Only the decoder is quantised, where that is asked for. The image tokenizer is never trained.

    Args:
        vision_tower: whether the vision tower is trained, too.

    Raises:
        ValueError: a layer whose size no 4-bit weights can have.
    """
    path = arguments.model_name_or_path or NANO
    quantization = get_quantization_config(arguments)
    model = DPSForConditionalGeneration.from_pretrained(
        path,
        revision=arguments.model_revision,
        dtype=arguments.dtype or "auto",
        attn_implementation=arguments.attn_implementation,
        quantization_config=quantization,
    )
    if isinstance(quantization, BitsAndBytesConfig) and quantization.load_in_4bit:
        _check_four_bits(model)
    model.model.vision_tower.requires_grad_(vision_tower)
    # In training mode from the start: loaders fetch the first batch, which may drop prompts, before a trainer says so.
    return model.train(), DPSProcessor.from_pretrained(path, revision=arguments.model_revision)


def _check_four_bits(model: DPSForConditionalGeneration) -> None:
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear) and (
            module.in_features % FOUR_BIT_BLOCK or module.out_features % FOUR_BIT_BLOCK
        ):
            raise ValueError(
                f"load_in_4bit needs layers whose sizes are multiples of {FOUR_BIT_BLOCK}; {name} is {module.in_features} "
                f"to {module.out_features}. Take load_in_8bit."
            )


def lora_config(
    model: DPSForConditionalGeneration, arguments: ModelConfig, vision_tower: bool = False, last_norm: bool = False
) -> LoraConfig | None:
    """The adapter that trl's arguments describe, None without `use_peft`; on [`lora_targets`] where they name none.

    Args:
        vision_tower: whether the vision tower is trained, too.
        last_norm: whether the decoder's last norm is, too: see [`norm_optimizer`].

    Raises:
        ValueError: `last_norm` without an adapter, which trains all norms with everything else, or in a decoder that ends
            in none.
    """
    config = get_peft_config(arguments)
    if config is None:
        if last_norm:
            raise ValueError("norm_learning_rate is for adapters; got use_peft false. Leave it out.")
        return None
    if arguments.lora_target_modules is None:
        config.target_modules = lora_targets(model, vision_tower)
    if last_norm:
        children = model.model.language_model.named_children()
        norms = [name for name, child in children if getattr(child, "weight", torch.empty(0, 0)).ndim == 1]
        if not norms:
            raise ValueError(
                f"norm_learning_rate needs a decoder that ends in a norm; got {type(model.model.language_model).__name__}. "
                "Leave it out."
            )
        config.modules_to_save = [*(config.modules_to_save or ()), *(f"language_model.{name}" for name in norms)]
    return config


def norm_optimizer(training: TrainingArguments, learning_rate: float) -> tuple[Callable, dict[str, Any]]:
    """`optimizer_cls_and_kwargs` of a [`~transformers.Trainer`]: its own optimizer, and the scale of the last norm.

    How sure a decoder is of its tokens is set by the scale of its last norm: whatever an adapter adds before it, the norm
    scales back. So all that the norm multiplies by is multiplied by one factor: surer, and no other token becomes the
    likeliest. To add the same to each weight would not do: some are near 0, and keep out what is a hundred times as large.

    Args:
        learning_rate: of the logarithm of that scale: with Adam, a step changes it by this share at most.
    """
    optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(training)

    def build(model: nn.Module, **fields) -> torch.optim.Optimizer:
        norms, offsets, others = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and _LAST_NORM.search(name) and parameter.ndim == 1:
                norms.append(parameter)
                offsets.append(_offset(model.get_submodule(name.rpartition(".")[0])))
            elif parameter.requires_grad:
                others.append(parameter)
        groups = [
            {"params": others, "weight_decay": training.weight_decay},  # first: its rate is the one that is logged
            {"params": norms, "weight_decay": 0.0, "lr": learning_rate},
        ]
        optimizer = optimizer_class(groups, **fields)
        before: list[torch.Tensor] = []

        @torch.no_grad()
        def share(optimizer: torch.optim.Optimizer, *_) -> None:
            """Gives all weights of a norm one gradient, that of the logarithm of its scale: the optimizer moves them alike."""
            before.clear()
            for norm, offset in zip(optimizer.param_groups[1]["params"], offsets):  # FSDP2 has put its own ones there
                before.append(norm.detach().clone())
                if norm.grad is not None:
                    norm.grad.copy_((norm.grad * (norm + offset)).sum().expand_as(norm.grad))

        @torch.no_grad()
        def scale(optimizer: torch.optim.Optimizer, *_) -> None:
            """Makes a factor of what the optimizer has added."""
            for norm, old, offset in zip(optimizer.param_groups[1]["params"], before, offsets):
                norm.copy_((old + offset) * (norm - old).mean().exp() - offset)

        optimizer.register_step_pre_hook(share)
        optimizer.register_step_post_hook(scale)
        return optimizer

    return lambda: build, arguments


def _offset(norm: Any) -> float:
    """What a norm adds to its weights before it multiplies by them: 1 in Gemma, 0 in most."""
    weight = norm.weight.detach()
    probe = torch.ones_like(weight)
    probe[::2] = -1  # its mean is 0, its variance 1: any norm leaves it alone
    with torch.no_grad():
        gain = (norm(probe) - norm(-probe)) / 2 * probe
    return round((gain - weight).float().mean().item(), 2)


def lora_targets(model: DPSForConditionalGeneration, vision_tower: bool = False) -> str:
    """A regular expression for all linear layers of the decoder, whichever it is, and no other layer's name.

    trl reads the weights of `lm_head` past any adapter, and codes must stay what they are: so neither the head nor the
    image tokenizer. Prompts without pictures give the vision tower no gradient: so only with `vision_tower`.
    """
    parts = ["language_model", "vision_tower"] if vision_tower else ["language_model"]
    layers = {
        name.rpartition(".")[2]
        for part in parts
        for name, module in getattr(model.model, part).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return rf"model\.({'|'.join(parts)})\.(.+\.)?({'|'.join(sorted(layers))})"


def forbid_words(model: DPSForConditionalGeneration, but: Iterable[int] = ()) -> None:
    """Where all completions are drawings: to the loss, as to generation, only image tokens can come in them.

    Else what a loss takes from a code goes to words, which are never drawn: drawings show nothing of it, and the probability
    of codes is gone. It is a bias of the head, which no checkpoint holds.

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


def check_trained(model: nn.Module, vision_tower: bool = False) -> list[str]:
    """The names of the parameters that will be trained, with an adapter or without.

    Raises:
        ValueError: there are none, or some are of the image tokenizer, of the vision tower without `vision_tower`, or
            of the head where there is an adapter.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = any("lora_" in name for name, _ in model.named_parameters())
    kept = ["image_tokenizer", *([] if vision_tower else ["vision_tower"]), *(["lm_head"] if adapter else [])]
    wrong = [name for name in names if any(part in name.split(".") for part in kept)]
    if wrong:
        raise ValueError(f"lora_target_modules must leave {', '.join(kept)} alone; got {', '.join(wrong[:3])}.")
    if not names:
        raise ValueError("Nothing is trained: lora_target_modules match no layer. Leave them out.")
    return names


def check_four_bit_training(model: DPSForConditionalGeneration, evaluates: bool) -> None:
    """
    Raises:
        ValueError: 4-bit weights on a CPU, and something that runs the model in evaluation mode before training is
            over: bitsandbytes 0.50 then repacks the weights, and no gradient reaches the adapter any more.
    """
    if evaluates and getattr(model, "is_loaded_in_4bit", False) and torch.device(model.device).type == "cpu":
        raise ValueError(
            "4-bit weights on a CPU can be trained only without evaluation or generation in between. "
            'Set eval_strategy to "no", or take load_in_8bit.'
        )
