"""The benchmark of training, on shrunk shapes."""

import json
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import training

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(training, "DECODER", training.DECODER | sizes | {"vocab_size": 512})
    monkeypatch.setattr(training, "VISION_TOWER", tower | {"image_size": 32, "patch_size": 16})
    monkeypatch.setattr(training, "MATMUL", (8, 8, 8))
    yield training
    for name in ("training", "comparison", "encoding"):
        sys.modules.pop(name, None)


def test_smolvlm_and_dpo_are_compared(benchmark, tmp_path):
    fields = {"layers": 1, "batch_size": 4, "precisions": ["fp32"], "peers": ["smolvlm", "dpo"]}
    output = tmp_path / "training.json"
    benchmark.main(benchmark.ScriptArguments(output=output, rounds=1, **fields))
    report = json.loads(output.read_text())
    assert [one["peer"] for one in report["comparisons"]] == ["SmolVLM through SFTTrainer", "its passes"]
    assert 0 <= report["padding_packed"] < report["padding"] < 1 and report["fp32"]["share_of_matmul_rate"] > 0


def test_smolvlm_has_the_shape_and_the_tokens_of_dps(benchmark):
    model, processor = benchmark.make_dps(1)
    peer = benchmark.make_smolvlm(model)
    ours, theirs = (
        {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
        for parts in (
            {"decoder": model.model.language_model, "head": model.lm_head},
            {"decoder": peer.model.text_model, "head": peer.lm_head},
        )
    )
    assert ours == theirs
    assert not any(weight.requires_grad for weight in peer.model.vision_model.parameters())
    records = benchmark.make_records(4)
    collate = benchmark.RecordCollator(model, processor)
    batch = benchmark.collate_for_smolvlm(collate)(records)
    assert (batch["input_ids"] == collate(records)["input_ids"]).all()
    assert peer(**batch).logits.shape[-1] == model.config.vocab_size


def test_without_nanovlm_the_rest_is_measured(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "NANOVLM", str(tmp_path / "nowhere"))
    assert not benchmark.clone_nanovlm(tmp_path / "clone")
    assert "nanoVLM could not be cloned" in capsys.readouterr().out
