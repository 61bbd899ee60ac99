"""Trains the image tokenizer of a DPS from nothing, on the pictures of any tasks.

python examples/train_image_tokenizer.py --config examples/recipes/nano/image_tokenizer.yaml
accelerate launch examples/train_image_tokenizer.py --config examples/recipes/nano/image_tokenizer.yaml

If the command is interrupted, the same command continues from the last checkpoint to the same losses.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf.command_line import run_script
from dps_hf.data.mixture import Mixture
from dps_hf.data.pictures import Pictures
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.training.curves import Curves
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save


@dataclass
class ScriptArguments:
    """
    tasks: weights of tasks, given by dotted path; the first picture of each record is used.
    evaluation_tasks: the same for evaluation, on held-out pictures; by default `tasks`.
    num_evaluation_pictures: the number of held-out pictures.
    model: fields of `DPSImageTokenizerConfig`.
    """

    tasks: dict = field(default_factory=dict)
    evaluation_tasks: dict = field(default_factory=dict)
    num_evaluation_pictures: int = 500
    model: dict = field(default_factory=dict)


def measure_psnr(prediction: EvalPrediction) -> dict[str, float]:
    """Mean over pictures of the peak signal-to-noise ratio; pixels in [-1, 1] have a peak of 2."""
    error = np.mean((prediction.predictions[0] - prediction.label_ids) ** 2, axis=(1, 2, 3))
    codes = prediction.predictions[1]
    return {"psnr_db": float(np.mean(10 * np.log10(4 / error))), "codes_used": float(len(np.unique(codes)))}


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    choose_precision(training)
    # Model
    model = DPSImageTokenizer(DPSImageTokenizerConfig(**script.model)).to(memory_format=torch.channels_last)
    print(f"{model.num_parameters():,} parameters, {model.config.codebook_size} codes")

    # Dataset
    if training.max_steps < 1:
        raise ValueError(f"max_steps must be 1 or more, since the mixture has no end; got {training.max_steps}.")
    length = (
        training.max_steps * training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    train = Pictures(Mixture(script.tasks, seed=training.seed, length=length))
    held_out = Mixture(
        script.evaluation_tasks or script.tasks, length=script.num_evaluation_pictures, split="validation"
    )

    # Training
    training.label_names = ["pixel_values"]
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=Pictures(held_out),
        compute_metrics=measure_psnr,
        callbacks=[Curves()],
    )
    train_and_save(trainer, script)
    print(trainer.evaluate())


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # or `bf16` is taken for a mistake there
    run_script(main, parser)
