"""Trains DPS on a mixture of tasks: drawing, describing and reasoning in one model.

python examples/train.py --config examples/recipes/nano/model.yaml
accelerate launch examples/train.py --config examples/recipes/nano/model.yaml

Killed at any moment, the same command goes on from the last checkpoint to the same losses.
"""

from dataclasses import dataclass, field

import torch
from transformers import CONFIG_MAPPING, GenerationConfig, TrainingArguments, set_seed
from trl import TrlParser

from dps_hf import DPSForConditionalGeneration, DPSProcessor, from_components
from dps_hf.components import replace_image_tokenizer
from dps_hf.data.guidance import Schedule, schedules
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.training.collator import KeepTraining
from dps_hf.training.curves import Curves
from dps_hf.training.packing import DPSTrainer, PackingCollator, ShuffledWords
from dps_hf.training.processes import SkipUnusedParts, fastest_precision
from dps_hf.training.resuming import is_finished, train_and_save


@dataclass
class ScriptArguments:
    """
    model: a DPS to go on from, with another `image_tokenizer` where one is given. Left out, one is made of the parts below,
        which with it are not used.
    text_config: fields of the decoder's config, `model_type` among them.
    text_tokenizer, vision_tower, image_tokenizer: what the scripts before this one wrote.
    row_end: whether drawings end each row of codes with a token of its own; it is added to `text_tokenizer`.
    freeze_vision_tower: keeps the tower as it was trained.
    tasks: task to weight.
    num_records: how many different records; they come again and again. By default none comes twice.
    guidance: task to fields of its `Schedule`; where a task is left out, worked steps in 2 of 3 examples.
    prompt_dropout: share of the drawings that are learned without words, for classifier-free guidance.
    code_dropout: share of the drawings in which some codes are hidden from those that follow, so that words count.
    code_smoothing: share of the aim that goes to each neighbour of a code, by each of its digits; none in the last steps.
    alignment_steps: every so many steps, names of one emoji in two languages are drawn together; 0 for never.
    evaluation_records: records of each task for the loss curves; held out, where the task holds anything out.
    generation: fields of the generation config that is saved with the model.
    """

    model: str | None = None
    text_config: dict = field(default_factory=dict)
    text_tokenizer: str | None = None
    vision_tower: str | None = None
    image_tokenizer: str | None = None
    row_end: bool = False
    freeze_vision_tower: bool = False
    tasks: dict = field(default_factory=dict)
    num_records: int | None = None
    guidance: dict = field(default_factory=dict)
    prompt_dropout: float = 0.1
    code_dropout: float = 0.0
    code_smoothing: float = 0.0
    alignment_steps: int = 0
    evaluation_records: int = 128
    generation: dict = field(default_factory=dict)


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    fastest_precision(training)
    # Model
    if script.model:
        model = DPSForConditionalGeneration.from_pretrained(script.model, dtype=torch.float32)
        processor = DPSProcessor.from_pretrained(script.model)
        if script.image_tokenizer:
            known, processor = processor, replace_image_tokenizer(model, processor, script.image_tokenizer)
            if processor is not known:
                print(f"The image tokenizer is another one: {model.config.codebook_size} codes are learned anew.")
    elif script.text_config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            "Give model, a DPS to go on from, or text_config with a model_type that transformers knows, such as llama; "
            f"text_config is {script.text_config}. See the recipes."
        )
    elif missing := [name for name in ("vision_tower", "image_tokenizer") if not getattr(script, name)]:
        raise ValueError(f"Give {' and '.join(missing)}, what the scripts before this one wrote, or model.")
    else:
        fields = dict(script.text_config)
        model, processor = from_components(
            text=CONFIG_MAPPING[fields.pop("model_type")](**fields),
            vision=script.vision_tower,
            image_tokenizer=script.image_tokenizer,
            tokenizer=script.text_tokenizer,
            row_end=script.row_end,
        )
    model.model.vision_tower.requires_grad_(not script.freeze_vision_tower)
    # From the start: the loader fetches the first batch, which may drop prompts, before the trainer says so.
    model.train()
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, **script.generation
    )
    model.generation_config.validate(strict=True)  # now, and not when the first checkpoint is saved
    print(f"{model.num_parameters():,} parameters, {model.num_parameters(only_trainable=True):,} of them trained")

    # Dataset
    if training.max_steps < 1:
        raise ValueError(f"max_steps must be 1 or more, since the mixture has no end; got {training.max_steps}.")
    batch_size = training.train_batch_size
    length = training.max_steps * batch_size * training.gradient_accumulation_steps * training.world_size
    guidance = schedules(script.guidance)
    train = Mixture(script.tasks, training.seed, length, guidance=guidance, num_records=script.num_records)
    held_out = {
        name_of(task): Mixture({task: 1}, length=script.evaluation_records, split="validation")
        for task in script.tasks
    }
    for task in [task for task in script.tasks if task.endswith("t2i")]:
        # Without plans, which would say what the words hide.
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
        data_collator=PackingCollator(model, processor, script.prompt_dropout, script.code_dropout),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        callbacks=[Curves(), KeepTraining(), SkipUnusedParts()],
        alignment_steps=script.alignment_steps,
        code_smoothing=script.code_smoothing,
    )
    train_and_save(trainer, script)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # or `bf16` is taken for a mistake there
    main(*parser.parse_args_and_config())
