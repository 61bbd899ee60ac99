"""Which parts of a DPS are trained: with an adapter or without, on one process or on several."""

import re

import torch
from peft import LoraConfig
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config

from dps_hf.model.modeling_dps import DPSForConditionalGeneration


DECODER, VISION_TOWER, CONNECTOR = "language_model", "vision_tower", "connector"
IMAGE_TOKENIZER = "image_tokenizer"  # is never trained: codes must keep their meaning
HEAD = "lm_head"  # is trained without an adapter only: trl reads its weights and ignores an adapter on it
UNUSED_HEAD = "head"  # of the vision tower, its pooling head
LAST_NORM = re.compile(rf"\.{DECODER}\.\w+\.modules_to_save\.\w+\.weight$")  # in a model with an adapter


def freeze_parts(model: DPSForConditionalGeneration, vision_tower: bool) -> None:
    """Freezes the image tokenizer and, unless `vision_tower` is true, the vision tower."""
    getattr(model.model, IMAGE_TOKENIZER).requires_grad_(False)
    getattr(model.model, VISION_TOWER).requires_grad_(vision_tower)


def make_lora_config(
    model: DPSForConditionalGeneration, arguments: ModelConfig, vision_tower: bool = False, last_norm: bool = False
) -> LoraConfig | None:
    """The adapter that trl's arguments describe, or `None` without `use_peft`.

    Args:
        arguments: without `lora_target_modules`, the adapter goes to what [`find_lora_targets`] finds.
        vision_tower: whether the vision tower is trained, too.
        last_norm: whether the decoder's last norm is trained, too; see [`~dps_hf.training.last_norm`].

    Raises:
        ValueError: `last_norm` without an adapter, where all norms are trained anyway, or with a decoder that does not
            end in a norm.
    """
    config = get_peft_config(arguments)
    if config is None:
        if last_norm:
            raise ValueError("norm_learning_rate is for adapters; got use_peft false. Leave it out.")
        return None
    if arguments.lora_target_modules is None:
        config.target_modules = find_lora_targets(model, vision_tower)
    if last_norm:
        decoder = getattr(model.model, DECODER)
        children = decoder.named_children()
        norms = [name for name, child in children if getattr(child, "weight", torch.empty(0, 0)).ndim == 1]
        if not norms:
            raise ValueError(
                f"norm_learning_rate needs a decoder that ends in a norm; got {type(decoder).__name__}. Leave it out."
            )
        config.modules_to_save = [*(config.modules_to_save or ()), *(f"{DECODER}.{name}" for name in norms)]
    return config


def find_lora_targets(model: DPSForConditionalGeneration, vision_tower: bool = False) -> str:
    """A regular expression that matches all linear layers of any decoder and no other module.

    The vision tower's layers are included only with `vision_tower`, since prompts without pictures give them no
    gradient.
    """
    parts = [DECODER, VISION_TOWER] if vision_tower else [DECODER]
    layers = {
        name.rpartition(".")[2]
        for part in parts
        for name, module in getattr(model.model, part).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return rf"model\.({'|'.join(parts)})\.(.+\.)?({'|'.join(sorted(layers))})"


def check_trained(model: nn.Module, vision_tower: bool = False) -> list[str]:
    """The names of the parameters that will be trained, with an adapter or without.

    Raises:
        ValueError: no parameters are trained, or some of the image tokenizer, of the vision tower without
            `vision_tower`, or of the head beside an adapter.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = any("lora_" in name for name, _ in model.named_parameters())
    frozen = [IMAGE_TOKENIZER, *([] if vision_tower else [VISION_TOWER]), *([HEAD] if adapter else [])]
    wrong = [name for name in names if any(part in name.split(".") for part in frozen)]
    if wrong:
        raise ValueError(f"lora_target_modules must leave {', '.join(frozen)} alone; got {', '.join(wrong[:3])}.")
    if not names:
        raise ValueError("Nothing is trained: lora_target_modules match no layer. Leave them out.")
    return names


class SkipUnusedParts(TrainerCallback):
    """Leaves the parts that read pictures unchanged in a step without pictures, on several processes as on one.

    With several processes, all parameters have gradients, because the processes reduce them together; those of unused
    parts are zeros. An optimizer with momentum or weight decay would still change such weights, but it skips weights
    without a gradient.
    """

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, model: nn.Module, **kwargs):
        if args.world_size == 1:
            return
        parts: tuple[list[nn.Parameter], ...] = ([], [])
        for name, parameter in model.named_parameters():
            path = name.split(".")
            if parameter.grad is not None and (VISION_TOWER in path or CONNECTOR in path):
                parts[VISION_TOWER in path and UNUSED_HEAD in path].append(parameter)
        if not any(parts):
            return
        used = torch.stack([_any_nonzero(parameters, args.device) for parameters in parts]).int()
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for parameters, is_used in zip(parts, used.tolist(), strict=True):
            for parameter in () if is_used else parameters:
                parameter.grad = None


def _any_nonzero(parameters: list[nn.Parameter], device: torch.device) -> torch.Tensor:
    """Whether the gradient of one of these parameters has an entry other than 0 in this process's share of it."""
    found = torch.zeros((), dtype=torch.bool, device=device)
    for gradient in (parameter.grad for parameter in parameters):
        assert gradient is not None  # those without one were left out
        found |= (gradient.to_local() if isinstance(gradient, DTensor) else gradient).any()
    return found
