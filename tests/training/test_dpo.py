"""trl's DPOTrainer: the reference in advance, and no second model with LoRA."""

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from peft import LoraConfig
from PIL import Image
from trl import DPOConfig, DPOTrainer


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
CHAT = List({"role": Value("string"), "content": Value("string")})


def chat(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


@pytest.fixture(scope="module")
def pairs(tiny_processor) -> Dataset:
    """Answers about pictures, drawings as codes, and text alone."""
    red, blue = (tiny_processor.drawing_text(codes) for codes in ([0, 1, 2, 3], [7, 6, 5, 4]))
    rows = {
        "prompt": [chat("Which colour?", "user"), chat("Draw red", "user"), chat("Hi", "user"), chat("And?", "user")],
        "chosen": [chat("red"), chat(red), chat("Hello"), chat("blue")],
        "rejected": [chat("blue"), chat(blue), chat("No"), chat("a red one")],
        "images": [[RED], [], [], [BLUE]],
    }
    features = Features({name: CHAT if name != "images" else List(ImageFeature()) for name in rows})
    return Dataset.from_dict(rows, features)


@pytest.fixture
def make_trainer(make_model, tiny_processor, pairs, tmp_path):
    def make(reference=True, adapter=None, pictures=False, **options) -> DPOTrainer:
        return DPOTrainer(
            model=make_model(),
            ref_model=make_model() if reference else None,
            args=DPOConfig(
                str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=0.01, logging_steps=1,
                report_to="none", save_strategy="no", use_cpu=True, bf16=False, max_length=None,
                gradient_checkpointing=False, **options,
            ),
            train_dataset=pairs if pictures else pairs.remove_columns("images").select([1, 2]),
            processing_class=tiny_processor,
            peft_config=adapter,
        )  # fmt: skip

    return make


def losses(trainer: DPOTrainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules=r"model\.language_model\..*up_proj")])
def test_the_reference_in_advance_gives_the_same_losses(make_trainer, adapter):
    live = losses(make_trainer(adapter is None, adapter))
    ahead = losses(make_trainer(False, adapter, precompute_ref_log_probs=True))
    assert ahead == pytest.approx(live, rel=1e-4) and live[-1] != live[0]
    assert live[0] == pytest.approx(0.6931, abs=1e-3)  # the policy still is the reference


def test_with_the_reference_in_advance_a_step_is_one_pass_of_the_policy(make_trainer):
    trainer, calls = make_trainer(False, precompute_ref_log_probs=True), []
    assert trainer.ref_model is None
    trainer.model.model.language_model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.train()
    assert calls == [True] * 3


def test_trl_refuses_the_reference_in_advance_where_there_are_pictures(make_trainer):
    with pytest.raises(ValueError, match="not supported for vision datasets"):
        make_trainer(pictures=True, precompute_ref_log_probs=True)


def test_with_lora_the_reference_is_the_base_and_there_is_no_second_model(make_trainer):
    adapter = LoraConfig(r=2, target_modules=r"model\.language_model\..*up_proj")
    trainer, calls = make_trainer(False, adapter, pictures=True), []
    assert trainer.ref_model is None
    decoder = trainer.model.get_base_model().model.language_model
    decoder.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.train()
    # In each step, one pass of the policy with both answers, and one without gradients of the base.
    assert sorted(calls) == [False] * 3 + [True] * 3
