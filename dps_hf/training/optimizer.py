"""The trainer's optimizer with a learning rate for each part, and for the rows of new tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainingArguments

from dps_hf.components import find_new_tokens
from dps_hf.training.trained_parts import find_tables, part_of, shape_of


def make_optimizer(
    training: TrainingArguments, rates: Mapping[str, float], without: Callable[[str, nn.Parameter], bool] | None = None
) -> tuple[Callable, dict[str, Any]]:
    """`optimizer_cls_and_kwargs` of a [`~transformers.Trainer`]: its own optimizer, with a rate for each part.

    Every schedule scales all rates alike. The rate of the decoder, if it is trained, is the one that is logged.

    The rows of new tokens are part of the tables of embeddings and head. If the two have different rates, the whole
    table is trained at the higher one, and after each step the change of the other rows is scaled down. This is exact
    for optimizers whose step is proportional to the rate, such as AdamW. If one of the rates is 0, those rows have a
    gradient of zeros, no weight decay, and stay equal bit by bit.

    Args:
        rates: from [`~dps_hf.training.trained_parts.choose_trained_parts`].
        without: which parameters, by name, are left out.

    Raises:
        ValueError: when the optimizer is made, if the rates of the decoder and of new tokens differ, both are above 0,
            and DeepSpeed hides rows from the optimizer.
    """
    optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(training)

    def build(model: Any, **fields) -> torch.optim.Optimizer:
        old, new = rates.get("decoder", 0.0), rates.get("new_tokens", 0.0)
        rows_differ = old != new and not isinstance(model, PeftModel)  # an adapter has the rows as a weight of its own
        tables = [weight for weight in find_tables(model) if weight.requires_grad] if rows_differ else []
        if tables and old and new and PartialState().distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                f"train.decoder and train.new_tokens must be equal, or one of them 0, with DeepSpeed, which hides "
                f"rows from the optimizer; got {old:g} and {new:g}. Take FSDP2 or DDP, or equal rates."
            )
        whole = {id(weight) for weight in tables}
        decaying = {*Trainer.get_decay_parameter_names(None, model)}
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {
            (part, decays): [] for part in rates for decays in (True, False)
        }
        for name, parameter in model.named_parameters():
            part = part_of(name)
            if parameter.requires_grad and id(parameter) not in whole and not (without and without(name, parameter)):
                # Old tokens do not decay while the new ones are trained alone: neither do the new ones.
                decays = name in decaying and "trainable_tokens_delta" not in name
                groups[part if part and part in rates else next(iter(rates)), decays].append(parameter)
        given: list[dict[str, Any]] = [
            {"params": parameters, "lr": rates[part], "weight_decay": training.weight_decay * decays}
            for (part, decays), parameters in groups.items()
            if parameters
        ]
        if tables:
            given.append(
                {"params": tables, "lr": max(old, new), "weight_decay": training.weight_decay * bool(old and new)}
            )
        optimizer = optimizer_class(given, **fields)
        if tables:
            _slow_rows(optimizer, len(given) - 1, model, old, new)
        return optimizer

    return lambda: build, arguments


def _slow_rows(optimizer: torch.optim.Optimizer, group: int, model: Any, old: float, new: float) -> None:
    """Gives the rows of the tables in one of the optimizer's groups the rates `old` and, for new tokens, `new`."""
    factors = torch.full((shape_of(find_tables(model)[0])[0], 1), old / max(old, new))
    factors[find_new_tokens(model.config)] = new / max(old, new)
    factors = factors.to(find_tables(model)[0].device)
    kept = factors != 0
    before: list[torch.Tensor] = []
    deepspeed = PartialState().distributed_type == DistributedType.DEEPSPEED

    def mask(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * _shard_like(kept.to(gradient.device, gradient.dtype), gradient)

    @torch.no_grad()
    def mask_sharded(table: torch.Tensor) -> None:
        assert table.grad is not None  # FSDP2 has just put it there
        table.grad.copy_(mask(table.grad))

    def mask_gradients(model: Any, _) -> None:
        """Masks from the first step on, before gradients are clipped. By then, FSDP2 has replaced the weights."""
        tables: list[Any] = find_tables(model) if deepspeed else optimizer.param_groups[group]["params"]
        for table in tables:
            if not table.requires_grad or hasattr(table, "_masks_rows"):
                continue
            table._masks_rows = True
            if isinstance(table, DTensor):
                table.register_post_accumulate_grad_hook(mask_sharded)
            else:
                table.register_hook(mask)

    @torch.no_grad()
    def keep(optimizer: torch.optim.Optimizer, *_) -> None:
        before.extend(table.detach().clone() for table in optimizer.param_groups[group]["params"])

    @torch.no_grad()
    def slow(optimizer: torch.optim.Optimizer, *_) -> None:
        for table, was in zip(optimizer.param_groups[group]["params"], before, strict=True):
            factor = _shard_like(factors.to(was.device, was.dtype), table)
            table.copy_(torch.where(factor == 1, table, was + (table - was) * factor))
        before.clear()

    if not kept.all():
        model.register_forward_pre_hook(mask_gradients)
    if not deepspeed:
        optimizer.register_step_pre_hook(keep)
        optimizer.register_step_post_hook(slow)


def _shard_like(column: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A column with a number for each row of a table, divided among processes as the table is."""
    if not isinstance(table, DTensor):
        return column
    return distribute_tensor(column, table.device_mesh, table.placements, src_data_rank=None)
