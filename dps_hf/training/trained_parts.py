"""Which parts of a DPS are trained, and at what rate: with an adapter or without, on one process or on several.

A recipe names them:

    train: {connector: 1.0e-3, new_tokens: 1.0e-3, vision_tower: 0, decoder: 2.0e-5}

`new_tokens` are the rows of the image codes and of the other tokens that DPS adds, in the embeddings and in the head.
A rate of 0 freezes a part. A part that is not named has the rate `learning_rate` if it is trained by default, and is
frozen otherwise. Without an adapter, all parts but the vision tower are trained by default, and `examples/train.py`
trains the vision tower, too. With an adapter, the decoder's LoRA alone is trained by default.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, str_to_bool
from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config

from dps_hf.components import find_new_tokens, find_untrained_parts, mark_trained
from dps_hf.model.modeling_dps import DPSForConditionalGeneration


DECODER, VISION_TOWER, CONNECTOR = "language_model", "vision_tower", "connector"
IMAGE_TOKENIZER = "image_tokenizer"  # is never trained: codes must keep their meaning
HEAD = "lm_head"  # is trained without an adapter only: trl reads its weights and ignores an adapter on it
UNUSED_HEAD = "head"  # of the vision tower, its pooling head
LAST_NORM = re.compile(rf"\.{DECODER}\.\w+\.modules_to_save\.\w+\.weight$")  # in a model with an adapter


PARTS = ("decoder", "new_tokens", "connector", "vision_tower")  # as recipes name them
FRESH_RATE = "1.0e-3"  # what an error proposes for a part with random weights


def freeze_parts(model: DPSForConditionalGeneration, vision_tower: bool) -> None:
    """Freezes the image tokenizer and, unless `vision_tower` is true, the vision tower."""
    getattr(model.model, IMAGE_TOKENIZER).requires_grad_(False)
    getattr(model.model, VISION_TOWER).requires_grad_(vision_tower)


def read_rates(
    train: Mapping[str, float], learning_rate: float, adapter: bool = False, vision_tower: bool = False
) -> dict[str, float]:
    """The learning rate of each part that is trained. Parts that it does not hold are frozen.

    Args:
        train: the section of a recipe, part to rate; see the top of this file.
        learning_rate: of parts that `train` does not name.
        adapter: whether the decoder is trained by LoRA.
        vision_tower: whether the vision tower is trained by default.

    Raises:
        ValueError: a part is unknown, a rate is not a number of 0 or more, or nothing is trained.
    """
    rates: dict[str, float] = {}
    for part, rate in train.items():
        if part not in PARTS:
            raise ValueError(f"train must name parts of {', '.join(PARTS)}; got {part}. Correct the name.")
        try:
            rates[part] = float(rate)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            rates[part] = math.nan
        if not 0 <= rates[part] < math.inf:
            raise ValueError(f"train.{part} must be a learning rate of 0 or more; got {rate!r}. Try 1.0e-3.")
    usual = {"decoder": True, "new_tokens": not adapter, "connector": not adapter, "vision_tower": vision_tower}
    rates = {part: learning_rate for part in PARTS if usual[part] and part not in rates} | rates
    chosen = {part: rates[part] for part in PARTS if part in rates and (rates[part] or part not in train)}
    if not chosen:
        raise ValueError(f"train must give a part a rate above 0; got {dict(train)}. Try connector: {FRESH_RATE}.")
    if adapter and not {"decoder", "vision_tower"} & chosen.keys():
        raise ValueError(
            "use_peft needs a decoder or a vision tower to adapt, and train freezes both. Set use_peft to false, or "
            "give one of the two a rate."
        )
    return chosen


def choose_trained_parts(
    model: DPSForConditionalGeneration,
    train: Mapping[str, float],
    learning_rate: float,
    adapter: bool = False,
    vision_tower: bool = False,
) -> dict[str, float]:
    """As [`read_rates`]; also freezes the other parts of the model.

    Raises:
        ValueError: as for [`read_rates`]. Or a part whose weights are still random would stay frozen, and `train` does
            not say so. Or new tokens are to be trained beside an adapter with FSDP.
    """
    rates = read_rates(train, learning_rate, adapter, vision_tower)
    if adapter and "new_tokens" in rates and str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        raise ValueError(
            f"train.new_tokens must be 0 beside an adapter with FSDP, which cannot shard rows that embeddings and "
            f"head share; got {rates['new_tokens']:g}. Take DDP, or train them before without an adapter."
        )
    frozen = [part for part in find_untrained_parts(model.config) if part not in rates and part not in train]
    if frozen:
        line = ", ".join(f"{part}: {FRESH_RATE}" for part in frozen)
        raise ValueError(
            f"{' and '.join(frozen)} of this model {'is' if len(frozen) == 1 else 'are'} still random and would stay "
            f"so. Add train: {{{line}}} to the recipe, or the rate 0 if it is meant."
        )
    freeze_parts(model, "vision_tower" in rates)
    if not adapter:  # which freezes all else by itself
        tables = {id(weight) for weight in find_tables(model)}
        for name, parameter in model.named_parameters():
            part = part_of(name)
            trained = part in rates or (id(parameter) in tables and "new_tokens" in rates)
            if part != "vision_tower" and part is not None and not trained:
                parameter.requires_grad_(False)
    return rates


def part_of(name: str) -> str | None:
    """The part that a parameter belongs to, or `None` for the image tokenizer. Embeddings and head are the decoder's.

    Args:
        name: the parameter's name, in a model with an adapter or without.
    """
    path = name.split(".")
    if "trainable_tokens_delta" in path:
        return "new_tokens"
    if IMAGE_TOKENIZER in path:
        return None
    return next((part for part in (CONNECTOR, VISION_TOWER) if part in path), "decoder")


def is_last_norm(name: str, parameter: nn.Parameter) -> bool:
    """Whether this is the scale of the decoder's last norm, trained beside an adapter."""
    return LAST_NORM.search(name) is not None and parameter.ndim == 1


def find_tables(model: Any) -> list[nn.Parameter]:
    """The weights of the embeddings and of the head; one if they are tied."""
    return list(dict.fromkeys([model.get_input_embeddings().weight, model.get_output_embeddings().weight]))


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The shape of a weight; DeepSpeed's ZeRO-3 leaves an empty tensor where it has sharded one."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def make_lora_config(
    model: DPSForConditionalGeneration,
    arguments: ModelConfig,
    vision_tower: bool = False,
    last_norm: bool = False,
    rates: Mapping[str, float] | None = None,
) -> LoraConfig | None:
    """The adapter that trl's arguments describe, or `None` without `use_peft`.

    The connector is trained whole beside LoRA, and of the embeddings and the head only the rows of new tokens.

    Args:
        arguments: without `lora_target_modules`, the adapter goes to what [`find_lora_targets`] finds.
        vision_tower: whether the vision tower is trained, too.
        last_norm: whether the decoder's last norm is trained, too; see [`~dps_hf.training.last_norm`].
        rates: what is trained, from [`choose_trained_parts`]. By default the decoder, and `vision_tower`.

    Raises:
        ValueError: `last_norm` without an adapter, where all norms are trained anyway, or with a decoder that does not
            end in a norm.
    """
    config = get_peft_config(arguments)
    if config is None:
        if last_norm:
            raise ValueError("norm_learning_rate is for adapters; got use_peft false. Leave it out.")
        return None
    if rates is None:
        rates = read_rates({}, 1.0, adapter=True, vision_tower=vision_tower)  # which rate, does not matter here
    if arguments.lora_target_modules is None:
        config.target_modules = find_lora_targets(model, "vision_tower" in rates, "decoder" in rates)
    if "connector" in rates:
        config.modules_to_save = [*(config.modules_to_save or ()), CONNECTOR]
    if "new_tokens" in rates:
        ids, tables = find_new_tokens(model.config), find_tables(model)
        modules = (model.get_input_embeddings(), model.get_output_embeddings())
        names = [name for name, module in model.named_modules() if module in modules]
        config.trainable_token_indices = {name.rpartition(".")[2]: ids for name in names[: len(tables)]}
        config.ensure_weight_tying = len(tables) == 1
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


def find_lora_targets(model: DPSForConditionalGeneration, vision_tower: bool = False, decoder: bool = True) -> str:
    """A regular expression that matches all linear layers of any decoder and no other module.

    The vision tower's layers are included only with `vision_tower`, since prompts without pictures give them no
    gradient.
    """
    parts = [part for part, wanted in ((DECODER, decoder), (VISION_TOWER, vision_tower)) if wanted]
    layers = {
        name.rpartition(".")[2]
        for part in parts
        for name, module in getattr(model.model, part).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return rf"model\.({'|'.join(parts)})\.(.+\.)?({'|'.join(sorted(layers))})"


def check_trained(model: Any, vision_tower: bool = False, rates: Mapping[str, float] | None = None) -> list[str]:
    """The names of the parameters that will be trained, with an adapter or without.

    Args:
        rates: what is to be trained, from [`choose_trained_parts`].

    Raises:
        ValueError: no parameters are trained, or none of a part in `rates`, or some of the image tokenizer, of the
            vision tower if it is not to be trained, or of the head beside an adapter.
    """
    vision_tower = vision_tower or "vision_tower" in (rates or {})
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = any("lora_" in name for name, _ in model.named_parameters())
    frozen = [IMAGE_TOKENIZER, *([] if vision_tower else [VISION_TOWER]), *([HEAD] if adapter else [])]
    wrong = [
        name for name in trained if any(part in name.split(".") for part in frozen) and part_of(name) != "new_tokens"
    ]
    if wrong:
        raise ValueError(f"lora_target_modules must leave {', '.join(frozen)} alone; got {', '.join(wrong[:3])}.")
    if not trained:
        raise ValueError("Nothing is trained: lora_target_modules match no layer. Leave them out.")
    counts = count_trained(model, rates or {})
    if missing := [part for part in rates or () if not counts[part]]:
        raise ValueError(
            f"train gives {' and '.join(missing)} a rate, and nothing of it would be trained. Leave out "
            "lora_target_modules, or set the rate to 0."
        )
    return trained


def count_trained(model: Any, rates: Mapping[str, float]) -> Counter[str]:
    """How many numbers of each part are trained."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if parameter.requires_grad and part:
            counts[part] += shape_of(parameter).numel()
    if not isinstance(model, PeftModel):  # whole tables have a gradient, some of their rows are trained
        tables = [table for table in find_tables(model) if table.requires_grad]
        rows = sum(len(find_new_tokens(model.config)) * shape_of(table)[1] for table in tables)
        counts["decoder"] -= rows if "decoder" in rates else sum(shape_of(table).numel() for table in tables)
        counts["new_tokens"] = rows if "new_tokens" in rates else 0
    return counts


def describe_trained(model: Any, rates: Mapping[str, float]) -> str:
    """Describes what will be trained, such as "Trained: decoder 361.8M at 2e-05, connector 1.7M at 0.001.".

    Raises:
        ValueError: as for [`check_trained`].
    """
    check_trained(model, rates=rates)
    counts = count_trained(model, rates)
    parts = (f"{part} {_shorten(counts[part])} at {rate:g}" for part, rate in rates.items())
    return f"Trained: {', '.join(parts)}."


def _shorten(count: int) -> str:
    """A number of parameters in three digits or so."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def complete_adapter(model: Any) -> None:
    """Mends what trl and peft leave undone in a model whose connector and new tokens are trained beside LoRA.

    trl casts all that is trained beside quantised weights to bfloat16, and reads the bias of the head, which peft's
    wrapper does not have.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            dtype = next(module.original_module.parameters()).dtype
            module.modules_to_save.to(dtype)
        elif isinstance(module, TrainableTokensWrapper):
            module.token_adapter.trainable_tokens_delta.to(module.original_module.weight.dtype)
            bias = getattr(module.original_module, "bias", None)
            if bias is None:
                module.register_parameter("bias", None)
            else:
                module.register_buffer("bias", bias, persistent=False)


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


class NoteTrainedParts(TrainerCallback):
    """Removes the mark of a part with random weights when it is trained, and says so at the end if one was not.

    The connector and the vision tower learn from pictures only, so a training on texts alone leaves them as they are.
    Comes after [`SkipUnusedParts`].

    Args:
        rates: what is to be trained, from [`choose_trained_parts`].
    """

    def __init__(self, rates: Mapping[str, float]):
        self.waiting = {part for part in rates}

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, model: Any, **kwargs):
        if not self.waiting:
            return
        seen = {"decoder", "new_tokens"}
        if PartialState().distributed_type == DistributedType.DEEPSPEED:  # which keeps gradients to itself
            seen |= self.waiting
        for name, parameter in model.named_parameters():
            part = part_of(name)
            if part in self.waiting - seen and parameter.grad is not None and bool(parameter.grad.any()):
                seen.add(part)
        mark_trained(model.config, seen & self.waiting)
        self.waiting -= seen

    def on_train_end(self, args: TrainingArguments, state, control, **kwargs):
        if self.waiting and state.global_step and state.is_world_process_zero:
            print(f"{' and '.join(sorted(self.waiting))} had no gradient: no record of this training has a picture.")
