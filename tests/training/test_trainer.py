"""What the trainer adds to the loss of packed rows, and when."""

import pytest
import torch
from transformers import JanusVQVAEConfig, TrainingArguments

from dps_hf.training.trainer import DPSTrainer


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(str(tmp_path), max_steps=10, use_cpu=True, report_to="none")


def test_an_extra_loss_is_added_in_every_so_many_steps_and_in_no_evaluation(
    make_model, tiny_processor, arguments, monkeypatch
):
    called = []

    def extra_loss(model, processor, step):
        called.append((model, processor, step))
        return torch.tensor(2.0)

    monkeypatch.setattr("dps_hf.training.trainer.packed_loss", lambda *_, **__: torch.tensor(1.0))
    model = make_model().train()
    options = {"extra_loss": extra_loss, "extra_loss_steps": 3}
    trainer = DPSTrainer(model=model, args=arguments, processing_class=tiny_processor, **options)
    losses = []
    for trainer.state.global_step in range(5):
        losses.append(trainer.compute_loss(model, {}).item())
    assert losses == [3, 1, 1, 3, 1]
    assert called == [(model, tiny_processor, 0), (model, tiny_processor, 3)]
    trainer.state.global_step = 0
    assert trainer.compute_loss(model.eval(), {}).item() == 1
    with pytest.raises(ValueError, match="extra_loss_steps must be 1 or more; got 0"):
        DPSTrainer(model=model, args=arguments, extra_loss=extra_loss, extra_loss_steps=0)


def test_codes_are_smoothed_in_the_first_steps_and_in_no_evaluation(make_model, tiny_processor, tmp_path, monkeypatch):
    smoothing = []
    loss = "dps_hf.training.trainer.packed_loss"
    monkeypatch.setattr(loss, lambda *_, code_smoothing: smoothing.append(code_smoothing))
    model = make_model().train()
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=10, use_cpu=True, report_to="none")
    trainer = DPSTrainer(model=model, args=args, processing_class=tiny_processor, code_smoothing=0.1)
    for trainer.state.global_step in range(10):
        trainer.compute_loss(model, {})
    assert smoothing == [0.1] * 6 + [0.0] * 4
    trainer.state.global_step = 1
    trainer.compute_loss(model.eval(), {})
    assert smoothing[-1] == 0.0


def test_smoothing_that_cannot_be_is_refused(make_model, tmp_path):
    model, args = make_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"between 0 and 0\.5; got 0\.7"):
        DPSTrainer(model=model, args=args, code_smoothing=0.7)
    model.config.image_tokenizer_config = JanusVQVAEConfig()
    with pytest.raises(ValueError, match=r"janus_vqgan.*has none. Set it to 0"):
        DPSTrainer(model=model, args=args, code_smoothing=0.1)
