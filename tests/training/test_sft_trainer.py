"""trl's trainer on packed rows."""

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from trl import SFTConfig, SFTTrainer
from trl.kernels import chunked_logprob

from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import PackingCollator
from dps_hf.training.sft_trainer import PackingSFTTrainer, RecordSFTTrainer


RED = Image.new("RGB", (16, 16), "red")
RECORDS = [record("t", [RED, "Which colour?"], ["red"]), record("t", ["a red square"], [RED])] * 2


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules=r"model\.language_model\..*up_proj")])
def test_sft_on_packed_rows_trains_and_logs_the_packed_loss(make_model, tiny_processor, tmp_path, adapter):
    model = make_model()
    model.model.image_tokenizer.requires_grad_(False)
    collate = PackingCollator(model, tiny_processor)
    expected = packed_loss(model, model, collate(RECORDS)).item()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.1}
    dataset = make_lazy_dataset(RECORDS)
    trainer = PackingSFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=3, logging_steps=1, use_cpu=True, bf16=False, report_to="none", max_length=None,
            remove_unused_columns=False, save_strategy="no", prediction_loss_only=True, **options,
        ),
        data_collator=collate,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tiny_processor,
        peft_config=adapter,
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(expected, rel=1e-3) and losses[-1] < losses[0]
    trained = [name for name, one in trainer.model.named_parameters() if one.grad is not None or one.requires_grad]
    assert all("lora_" in name for name in trained) if adapter else len(trained) > 50
    assert trainer.evaluate()["eval_loss"] < losses[0]


def test_a_sharded_head_is_refused_where_codes_are_smoothed(make_model, tiny_processor):
    model = make_model()
    model.get_output_embeddings().weight.ds_id = 0  # as ZeRO-3 marks it
    batch = PackingCollator(model, tiny_processor)(RECORDS)
    with pytest.raises(ValueError, match=r"ZeRO-3 shards it. Set it to 0"), torch.no_grad():
        packed_loss(model, model, batch, code_smoothing=0.1)


@pytest.mark.parametrize("options", [{}, {"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules=r"model\.language_model\..*up_proj")])
def test_sft_computes_logits_where_labels_are_due_and_logs_what_trl_logs(
    make_model, tiny_processor, tmp_path, monkeypatch, options, adapter
):
    logs, rows = [], {}
    forward = chunked_logprob.ChunkedLogProbFunction.forward

    def count(ctx, hidden, *arguments):
        rows.setdefault(len(logs), set()).add(len(hidden))
        return forward(ctx, hidden, *arguments)

    monkeypatch.setattr(chunked_logprob.ChunkedLogProbFunction, "forward", staticmethod(count))
    for trainer_class in (SFTTrainer, RecordSFTTrainer):
        model = make_model()
        collate = RecordCollator(model, tiny_processor)
        trainer = trainer_class(
            model=model,
            args=SFTConfig(
                str(tmp_path), max_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="none",
                max_length=None, remove_unused_columns=False, save_strategy="no", prediction_loss_only=True,
                per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.01,
                gradient_checkpointing=False, **options,
            ),
            data_collator=collate,
            train_dataset=make_lazy_dataset(RECORDS),
            eval_dataset=make_lazy_dataset(RECORDS),
            processing_class=tiny_processor,
            peft_config=adapter,
        )  # fmt: skip
        trainer.train()
        trainer.evaluate()
        logs.append(trainer.state.log_history)
    for plain, ours in zip(*logs, strict=True):
        same = [name for name in plain if "runtime" not in name and "per_second" not in name]
        assert {name: ours[name] for name in same} == pytest.approx({name: plain[name] for name in same}, rel=1e-3)
    assert {"entropy", "mean_token_accuracy", "num_tokens"} <= logs[1][0].keys()
    batch = collate(RECORDS[:2])
    due, all_of_them = int((batch["labels"][:, 1:] != -100).sum()), batch["labels"][:, 1:].numel()
    assert max(rows[0]) >= all_of_them and ("label_smoothing_factor" in options or max(rows[1]) <= 2 * due)
