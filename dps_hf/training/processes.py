"""Training on several processes as on one, and in the precision that is fastest on this machine."""

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments


class SkipUnusedParts(TrainerCallback):
    """Leaves the parts that read pictures as they are in a step without pictures, on several processes as on one.

    There they have gradients of zeros, because all processes reduce theirs together. An optimizer with momentum or weight
    decay would move such weights, and leaves those without a gradient alone.
    """

    def on_pre_optimizer_step(self, args: TrainingArguments, state, control, model: torch.nn.Module, **kwargs):
        if args.world_size == 1:
            return
        parts: tuple[list[torch.nn.Parameter], ...] = ([], [])
        for name, parameter in model.named_parameters():
            path = name.split(".")
            if parameter.grad is not None and ("vision_tower" in path or "connector" in path):
                parts["vision_tower" in path and "head" in path].append(parameter)  # nothing uses the pooling head
        if not any(parts):
            return
        used = torch.stack([_any_nonzero(parameters, args.device) for parameters in parts]).int()
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for parameters, is_used in zip(parts, used.tolist(), strict=True):
            for parameter in () if is_used else parameters:
                parameter.grad = None


def _any_nonzero(parameters: list[torch.nn.Parameter], device: torch.device) -> torch.Tensor:
    """Whether a gradient of these parameters, or the share of it that this process holds, has an entry other than 0."""
    found = torch.zeros((), dtype=torch.bool, device=device)
    for gradient in (parameter.grad for parameter in parameters):
        assert gradient is not None  # those without one were left out
        found |= (gradient.to_local() if isinstance(gradient, DTensor) else gradient).any()
    return found


def fastest_precision(training: TrainingArguments) -> None:
    """Trains in float32 where `bf16` is asked for and a CPU without instructions for it would have to imitate them.

    On two such cores (Ice Lake) a step of dps-nano took 1.8 s in float32 and 4.2 in bfloat16.
    """
    # Older versions of torch do not say, and are left alone.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"bf16": True}
    native = any(has for name, has in capabilities.items() if "bf16" in name)
    if training.bf16 and training.device.type == "cpu" and not native:
        print("This CPU has no instructions for bfloat16: training in float32, which is faster here.")
        training.bf16, training.mixed_precision = False, "no"
