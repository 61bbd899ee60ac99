"""Trains DPS on a mixture of tasks: drawing, describing and reasoning in one model.

python examples/train.py --config examples/recipes/nano.yaml
accelerate launch examples/train.py --config examples/recipes/nano.yaml

Killed at any moment, the same command goes on from the last checkpoint to the same losses.
"""

from dataclasses import dataclass, field

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import TrlParser

from dps_hf.data.mixture import Mixture
from dps_hf.model.configuration_dps import DPSConfig
from dps_hf.model.image_processing_dps import DPSImageProcessor
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training import Curves, RecordCollator, ShuffledWords, last_checkpoint


@dataclass
class ScriptArguments:
    """
    model: a DPS to go on from; left out, one is made of the four parts below.
    text_config: fields of the decoder's config, `model_type` among them.
    text_tokenizer, vision_tower, image_tokenizer: what the scripts before this one wrote.
    tasks: task to weight.
    prompt_dropout: share of the drawings that are learned without words, for classifier-free guidance.
    evaluation_records: held-out records of each task for the loss curves.
    generation: fields of the generation config that is saved with the model.
    """

    model: str | None = None
    text_config: dict = field(default_factory=dict)
    text_tokenizer: str | None = None
    vision_tower: str | None = None
    image_tokenizer: str | None = None
    tasks: dict = field(default_factory=dict)
    prompt_dropout: float = 0.1
    evaluation_records: int = 128
    generation: dict = field(default_factory=dict)


def assemble(script: ScriptArguments) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """A DPS with a fresh decoder between a trained tower and a trained image tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(script.text_tokenizer)
    tower = SiglipVisionModel.from_pretrained(script.vision_tower)
    image_tokenizer = DPSImageTokenizer.from_pretrained(script.image_tokenizer)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    text_config = {
        **script.text_config,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = DPSConfig(
        text_config=text_config,
        vision_config=tower.config,
        image_tokenizer_config=image_tokenizer.config,
        **ids,
    )
    model = DPSForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    side = tower.config.image_size
    image_processor = DPSImageProcessor(size={"height": side, "width": side})
    processor = DPSProcessor(
        image_processor, tokenizer, num_image_tokens=config.num_image_tokens, grid_size=config.grid_size
    )
    return model, processor


SPECIAL_TOKENS = {
    "image_token_id": DPSProcessor.image_token,
    "boi_token_id": DPSProcessor.boi_token,
    "eoi_token_id": DPSProcessor.eoi_token,
    "image_code_start_id": DPSProcessor.code_token.format(0),
}


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    # Model
    if script.model:
        model = DPSForConditionalGeneration.from_pretrained(script.model, dtype=torch.float32)
        processor = DPSProcessor.from_pretrained(script.model)
    else:
        model, processor = assemble(script)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, **script.generation
    )
    print(f"{model.num_parameters():,} parameters, {model.num_parameters(only_trainable=True):,} of them trained")

    # Dataset
    batch_size = training.train_batch_size
    length = training.max_steps * batch_size * training.gradient_accumulation_steps * training.world_size
    train = Mixture(script.tasks, seed=training.seed, length=length, block=batch_size)
    held_out = {
        task: Mixture({task: 1}, length=script.evaluation_records, split="validation") for task in script.tasks
    }
    for task in [task for task in held_out if task.endswith("t2i")]:
        held_out[f"{task}_shuffled_words"] = ShuffledWords(held_out[task])

    # Training
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    training.train_sampling_strategy = "sequential"  # the mixture is random already, and its batches are of one task
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=RecordCollator(model, processor, script.prompt_dropout),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        callbacks=[Curves()],
    )
    # Each batch is of one task and counts alike: the many tokens of a drawing must not drown a short answer.
    trainer.model_accepts_loss_kwargs = False
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
