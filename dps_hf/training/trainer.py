"""The trainer of packed rows, which `examples/train.py` uses."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from transformers import Trainer

from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.packed_loss import packed_loss


SMOOTHED = 0.6  # share of the steps with code smoothing; in the others the model learns to be sure of single codes

ExtraLoss: TypeAlias = Callable[[DPSForConditionalGeneration, DPSProcessor, int], torch.Tensor]
"""Takes the model, its processor and the step. It must depend on nothing else, so that a resumed run repeats it."""


class DPSTrainer(Trainer):
    """transformers' trainer with the loss of packed rows.

    Args:
        extra_loss: is added to the loss in every `extra_loss_steps`-th step.
        code_smoothing: see [`~dps_hf.training.packed_loss.packed_loss`]. It is used in the first `SMOOTHED` of all
            steps, and never in evaluation.

    Raises:
        ValueError: `code_smoothing` is not within 0 and 0.5, or the image tokenizer's codes have no neighbours.
            Or `extra_loss_steps` is below 1.
    """

    def __init__(
        self,
        *args,
        extra_loss: ExtraLoss | None = None,
        extra_loss_steps: int = 1,
        code_smoothing: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.extra_loss, self.extra_loss_steps, self.code_smoothing = extra_loss, extra_loss_steps, code_smoothing
        if extra_loss_steps < 1:
            raise ValueError(f"extra_loss_steps must be 1 or more; got {extra_loss_steps}.")
        if not 0 <= code_smoothing <= 0.5:
            raise ValueError(f"code_smoothing must be between 0 and 0.5; got {code_smoothing}.")
        config = self.accelerator.unwrap_model(self.model).config
        if code_smoothing and config.image_tokenizer_geometry.levels is None:
            raise ValueError(
                f"code_smoothing={code_smoothing} needs an image tokenizer with `levels`, whose codes have "
                f"neighbours; {config.image_tokenizer_config.model_type!r} has none. Set it to 0."
            )

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        step, bare = self.state.global_step, self.accelerator.unwrap_model(model)
        smooths = model.training and step < SMOOTHED * self.args.max_steps
        code_smoothing = self.code_smoothing if smooths else 0.0
        with self.accelerator.autocast():
            loss = packed_loss(model, bare, inputs, code_smoothing=code_smoothing)
            if model.training and self.extra_loss and step % self.extra_loss_steps == 0:
                loss = loss + self.extra_loss(bare, self.processing_class, step)
        return (loss, {"loss": loss}) if return_outputs else loss
