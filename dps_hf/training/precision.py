"""The precision that is fastest on this machine."""

import torch
from transformers import TrainingArguments


def choose_precision(training: TrainingArguments) -> None:
    """Trains in float32 where `bf16` is asked for and the CPU has no instructions for it.

    Such a CPU imitates bfloat16: on two cores (Ice Lake) a step of dps-nano took 4.2 s, and 1.8 s in float32.
    """
    # Older versions of torch do not report this; nothing changes there.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"bf16": True}
    native = any(has for name, has in capabilities.items() if "bf16" in name)
    if training.bf16 and training.device.type == "cpu" and not native:
        print("This CPU has no instructions for bfloat16: training in float32, which is faster here.")
        training.bf16, training.mixed_precision = False, "no"
