"""Trains the scale of the decoder's last norm at a rate of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.trained_parts import PARTS, is_last_norm


def make_norm_optimizer(
    training: TrainingArguments, learning_rate: float, rates: Mapping[str, float] | None = None
) -> tuple[Callable, dict[str, Any]]:
    """`optimizer_cls_and_kwargs` of a [`~transformers.Trainer`]: its own optimizer, which scales the last norm, too.

    The scale of the last norm decides how confident a decoder is. Whatever an adapter adds before the norm is
    normalised away. This optimizer multiplies all weights of the norm by one factor, so the confidence changes and the
    most likely token does not. Adding the same number to each weight would not do: some weights are near 0 and
    suppress features that are a hundred times as large as the others.

    Args:
        learning_rate: of the logarithm of the scale. With Adam, one step changes the scale by this share at most.
        rates: of the parts, as in [`~dps_hf.training.optimizer.make_optimizer`]; by default that of `training`.
    """
    rates = dict.fromkeys(PARTS, training.learning_rate) if rates is None else rates
    make, arguments = make_optimizer(training, rates, without=is_last_norm)

    def build(model: nn.Module, **fields) -> torch.optim.Optimizer:
        optimizer = make()(model, **fields)
        norms, offsets = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and is_last_norm(name, parameter):
                norms.append(parameter)
                offsets.append(_measure_offset(model.get_submodule(name.rpartition(".")[0])))
        optimizer.add_param_group({"params": norms, "weight_decay": 0.0, "lr": learning_rate})
        before: list[torch.Tensor] = []

        @torch.no_grad()
        def share_gradient(optimizer: torch.optim.Optimizer, *_) -> None:
            """Gives all weights of a norm the gradient of the logarithm of its scale, so that they move alike."""
            before.clear()
            for norm, offset in zip(optimizer.param_groups[-1]["params"], offsets):  # FSDP2 has put its own ones there
                before.append(norm.detach().clone())
                if norm.grad is not None:
                    norm.grad.copy_((norm.grad * (norm + offset)).sum().expand_as(norm.grad))

        @torch.no_grad()
        def scale(optimizer: torch.optim.Optimizer, *_) -> None:
            """Turns what the optimizer has added into a factor."""
            for norm, old, offset in zip(optimizer.param_groups[-1]["params"], before, offsets):
                norm.copy_((old + offset) * (norm - old).mean().exp() - offset)

        optimizer.register_step_pre_hook(share_gradient)
        optimizer.register_step_post_hook(scale)
        return optimizer

    return lambda: build, arguments


def _measure_offset(norm: Any) -> float:
    """What a norm adds to its weights before it multiplies by them: 1 in Gemma, 0 in most decoders."""
    weight = norm.weight.detach()
    probe = torch.ones_like(weight)
    probe[::2] = -1  # its mean is 0 and its variance 1, so no norm changes it
    with torch.no_grad():
        gain = (norm(probe) - norm(-probe)) / 2 * probe
    return round((gain - weight).float().mean().item(), 2)
