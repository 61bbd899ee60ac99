"""Tunes a DPS on instructions: the whole model, with LoRA, or with QLoRA.

python examples/sft.py --config examples/recipes/nano/sft.yaml
python examples/sft.py --config examples/recipes/nano/sft.yaml --load_in_8bit
accelerate launch examples/sft.py --config examples/recipes/nano/sft.yaml

Killed at any moment, the same command goes on from the last checkpoint to the same losses.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser

from dps_hf.data.guidance import schedules
from dps_hf.data.mixture import Mixture
from dps_hf.data.sources import read_records
from dps_hf.training.adapters import check_four_bit_training, check_trained, load_for_training, lora_config
from dps_hf.training.collator import KeepTraining, RecordCollator
from dps_hf.training.curves import Curves
from dps_hf.training.processes import SkipUnusedParts
from dps_hf.training.resuming import is_finished, train_and_save


@dataclass
class ScriptArguments:
    """
    tasks: task to weight.
    guidance: task to `start` and `end`, the shares of the levels of guidance when training begins and when it ends; with
        `start` alone they stay. Where a task is left out, worked steps in 2 of 3 examples.
    dataset: a folder that `datasets` saved, of records (`messages`, `images`), in place of `tasks`.
    num_records: how many different records; they come again and again, while guidance goes on changing. By default
        none comes twice.
    prompt_dropout: share of the drawings that are learned without words, for classifier-free guidance.
    evaluation_records: held-out records of each task for the loss curves.
    vision_tower: whether the vision tower is trained, too.
    """

    tasks: dict = field(default_factory=dict)
    guidance: dict = field(default_factory=dict)
    dataset: str | None = None
    num_records: int | None = None
    prompt_dropout: float = 0.1
    evaluation_records: int = 64
    vision_tower: bool = False


def lazily(mixture: Mixture) -> Dataset:
    """Its records, each made when it is asked for."""

    def records(batch: dict) -> dict:
        made = [mixture[index] for index in batch["index"]]
        return {name: [record[name] for record in made] for name in ("messages", "images", "task")}

    return Dataset.from_dict({"index": range(len(mixture))}).with_transform(records)


def main(script: ScriptArguments, training: SFTConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    # Model
    model, processor = load_for_training(arguments, script.vision_tower)
    check_four_bit_training(model, training.eval_strategy != "no")

    # Dataset
    held_out = None
    if script.dataset:
        train = read_records(script.dataset)
    else:
        if training.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, since tasks have no end; got {training.max_steps}.")
        batch_size = training.train_batch_size
        length = training.max_steps * batch_size * training.gradient_accumulation_steps * training.world_size
        guidance = schedules(script.guidance)
        mixture = Mixture(
            script.tasks, training.seed, length, "train", batch_size, guidance, num_records=script.num_records
        )
        train = lazily(mixture)
        training.train_sampling_strategy = "sequential"  # the mixture is random already, batches are of one task
        if training.eval_strategy != "no":
            held_out = {
                task: lazily(Mixture({task: 1}, length=script.evaluation_records, split="validation"))
                for task in script.tasks
            }
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    training.max_length = None  # what is cut off might be a picture

    # Training
    trainer = SFTTrainer(
        model=model,
        args=training,
        data_collator=RecordCollator(model, processor, script.prompt_dropout),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        peft_config=lora_config(model, arguments, script.vision_tower),
        callbacks=[Curves(), KeepTraining(), SkipUnusedParts()],
    )
    # Each batch is of one task and counts alike: the many tokens of a drawing must not drown a short answer.
    trainer.model_accepts_loss_kwargs = False
    print(f"{len(check_trained(trainer.model, script.vision_tower))} tensors are trained")
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config())
