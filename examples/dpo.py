"""Direct preference optimisation of a DPS on pairs of answers or drawings (https://huggingface.co/papers/2305.18290).

python examples/dpo.py --config examples/recipes/nano/dpo.yaml
accelerate launch examples/dpo.py --config examples/recipes/nano/dpo.yaml

The pairs are those of `examples/build_preferences.py`. Where long drawings and short answers are mixed, the loss type
`sigmoid_norm` counts a token in each of them alike. Killed at any moment, the same command goes on from the last
checkpoint to the same losses.
"""

from dataclasses import dataclass

from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser

from dps_hf.data.sources import read_preferences
from dps_hf.training.adapters import (
    check_four_bit_training,
    check_trained,
    load_for_training,
    lora_config,
    norm_optimizer,
)
from dps_hf.training.curves import Curves
from dps_hf.training.processes import SkipUnusedParts
from dps_hf.training.resuming import is_finished, train_and_save


@dataclass
class ScriptArguments:
    """
    dataset: a folder that `datasets` saved, with `prompt`, `chosen`, `rejected`, and `images` where prompts have some.
    evaluation_share: of the pairs, for the loss curves.
    vision_tower: whether the vision tower is trained, too.
    norm_learning_rate: of the logarithm of the scale of the decoder's last norm, which is how sure the model is of its tokens; 0 leaves
        it alone.
    """

    dataset: str
    evaluation_share: float = 0.05
    vision_tower: bool = False
    norm_learning_rate: float = 0.0


def main(script: ScriptArguments, training: DPOConfig, arguments: ModelConfig) -> None:
    if is_finished(training, script, arguments):
        return
    # Model
    model, processor = load_for_training(arguments, script.vision_tower)
    check_four_bit_training(model, training.eval_strategy != "no")
    reference = None if arguments.use_peft else load_for_training(arguments)[0]

    # Dataset
    pairs, held_out = read_preferences(script.dataset), None
    if training.eval_strategy != "no":
        # Pairs of one prompt stand together: unshuffled, they are on one side.
        split = pairs.train_test_split(script.evaluation_share, shuffle=False)
        pairs, held_out = split["train"], split["test"]
    training.max_length = None  # what is cut off might be a picture

    # Training
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=training,
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=processor,
        peft_config=lora_config(model, arguments, script.vision_tower, script.norm_learning_rate > 0),
        callbacks=[Curves(), SkipUnusedParts()],
    )
    if script.norm_learning_rate > 0:
        trainer.optimizer_cls_and_kwargs = norm_optimizer(training, script.norm_learning_rate)
    print(f"{len(check_trained(trainer.model, script.vision_tower))} tensors are trained")
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, DPOConfig, ModelConfig)).parse_args_and_config())
