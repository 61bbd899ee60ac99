"""Direct preference optimisation of a DPS on pairs of answers or drawings (https://huggingface.co/papers/2305.18290).

python examples/dpo.py --config examples/recipes/nano/dpo.yaml
accelerate launch examples/dpo.py --config examples/recipes/nano/dpo.yaml

`examples/build_preferences.py` makes the pairs. If they mix long drawings and short answers, use the loss type
`sigmoid_norm`, which gives a token the same weight in both. If the training is interrupted, the same command resumes
it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.preferences.datasets import PreferenceArguments, make_preference_data
from dps_hf.training.curves import Curves
from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.loading import check_four_bit_training, load_for_training
from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.trained_parts import (
    NoteTrainedParts,
    SkipUnusedParts,
    choose_trained_parts,
    complete_adapter,
    describe_trained,
    make_lora_config,
)


@dataclass
class ScriptArguments(PreferenceArguments):
    """Those of [`~dps_hf.preferences.datasets.PreferenceArguments`], and:

    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 2.0e-5}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate` if it is trained
        by default; the vision tower is not.
    norm_learning_rate: learning rate of the logarithm of the scale of the decoder's last norm, which decides how
        confident the model is. 0 leaves the norm as it is.
    """

    train: dict = field(default_factory=dict)
    norm_learning_rate: float = 0.0


def main(script: ScriptArguments, training: DPOConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    choose_precision(training)
    # Model
    model, processor = load_for_training(arguments)
    rates = choose_trained_parts(model, script.train, training.learning_rate, arguments.use_peft)
    check_four_bit_training(model, training.eval_strategy != "no")
    # The base of an adapter is its reference. A reference that is read in advance is the model before its first step.
    needs_reference = not (arguments.use_peft or training.precompute_ref_log_probs)
    reference = load_for_training(arguments)[0] if needs_reference else None

    # Dataset
    pairs, held_out = make_preference_data(script, training, model, processor, "chosen")
    training.max_length = None  # truncation might cut a picture

    # Training
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=training,
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=processor,
        peft_config=make_lora_config(model, arguments, last_norm=script.norm_learning_rate > 0, rates=rates),
        callbacks=[Curves(), SkipUnusedParts(), NoteTrainedParts(rates)],
    )
    complete_adapter(trainer.model)
    if script.norm_learning_rate > 0:
        trainer.optimizer_cls_and_kwargs = make_norm_optimizer(training, script.norm_learning_rate, rates)
    elif script.train:
        trainer.optimizer_cls_and_kwargs = make_optimizer(training, rates)
    print(describe_trained(trainer.model, rates))
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    set_training_defaults(parser)
    run_script(main, parser)
