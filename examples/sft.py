"""Tunes a DPS on instructions: the whole model, with LoRA, or with QLoRA.

python examples/sft.py --config examples/recipes/nano/sft.yaml
python examples/sft.py --config examples/recipes/nano/sft.yaml --load_in_8bit
accelerate launch examples/sft.py --config examples/recipes/nano/sft.yaml

If the training is interrupted, the same command resumes it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig, TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.training.collator import RecordCollator
from dps_hf.training.curves import Curves
from dps_hf.training.datasets import DataArguments, as_dataset, make_evaluation_data, make_training_data
from dps_hf.training.loading import check_four_bit_training, load_for_training
from dps_hf.training.loss_arguments import take_loss_arguments
from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.packing import PackingCollator
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.samples import Samples
from dps_hf.training.sft_trainer import PackingSFTTrainer, RecordSFTTrainer
from dps_hf.training.trained_parts import (
    NoteTrainedParts,
    SkipUnusedParts,
    choose_trained_parts,
    complete_adapter,
    describe_trained,
    make_lora_config,
)


@dataclass
class ScriptArguments(DataArguments):
    """Those of [`~dps_hf.training.datasets.DataArguments`], and:

    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 2.0e-5}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate` if it is trained
        by default; the vision tower is not.
    """

    train: dict = field(default_factory=dict)


def main(script: ScriptArguments, training: SFTConfig, arguments: ModelConfig) -> None:
    loss = take_loss_arguments(training)
    if is_finished(training, script, arguments, loss):
        return
    choose_precision(training)
    # Model
    model, processor = load_for_training(arguments)
    check_four_bit_training(model, training.eval_strategy != "no")
    rates = choose_trained_parts(model, script.train, training.learning_rate, arguments.use_peft)

    # Dataset
    records, held_out = make_training_data(script, training, model, processor, block=training.train_batch_size)
    evaluated = make_evaluation_data(script, training, held_out)
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    training.max_length = None  # truncation might cut a picture

    # Training
    packed, padded = (PackingCollator, PackingSFTTrainer), (RecordCollator, RecordSFTTrainer)
    collator, trainer_class = packed if loss.packing else padded
    callbacks = [Curves(), SkipUnusedParts(), NoteTrainedParts(rates)]
    trainer = trainer_class(
        model=model,
        args=training,
        data_collator=collator(model, processor, loss.assistant_only_loss, loss.completion_only_loss),
        train_dataset=as_dataset(records),
        eval_dataset=evaluated,
        processing_class=processor,
        peft_config=make_lora_config(model, arguments, rates=rates),
        callbacks=[*callbacks, Samples(held_out, processor, script.samples)] if script.samples else callbacks,
    )
    complete_adapter(trainer.model)
    if script.train:
        trainer.optimizer_cls_and_kwargs = make_optimizer(training, rates)
    # Each batch is of one task and has the same weight, so that the many tokens of drawings do not outweigh answers.
    trainer.model_accepts_loss_kwargs = False
    print(describe_trained(trainer.model, rates))
    train_and_save(trainer, script, arguments, loss)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    parser.set_defaults(assistant_only_loss=True)
    set_training_defaults(parser)
    run_script(main, parser)
