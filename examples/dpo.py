"""Direct preference optimisation of a DPS on pairs of answers or drawings (https://huggingface.co/papers/2305.18290).

python examples/dpo.py --config examples/recipes/nano/dpo.yaml
accelerate launch examples/dpo.py --config examples/recipes/nano/dpo.yaml

`examples/build_preferences.py` makes the pairs. If they mix long drawings and short answers, use the loss type
`sigmoid_norm`, which gives a token the same weight in both. If the training is interrupted, the same command resumes
it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser

from dps_hf.command_line import run_script
from dps_hf.data.preferences import read_preferences
from dps_hf.preferences.drawings import write_drawings
from dps_hf.training.curves import Curves
from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.loading import check_four_bit_training, load_for_training
from dps_hf.training.optimizer import make_optimizer
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
class ScriptArguments:
    """
    dataset: a name on the Hub, a file, a folder, or the dotted path of a function; or a mapping or a list of them, as
        described in `dps_hf/data/rows.py`. Usual columns are `prompt`, `chosen`, `rejected`, and `images` if
        prompts have pictures. Rows that cannot be used are listed in `skipped.jsonl` in `output_dir`.
    max_skipped: the share of such rows above which the script stops.
    evaluation_share: share of the pairs that is held out for evaluation.
    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 2.0e-5}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate` if it is trained
        by default.
    vision_tower: whether the vision tower is trained, too.
    norm_learning_rate: learning rate of the logarithm of the scale of the decoder's last norm, which decides how
        confident the model is. 0 leaves the norm as it is.
    """

    dataset: str  # a recipe may give a mapping or a list
    max_skipped: float = 0.1
    evaluation_share: float = 0.05
    train: dict = field(default_factory=dict)
    vision_tower: bool = False
    norm_learning_rate: float = 0.0


def main(script: ScriptArguments, training: DPOConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    # Model
    model, processor = load_for_training(arguments, script.vision_tower)
    rates = choose_trained_parts(model, script.train, training.learning_rate, arguments.use_peft, script.vision_tower)
    check_four_bit_training(model, training.eval_strategy != "no")
    reference = None if arguments.use_peft else load_for_training(arguments)[0]

    # Dataset
    skipped, held_out = Path(training.output_dir) / "skipped.jsonl", None
    with training.main_process_first():
        pairs = read_preferences(script.dataset, training.seed, skipped, script.max_skipped)
    pairs = write_drawings(pairs, model, processor, skipped=skipped, max_skipped=script.max_skipped)
    if training.eval_strategy != "no":
        # Pairs of one prompt are neighbours. Without shuffling they stay on one side.
        split = pairs.train_test_split(script.evaluation_share, shuffle=False)
        pairs, held_out = split["train"], split["test"]
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
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # or `bf16` is taken for a mistake there
    run_script(main, parser)
