"""Trains the image tokenizer of a DPS from nothing, on your own pictures or on those of tasks.

python examples/train_image_tokenizer.py --dataset my_pictures --output_dir runs/codes --num_train_epochs 20
python examples/train_image_tokenizer.py --config examples/recipes/nano/image_tokenizer.yaml
accelerate launch examples/train_image_tokenizer.py --config examples/recipes/nano/image_tokenizer.yaml

If the command is interrupted, the same command continues from the last checkpoint to the same losses.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch.utils.data import Subset
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.data.mixture import Mixture
from dps_hf.data.pictures import Pictures, ToPixels, read_pictures
from dps_hf.data.sources import split_off
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.model.image_processing_dps import FITS
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.training.curves import Curves
from dps_hf.training.datasets import SHUFFLED_AT_A_TIME, SKIPPED
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save


@dataclass
class ScriptArguments:
    """
    dataset: your pictures, as `dps_hf/data/rows.py` describes it: a folder, a file, a name on the Hub, the dotted path
        of a function, a mapping with more fields, or a list of these. Texts beside the pictures are not needed. Of a
        row with several pictures, the first is used.
    evaluation_dataset: the same for evaluation.
    evaluation_share: the share of `dataset` that is held out, without an `evaluation_dataset`.
    max_skipped: the share of rows without a readable picture above which the training stops. They are listed in
        `output_dir/skipped.jsonl`.
    drawing_fit: how a picture of `dataset` becomes a square: `crop`, `stretch`, `pad-grey`, `pad-white` or `pad-edge`.
        Give `train.py` the same.
    tasks: in place of `dataset`, weights of tasks, given by dotted path; the first picture of each record is used.
    evaluation_tasks: the same for evaluation, on held-out pictures; by default `tasks`.
    num_evaluation_pictures: the number of held-out pictures that are measured, if there are as many.
    model: fields of `DPSImageTokenizerConfig`, such as `image_size`.
    """

    dataset: str | None = None  # a command line has strings only; a recipe may have mappings and lists
    evaluation_dataset: str | None = None
    evaluation_share: float = 0.05
    max_skipped: float = 0.1
    drawing_fit: str = "crop"
    tasks: dict = field(default_factory=dict)
    evaluation_tasks: dict = field(default_factory=dict)
    num_evaluation_pictures: int = 500
    model: dict = field(default_factory=dict)

    def __post_init__(self):
        if bool(self.dataset) == bool(self.tasks):
            raise ValueError(
                "Either dataset or tasks must be given; got "
                f"{'both' if self.dataset else 'neither'}. Name your pictures: dataset: my_folder."
            )
        if self.drawing_fit not in FITS:
            raise ValueError(f"drawing_fit must be one of {', '.join(FITS)}; got {self.drawing_fit!r}.")


def measure_psnr(prediction: EvalPrediction) -> dict[str, float]:
    """Mean over pictures of the peak signal-to-noise ratio; pixels in [-1, 1] have a peak of 2."""
    error = np.mean((prediction.predictions[0] - prediction.label_ids) ** 2, axis=(1, 2, 3))
    codes = prediction.predictions[1]
    return {"psnr_db": float(np.mean(10 * np.log10(4 / error))), "codes_used": float(len(np.unique(codes)))}


def make_data(script: ScriptArguments, training: TrainingArguments, size: int) -> tuple[Any, Any]:
    """The pictures to train on and the held-out ones, `size` pixels wide and high."""
    if script.tasks:
        if training.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, since tasks have no end; got {training.max_steps}.")
        length = training.max_steps * training.train_batch_size
        length *= training.gradient_accumulation_steps * training.world_size
        train = Pictures(Mixture(script.tasks, seed=training.seed, length=length), size)
        tasks = script.evaluation_tasks or script.tasks
        return train, Pictures(Mixture(tasks, length=script.num_evaluation_pictures, split="validation"), size)

    def read(dataset: str) -> Any:
        return read_pictures(dataset, training.seed, Path(training.output_dir) / SKIPPED, script.max_skipped)

    records = read(script.dataset)
    if script.evaluation_dataset:
        held_out = read(script.evaluation_dataset)
    else:
        records, held_out = split_off(records, script.evaluation_share, training.seed)
    if isinstance(held_out, IterableDataset):
        held_out = list(held_out.take(script.num_evaluation_pictures))
    chosen = np.random.default_rng(training.seed).permutation(len(held_out))[: script.num_evaluation_pictures]
    measured = Subset(Pictures(held_out, size, script.drawing_fit), chosen.tolist())
    if not isinstance(records, IterableDataset):
        return Pictures(records, size, script.drawing_fit), measured
    if training.max_steps < 1:
        raise ValueError(f"A data set that is streamed needs max_steps; got {training.max_steps}.")
    training.accelerator_config.dispatch_batches = False  # each process reads its own rows
    stream = records.shuffle(training.seed, buffer_size=SHUFFLED_AT_A_TIME)
    return stream.map(ToPixels(size, script.drawing_fit), remove_columns=["messages", "images", "task"]), measured


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    choose_precision(training)
    # Model
    model = DPSImageTokenizer(DPSImageTokenizerConfig(**script.model)).to(memory_format=torch.channels_last)
    print(f"{model.num_parameters():,} parameters, {model.config.codebook_size} codes")

    # Dataset
    train, held_out = make_data(script, training, model.config.image_size)

    # Training
    training.label_names = ["pixel_values"]
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        compute_metrics=measure_psnr,
        callbacks=[Curves()],
    )
    train_and_save(trainer, script)
    print(trainer.evaluate())
    skipped = Path(training.output_dir) / SKIPPED
    if skipped.exists() and training.process_index == 0:
        print(f"{len(skipped.read_text().splitlines())} rows without a readable picture are listed in {skipped}.")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    set_training_defaults(parser)
    run_script(main, parser)
