"""trl's own trainers on records and preferences."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from dps_hf.data.record import record
from dps_hf.training.collator import encode_drawings


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def test_trl_trains_on_records_as_they_are(make_model, tiny_processor, tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    records = [record("i2t", [RED, "Which colour?"], ["red"]), record("i2t", [BLUE, "Which colour?"], ["blue"])]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, learning_rate=0.1, report_to="none",
            save_strategy="no", max_length=None, use_cpu=True, bf16=False,
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=tiny_processor,
    ).train()  # fmt: skip
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    still = {name for name in before if name not in moved}
    assert all("image_tokenizer" in name or "head" in name for name in still), still


def test_trl_trains_on_drawings_as_code_text(make_model, tiny_processor, tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    records = encode_drawings([record("t2i", ["red"], [RED]), record("t2i", ["blue"], [BLUE])], model, tiny_processor)
    assert [r["images"] for r in records] == [[], []]
    rows = [{"messages": r["messages"]} for r in records]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=20, per_device_train_batch_size=2, learning_rate=0.03, report_to="none",
            save_strategy="no", use_cpu=True, bf16=False, logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_processor,
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2


STOCK = {
    "max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01, "report_to": "none",
    "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1,
}  # fmt: skip


def chat(text: str, role: str) -> list[dict]:
    return [{"role": role, "content": text}]


def prompts_with_pictures_and_without(images: list, **columns: list) -> Dataset:
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    text = List({"role": Value("string"), "content": Value("string")})
    rows = {"prompt": [chat("Hi", "user")] * 4, "images": images, **columns}
    kinds = {name: Value("bool") if name == "label" else text for name in rows}
    return Dataset.from_dict(rows, Features({**kinds, "images": List(ImageFeature())}))


ANSWERS = {
    "sft": {"completion": [chat("red", "assistant")] * 4},
    "dpo": {"chosen": [chat("red", "assistant")] * 4, "rejected": [chat("blue", "assistant")] * 4},
    "kto": {"completion": [chat("red", "assistant"), chat("blue", "assistant")] * 2, "label": [True, False] * 2},
    "grpo": {},
}


@pytest.mark.parametrize("images", [[[RED], None, None, [BLUE]], [[RED], None, [], [RED, BLUE]]])
@pytest.mark.parametrize("name", ANSWERS)
def test_stock_trl_trains_on_prompts_with_pictures_and_without(make_model, tiny_processor, tmp_path, name, images):
    import trl

    options, extra = dict(STOCK), {}
    if name == "grpo":  # which makes the `None` itself
        options |= {"num_generations": 2, "max_completion_length": 3, "per_device_train_batch_size": 8}
        extra = {"reward_funcs": lambda completions, **_: [float(i) for i in range(len(completions))]}
    else:
        options["max_length"] = None
    trainer_class, config_class = getattr(trl, f"{name.upper()}Trainer"), getattr(trl, f"{name.upper()}Config")
    if name in ("dpo", "kto"):
        extra = {"ref_model": make_model()}
    model = make_model()
    before = model.model.language_model.norm.weight.clone()
    trainer = trainer_class(
        model=model,
        args=config_class(str(tmp_path), **options),
        train_dataset=prompts_with_pictures_and_without(images, **ANSWERS[name]),
        processing_class=tiny_processor,
        **extra,
    )
    trainer.train()
    assert not torch.equal(model.model.language_model.norm.weight, before)
    assert all(np.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def test_grpo_scores_prompts_without_pictures_by_themselves(make_model, tiny_processor, tmp_path):
    """A part of a batch that is scored at a time may hold no picture at all."""
    from trl import GRPOConfig, GRPOTrainer

    options = {**STOCK, "num_generations": 2, "max_completion_length": 3, "per_device_train_batch_size": 2}
    trainer = GRPOTrainer(
        model=make_model(),
        args=GRPOConfig(str(tmp_path), **options, steps_per_generation=4),
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        train_dataset=prompts_with_pictures_and_without([[RED], None, None, [BLUE]]),
        processing_class=tiny_processor,
    )
    trainer.train()
