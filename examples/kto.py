"""Kahneman-Tversky optimisation of a DPS on answers or drawings that are each labelled good or bad.

python examples/kto.py --config examples/recipes/nano/kto.yaml
accelerate launch examples/kto.py --config examples/recipes/nano/kto.yaml

https://huggingface.co/papers/2402.01306. `examples/build_preferences.py` makes the data, for example from votes. In a
data set of pairs, each pair becomes a good and a bad answer. If the training is interrupted, the same command resumes
it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from trl import KTOConfig, KTOTrainer, ModelConfig, TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.data.record import get_text
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.preferences.datasets import PreferenceArguments, make_preference_data
from dps_hf.training.curves import Curves
from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.loading import check_four_bit_training, forbid_words, load_for_training
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

    balance: gives the rarer label a higher weight, so that good and bad responses have the same total weight. Streamed
        responses are not counted beforehand, and not balanced.
    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 2.0e-5}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate` if it is trained
        by default; the vision tower is not.
    norm_learning_rate: learning rate of the logarithm of the scale of the decoder's last norm, which decides how
        confident the model is. 0 leaves the norm as it is.
    """

    balance: bool = True
    train: dict = field(default_factory=dict)
    norm_learning_rate: float = 0.0


def is_drawing(completion: str | list[dict], processor: DPSProcessor) -> bool:
    """Whether a completion begins with a drawing."""
    return get_text(completion).startswith(processor.boi_token)


def weigh_labels(script: ScriptArguments, training: KTOConfig, responses: Dataset) -> str:
    """Counts the labels, balances their weights if `balance` is true, and says what was counted."""
    labels = responses["label"][:]
    good, bad = sum(labels), len(labels) - sum(labels)
    if not good or not bad:
        raise ValueError(
            f"{script.dataset} must hold good and bad responses; got {good} and {bad}. Judge more of them."
        )
    if script.balance:
        if (training.desirable_weight, training.undesirable_weight) != (1.0, 1.0):
            raise ValueError(
                "balance sets desirable_weight and undesirable_weight, which are given, too: "
                f"{training.desirable_weight} and {training.undesirable_weight}. "
                "Set balance to false, or leave them out."
            )
        training.desirable_weight, training.undesirable_weight = max(1.0, bad / good), max(1.0, good / bad)
    return f"{good} good, {bad} bad"


def restrict_to_codes(responses: Dataset, processor: DPSProcessor, models: list) -> None:
    """Computes probabilities over codes only, if all responses are drawings."""
    drawings = sum(is_drawing(completion, processor) for completion in responses["completion"])
    if drawings == len(responses):
        for model in filter(None, models):
            forbid_words(model, [processor.tokenizer.eos_token_id])
    elif drawings:
        print(
            f"{drawings} of {len(responses)} responses are drawings, and the others are text. So the probabilities of "
            "codes are computed over all tokens. If all responses were drawings, it would be over codes only."
        )


def main(script: ScriptArguments, training: KTOConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    choose_precision(training)
    # Model
    model, processor = load_for_training(arguments)
    rates = choose_trained_parts(model, script.train, training.learning_rate, arguments.use_peft)
    check_four_bit_training(model, training.eval_strategy != "no")
    reference = None if arguments.use_peft else load_for_training(arguments)[0]

    # Dataset
    responses, held_out = make_preference_data(script, training, model, processor, "label")
    if isinstance(responses, Dataset):
        # Shuffled, because trl uses the response before each one as a response to another prompt.
        responses = responses.shuffle(seed=training.seed)
        print(weigh_labels(script, training, responses))
        restrict_to_codes(responses, processor, [model, reference])
    elif script.balance:
        print("Streamed responses are not balanced, because their labels are not known beforehand.")
    training.max_length = None  # truncation might cut a picture

    # Training
    trainer = KTOTrainer(
        model=model,
        ref_model=reference,
        args=training,
        train_dataset=responses,
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
    parser = TrlParser((ScriptArguments, KTOConfig, ModelConfig))
    set_training_defaults(parser)
    run_script(main, parser)
