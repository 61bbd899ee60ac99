"""Trains DPS on a mixture of tasks: drawing, describing and reasoning in one model.

python examples/train.py --config examples/recipes/nano/model.yaml
accelerate launch examples/train.py --config examples/recipes/nano/model.yaml

If the training is interrupted, the same command resumes it from the last checkpoint with the same losses.
"""

from dataclasses import dataclass, field

import torch
from transformers import CONFIG_MAPPING, GenerationConfig, Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import TrlParser

from dps_hf import DPSForConditionalGeneration, DPSProcessor, from_components
from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.components import replace_image_tokenizer
from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture, ShuffledWords, name_of
from dps_hf.inference import load
from dps_hf.model.image_processing_dps import FITS
from dps_hf.resolve import resolve
from dps_hf.training.collator import RecordCollator
from dps_hf.training.curves import Curves
from dps_hf.training.datasets import DataArguments, make_evaluation_data, make_training_data
from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.packing import PackingCollator
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.samples import Samples
from dps_hf.training.trained_parts import (
    NoteTrainedParts,
    SkipUnusedParts,
    choose_trained_parts,
    describe_trained,
    shape_of,
)
from dps_hf.training.trainer import DPSTrainer


@dataclass
class ScriptArguments(DataArguments):
    """Those of [`~dps_hf.training.datasets.DataArguments`], and:

    model: a DPS to start from. If `image_tokenizer` is given, too, it replaces the model's own. Without `model`, a new
        one is made of the parts below, each a name on the Hub or a folder.
    text: a decoder with its tokenizer.
    text_config: in place of `text`, fields of the config of a decoder with random weights, `model_type` among them.
    text_tokenizer: a tokenizer, if it is not that of `text`.
    vision, image_tokenizer: an image encoder, and an image tokenizer or a model that has one.
    fit, drawing_fit: how pictures that are read, and those that are drawn, become square: `crop`, `stretch`,
        `pad-grey`, `pad-white` or `pad-edge`. It is saved with the model. By default it is as before.
    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 0}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate`.
    packing: whether records are packed into rows without padding. Otherwise each record is padded to the longest of
        its batch, as DeepSpeed's ZeRO-3 needs it.
    assistant_only_loss, completion_only_loss: as in trl.
    code_dropout: share of the drawings in which some codes are hidden from the codes that follow, so that the model
        has to use the prompt.
    code_smoothing: share of the target that goes from each digit of a code to each of its two neighbours. The last
        steps have none.
    extra_loss: dotted path of a function that takes the model, its processor and the step, and returns a loss. It is
        added to the loss in every `extra_loss_steps`-th step.
    generation: fields of the generation config that is saved with the model.
    """

    model: str | None = None
    text: str | None = None
    text_config: dict = field(default_factory=dict)
    text_tokenizer: str | None = None
    vision: str | None = None
    image_tokenizer: str | None = None
    fit: str | None = None
    drawing_fit: str | None = None
    train: dict = field(default_factory=dict)
    packing: bool = True
    assistant_only_loss: bool = True
    completion_only_loss: bool | None = None
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
    if not script.text and script.text_config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            "Give model, a DPS to start from, text, a decoder to start from, or text_config with a model_type that "
            f"transformers knows, such as llama; got {script.text_config}. See the recipes."
        )
    parts = {"vision": script.vision, "image_tokenizer": script.image_tokenizer}
    if missing := [name for name, part in parts.items() if not part]:
        raise ValueError(f"Give the folder of {' and '.join(missing)}, or model.")
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "ZeRO-3 shards weights while they are loaded, so that a model cannot be put together. Save one first with "
            "from_components and save_pretrained, and give its folder as model."
        )
    fields = dict(script.text_config)
    text = script.text or CONFIG_MAPPING[fields.pop("model_type")](**fields)
    model, processor = from_components(text, **parts, tokenizer=script.text_tokenizer)
    return model.float(), processor


def hold_out_shuffled_words(script: ScriptArguments) -> dict[str, Mixture | ShuffledWords]:
    """The held-out drawings of tasks, with their own words and with those of others."""
    held_out: dict[str, Mixture | ShuffledWords] = {}
    for task in [task for task in script.tasks if task.endswith("t2i")]:
        # Without plans, which would reveal the prompt that is shuffled.
        name, unguided = name_of(task), {name_of(task): Schedule({"none": 1})}
        bare = Mixture({task: 1}, length=script.evaluation_records, split="validation", guidance=unguided)
        held_out |= {name: bare, f"{name}_shuffled_words": ShuffledWords(bare)}
    return held_out


def main(script: ScriptArguments, training: TrainingArguments) -> None:
    if is_finished(training, script):
        return
    set_seed(training.seed)
    choose_precision(training)
    # Model
    model, processor = load_or_make_model(script)
    for name, fit in (("fit", script.fit), ("drawing_fit", script.drawing_fit)):
        if fit is not None and fit not in FITS:
            raise ValueError(f"{name} must be one of {', '.join(FITS)}; got {fit!r}.")
        if fit is not None:
            setattr(processor.image_processor, name, fit)
    rates = choose_trained_parts(model, script.train, training.learning_rate, vision_tower=True)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, **script.generation
    )
    model.generation_config.validate(strict=True)  # otherwise it fails only when the first checkpoint is saved
    count = sum(shape_of(parameter).numel() for parameter in model.parameters())
    print(f"{count:,} parameters. {describe_trained(model, rates)}")

    # Dataset
    records, held_out = make_training_data(script, training, model, processor, code_dropout=script.code_dropout)
    if held_out:
        held_out |= hold_out_shuffled_words(script)
    evaluated = make_evaluation_data(script, training, held_out)

    # Training
    training.remove_unused_columns = False
    training.prediction_loss_only = True
    collator = PackingCollator if script.packing else RecordCollator
    callbacks = [Curves(), SkipUnusedParts(), NoteTrainedParts(rates)]
    own = {
        "extra_loss": resolve(script.extra_loss, "extra_loss") if script.extra_loss else None,
        "extra_loss_steps": script.extra_loss_steps,
        "code_smoothing": script.code_smoothing,
    }
    trainer = (DPSTrainer if script.packing else Trainer)(
        model=model,
        args=training,
        data_collator=collator(model, processor, script.assistant_only_loss, script.completion_only_loss),
        train_dataset=records,
        eval_dataset=evaluated,
        processing_class=processor,
        callbacks=[*callbacks, Samples(held_out, processor, script.samples)] if script.samples else callbacks,
        optimizer_cls_and_kwargs=make_optimizer(training, rates) if script.train else None,
        **(own if script.packing else {}),
    )
    trainer.model_accepts_loss_kwargs = False  # each batch has the same weight
    train_and_save(trainer, script)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, TrainingArguments))
    set_training_defaults(parser)
    run_script(main, parser)
