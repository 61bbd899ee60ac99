"""The library's own Trainer on DPS: what it makes of labels and outputs is what it makes of any causal model."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, pipeline
from transformers.models.auto import modeling_auto

from dps_hf.model.modeling_dps import DPSOutputWithPast


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
ROWS = [
    {"text": "<image>What colour? Red.", "images": [RED]},
    {"text": "Say yes. Yes.", "images": []},
    {"text": "<image><image>The same? No, they differ.", "images": [RED, BLUE]},
    {"text": "Hi.", "images": None},
]


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.fixture
def make_trainer(tiny_processor, tmp_path):
    def collate(rows):
        batch = tiny_processor(
            text=[row["text"] for row in rows],
            images=[row["images"] for row in rows],
            padding=True,
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels.masked_fill(labels == tiny_processor.image_token_id, -100)}

    def make(model, rows=ROWS, metrics=None, **options):
        arguments = TrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, remove_unused_columns=False, save_strategy="no",
            **{"per_device_eval_batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 1, **options},
        )  # fmt: skip
        return Trainer(
            model, arguments, data_collator=collate, train_dataset=Rows(rows), eval_dataset=Rows(rows),
            compute_metrics=metrics,
        )  # fmt: skip

    return make


# Label smoothing


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, factor: float) -> torch.Tensor:
    """Of the next tokens, by PyTorch."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=factor)


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS[1::2], ROWS[::2]], ids=["mixed", "no pictures", "pictures"])
@pytest.mark.parametrize("adapter", [False, True])
def test_label_smoothing_is_of_the_next_token(make_model, make_trainer, rows, adapter):
    model = make_model()
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    trainer = make_trainer(model, rows, label_smoothing_factor=0.1)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        logits = model(**batch).logits
        found = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(found, smoothed_loss(logits, batch["labels"], 0.1))


def test_a_model_learns_with_label_smoothing(make_model, make_trainer):
    trainer = make_trainer(
        make_model(), ROWS[:2], label_smoothing_factor=0.1, max_steps=15, learning_rate=0.02, logging_steps=1
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    with torch.no_grad():
        batch = {name: value for name, value in trainer.data_collator(ROWS[:2]).items()}
        next_token = trainer.model(**batch).loss
    assert losses[-1] < losses[0] / 2 and next_token < losses[0] / 2


def test_nobody_takes_the_model_for_one_of_text_alone(tiny_model, tiny_processor, tmp_path):
    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert names["dps"] == "DPSForConditionalGeneration"
    for others in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):
        assert others["dps"] == names["dps"]
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.modelcard import TrainingSummary

    assert ModelManager.get_model_modality(tiny_model, tiny_processor).name == "MULTIMODAL"
    trainer = Trainer(tiny_model, TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True))
    assert TrainingSummary.from_trainer(trainer).tasks == "image-text-to-text"
    pipe = pipeline("text-generation", model=tiny_model, tokenizer=tiny_processor.tokenizer)
    assert len(pipe("Hi", max_new_tokens=2, do_sample=False)) == 1


# Metrics


def test_all_outputs_but_loss_and_logits_are_ignored_at_inference(tiny_config):
    ignored = set(tiny_config.keys_to_ignore_at_inference)
    assert {field.name for field in fields(DPSOutputWithPast)} - ignored == {"loss", "logits"}
    assert {"past_key_values", "cache"} <= ignored


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[1::2], ROWS[::2], ROWS[:3]], ids=["mixed", "no pictures", "pictures", "uneven"]
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_metrics_are_computed_of_the_logits_alone(make_model, make_trainer, rows, batch_size):
    seen = []

    def accuracy(evaluated):
        seen.append(evaluated.predictions)
        assert isinstance(evaluated.predictions, np.ndarray)
        right = evaluated.predictions[:, :-1].argmax(-1) == evaluated.label_ids[:, 1:]
        return {"accuracy": right[evaluated.label_ids[:, 1:] != -100].mean()}

    model = make_model()
    trainer = make_trainer(model, rows, accuracy, per_device_eval_batch_size=batch_size)
    figures = trainer.evaluate()
    assert 0 <= figures["eval_accuracy"] <= 1 and np.isfinite(figures["eval_loss"])
    with torch.no_grad():
        batch = trainer.data_collator(rows[:batch_size])
        batch.pop("labels")
        logits = model(**batch).logits.numpy()
    np.testing.assert_allclose(seen[0][:batch_size, : logits.shape[1]], logits, rtol=1e-4, atol=1e-4)
    assert seen[0].shape[0] == len(rows) and seen[0].shape[2] == model.config.vocab_size


def test_metrics_of_what_is_made_of_the_logits_of_an_adapter(make_model, make_trainer):
    model = get_peft_model(make_model(), LoraConfig(target_modules=r".*language_model.*q_proj"))
    made = []

    def choices(logits, labels):
        made.append(logits)
        return logits.argmax(-1)

    trainer = make_trainer(model, metrics=lambda evaluated: {"shape": evaluated.predictions.ndim})
    trainer.preprocess_logits_for_metrics = choices
    assert trainer.evaluate()["eval_shape"] == 2
    assert all(isinstance(logits, torch.Tensor) for logits in made)


def test_the_loss_alone_is_evaluated_with_pictures_and_without(make_model, make_trainer):
    trainer = make_trainer(make_model(), prediction_loss_only=True)
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    predictions = make_trainer(make_model()).predict(Rows(ROWS)).predictions
    assert isinstance(predictions, np.ndarray) and len(predictions) == len(ROWS)
