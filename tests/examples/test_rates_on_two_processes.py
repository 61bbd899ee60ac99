"""The train section on two processes, with DDP and FSDP2: the same losses and rows as on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from two_processes import ROOT, launch

from dps_hf.components import find_new_tokens
from dps_hf.model.configuration_dps import DPSConfig


FIELDS = {
    "tasks": {"dps_hf.nano.tasks.scenes_i2t": 1, "dps_hf.nano.tasks.scenes_t2i": 1},
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.1,
    "max_grad_norm": 0.1,  # so that it matters which gradients are counted
    "prompt_dropout": 0.0,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "seed": 0,
}
RATES = {
    "frozen": {"connector": 1e-3, "new_tokens": 1e-2, "decoder": 0, "vision_tower": 0},
    "both": {"connector": 1e-3, "new_tokens": 1e-2, "decoder": 1e-3, "vision_tower": 0},
    "lora": {"connector": 1e-3, "new_tokens": 1e-2},
}


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row[name] for row in log for name in ("loss", "grad_norm") if name in row]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rates", RATES)
def test_rates_on_two_processes_are_those_on_one(kind, rates, saved_model, tmp_path):
    if (kind, rates) == ("fsdp2", "lora"):
        pytest.skip("refused, see test_trained_parts.py")
    lora = rates == "lora"
    script = str(ROOT / "examples" / ("sft.py" if lora else "train.py"))
    fields = {"model_name_or_path" if lora else "model": saved_model, "train": RATES[rates]} | FIELDS
    fields |= {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0} if lora else {}
    recipes = {}
    for name, accumulation in (("one", 2), ("two", 1)):
        recipe = {**fields, "gradient_accumulation_steps": accumulation, "output_dir": str(tmp_path / name)}
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(recipe))
    alone = [sys.executable, script, "--config", str(recipes["one"])]
    for command in (alone, launch(kind, script, "--config", str(recipes["two"]))):
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr[-5000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-2)
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
    for name in one:  # FSDP saves tied weights under both names
        torch.testing.assert_close(
            two[name], one[name], rtol=0, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    if rates == "frozen":
        before, new = load_file(Path(saved_model) / file), find_new_tokens(DPSConfig.from_pretrained(saved_model))
        table = "model.language_model.embed_tokens.weight"
        old = [row for row in range(len(two[table])) if row not in new]
        assert torch.equal(two[table][old], before[table][old])
        assert not torch.equal(two[table][new], before[table][new])
