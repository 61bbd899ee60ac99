"""Tunes a DPS on instructions: the whole model, with LoRA, or with QLoRA.

python examples/sft.py --config examples/recipes/nano/sft.yaml
python examples/sft.py --config examples/recipes/nano/sft.yaml --load_in_8bit
accelerate launch examples/sft.py --config examples/recipes/nano/sft.yaml

If the training is interrupted, the same command resumes it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser

from dps_hf.command_line import run_script
from dps_hf.data.dropouts import Dropouts
from dps_hf.data.guidance import read_schedules
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.data.sources import make_lazy_dataset, read_records
from dps_hf.training.collator import RecordCollator
from dps_hf.training.curves import Curves
from dps_hf.training.loading import check_four_bit_training, load_for_training
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.trained_parts import SkipUnusedParts, check_trained, make_lora_config


@dataclass
class ScriptArguments:
    """
    tasks: task to weight. A task is the dotted path of a function, such as `my_package.my_task`.
    guidance: name of a task to `start` and `end`, the shares of the levels of guidance when training begins and ends.
        With `start` alone they do not change. By default 2 of 3 examples have worked steps.
    dataset: in place of `tasks`, a folder that `datasets` saved, or the dotted path of a function that returns a
        dataset or a list, of records (`messages`, `images`).
    num_records: how many records of the tasks differ. They repeat while guidance goes on changing. By default none
        repeats.
    prompt_dropout: share of the drawings that are learned without their prompt, for classifier-free guidance.
    evaluation_records: number of held-out records of each task.
    vision_tower: whether the vision tower is trained, too.
    """

    tasks: dict = field(default_factory=dict)
    guidance: dict = field(default_factory=dict)
    dataset: str | None = None
    num_records: int | None = None
    prompt_dropout: float = 0.1
    evaluation_records: int = 64
    vision_tower: bool = False


def main(script: ScriptArguments, training: SFTConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    # Model
    model, processor = load_for_training(arguments, script.vision_tower)
    check_four_bit_training(model, training.eval_strategy != "no")

    # Dataset
    held_out = None
    if script.dataset:
        records = read_records(script.dataset)
    else:
        if training.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, since tasks have no end; got {training.max_steps}.")
        batch_size = training.train_batch_size
        length = training.max_steps * batch_size * training.gradient_accumulation_steps * training.world_size
        guidance = read_schedules(script.guidance)
        records = Mixture(
            script.tasks, training.seed, length, "train", batch_size, guidance, num_records=script.num_records
        )
        training.train_sampling_strategy = "sequential"  # the mixture is random already, batches are of one task
        if training.eval_strategy != "no":
            held_out = {
                name_of(task): make_lazy_dataset(
                    Mixture({task: 1}, length=script.evaluation_records, split="validation")
                )
                for task in script.tasks
            }
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    training.max_length = None  # truncation might cut a picture

    # Training
    trainer = SFTTrainer(
        model=model,
        args=training,
        data_collator=RecordCollator(model, processor),
        train_dataset=make_lazy_dataset(Dropouts(records, training.seed, script.prompt_dropout)),
        eval_dataset=held_out,
        processing_class=processor,
        peft_config=make_lora_config(model, arguments, script.vision_tower),
        callbacks=[Curves(), SkipUnusedParts()],
    )
    # Each batch is of one task and has the same weight, so that the many tokens of drawings do not outweigh answers.
    trainer.model_accepts_loss_kwargs = False
    print(f"{len(check_trained(trainer.model, script.vision_tower))} tensors are trained")
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    run_script(main, TrlParser((ScriptArguments, SFTConfig, ModelConfig)))
