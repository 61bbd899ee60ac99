"""The precision that is fastest on a machine."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from dps_hf.training.precision import choose_precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_can(tiny_model, monkeypatch, tmp_path, capsys, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    arguments = TrainingArguments(str(tmp_path), bf16=True, use_cpu=True, report_to="none")
    choose_precision(arguments)
    assert Trainer(tiny_model, arguments).accelerator.mixed_precision == expected
    assert arguments.bf16 == (expected == "bf16") == (not capsys.readouterr().out)
