"""Trains DPS on a mixture of tasks: drawing, describing and reasoning in one model.

python examples/train.py --config examples/recipes/nano/model.yaml
accelerate launch examples/train.py --config examples/recipes/nano/model.yaml

If the training is interrupted, the same command resumes it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

import torch
from transformers import CONFIG_MAPPING, GenerationConfig, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf import DPSForConditionalGeneration, DPSProcessor, from_components
from dps_hf.command_line import run_script
from dps_hf.components import replace_image_tokenizer
from dps_hf.data.dropouts import Dropouts
from dps_hf.data.guidance import Schedule, read_schedules
from dps_hf.data.mixture import Mixture, ShuffledWords, name_of
from dps_hf.inference import load
from dps_hf.resolve import resolve
from dps_hf.training.curves import Curves
from dps_hf.training.packing import PackingCollator
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.trained_parts import SkipUnusedParts, freeze_parts
from dps_hf.training.trainer import DPSTrainer


@dataclass
class ScriptArguments:
    """
    model: a DPS to start from. If `image_tokenizer` is given, too, it replaces the model's own. Without `model`, a new
        one is made of the parts below.
    text_config: fields of the decoder's config, `model_type` among them.
    text_tokenizer, vision_tower, image_tokenizer: folders of these parts.
    freeze_vision_tower: whether the vision tower stays as it is.
    tasks: task to weight. A task is the dotted path of a function, such as `my_package.my_task`.
    num_records: how many records differ. They repeat in turn. By default none repeats.
    guidance: name of a task to `start` and `end`, the shares of the levels of guidance when training begins and ends.
        With `start` alone they do not change. By default 2 of 3 examples have worked steps.
    prompt_dropout: share of the drawings that are learned without their prompt, for classifier-free guidance.
    code_dropout: share of the drawings in which some codes are hidden from the codes that follow, so that the model
        has to use the prompt.
    code_smoothing: share of the target that goes to each neighbour of a code, along each of its digits, but for the
        last steps.
    extra_loss: dotted path of a function that takes the model, its processor and the step and returns a loss, which is
        added in every `extra_loss_steps`-th step.
    evaluation_records: number of records of each task for evaluation, held out if the task holds any out.
    generation: fields of the generation config that is saved with the model.
    """

    model: str | None = None
    text_config: dict = field(default_factory=dict)
    text_tokenizer: str | None = None
    vision_tower: str | None = None
    image_tokenizer: str | None = None
    freeze_vision_tower: bool = False
    tasks: dict = field(default_factory=dict)
    num_records: int | None = None
    guidance: dict = field(default_factory=dict)
    prompt_dropout: float = 0.1
    code_dropout: float = 0.0
    code_smoothing: float = 0.0
    extra_loss: str | None = None
    extra_loss_steps: int = 1
    evaluation_records: int = 128
    generation: dict = field(default_factory=dict)


def load_or_make_model(script: ScriptArguments) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    if script.model:
        model, processor = load(script.model, device="cpu", dtype=torch.float32)  # the trainer moves it
        if script.image_tokenizer:
            known, processor = processor, replace_image_tokenizer(model, processor, script.image_tokenizer)
            if processor is not known:
                print(f"The image tokenizer is replaced: {model.config.codebook_size} codes are learned anew.")
        return model, processor
    if script.text_config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            "Give model, a DPS to start from, or text_config with a model_type that transformers knows, such as "
            f"llama; got {script.text_config}. See the recipes."
        )
    if missing := [name for name in ("vision_tower", "image_tokenizer") if not getattr(script, name)]:
        raise ValueError(f"Give the folder of {' and '.join(missing)}, or model.")
    fields = dict(script.text_config)
    return from_components(
        text=CONFIG_MAPPING[fields.pop("model_type")](**fields),
        vision=script.vision_tower,
        image_tokenizer=script.image_tokenizer,
        tokenizer=script.text_tokenizer,
    )


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    choose_precision(training)
    # Model
    model, processor = load_or_make_model(script)
    freeze_parts(model, vision_tower=not script.freeze_vision_tower)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, **script.generation
    )
    model.generation_config.validate(strict=True)  # otherwise it fails only when the first checkpoint is saved
    print(f"{model.num_parameters():,} parameters, {model.num_parameters(only_trainable=True):,} of them trained")

    # Dataset
    if training.max_steps < 1:
        raise ValueError(f"max_steps must be 1 or more, since the mixture has no end; got {training.max_steps}.")
    batch_size = training.train_batch_size
    length = training.max_steps * batch_size * training.gradient_accumulation_steps * training.world_size
    guidance = read_schedules(script.guidance)
    mixture = Mixture(script.tasks, training.seed, length, guidance=guidance, num_records=script.num_records)
    held_out = {
        name_of(task): Mixture({task: 1}, length=script.evaluation_records, split="validation")
        for task in script.tasks
    }
    for task in [task for task in script.tasks if task.endswith("t2i")]:
        # Without plans, which would reveal the prompt that is shuffled.
        name, unguided = name_of(task), {name_of(task): Schedule({"none": 1})}
        bare = Mixture({task: 1}, length=script.evaluation_records, split="validation", guidance=unguided)
        held_out |= {name: bare, f"{name}_shuffled_words": ShuffledWords(bare)}

    # Training
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    training.train_sampling_strategy = "sequential"  # the mixture is random already
    trainer = DPSTrainer(
        model=model,
        args=training,
        data_collator=PackingCollator(model, processor),
        train_dataset=Dropouts(mixture, training.seed, script.prompt_dropout, script.code_dropout),
        eval_dataset=held_out,
        processing_class=processor,
        callbacks=[Curves(), SkipUnusedParts()],
        extra_loss=resolve(script.extra_loss, "extra_loss") if script.extra_loss else None,
        extra_loss_steps=script.extra_loss_steps,
        code_smoothing=script.code_smoothing,
    )
    train_and_save(trainer, script)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # or `bf16` is taken for a mistake there
    run_script(main, parser)
