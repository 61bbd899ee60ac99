"""Packed rows, drawings encoded ahead, on two processes: with DDP, FSDP2 and ZeRO-3 the same losses as on one."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image
from two_processes import ROOT, launch


FIELDS = {
    "packing": True,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
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


@pytest.fixture
def drawings(tmp_path) -> str:
    """A folder of captioned pictures, both described and drawn."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    rows = []
    for i in range(24):
        Image.new("RGB", (20, 16), (10 * i, 0, 255 - 10 * i)).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"number {i}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "deepspeed_zero3"])
def test_packed_rows_on_two_processes_have_the_losses_of_one(kind, saved_model, drawings, tmp_path):
    if kind == "deepspeed_zero3":
        pytest.importorskip("deepspeed")
    logs = {}
    for name, accumulation in (("one", 2), ("two", 1)):
        recipe = {**FIELDS, "model_name_or_path": saved_model, "dataset": drawings}
        recipe |= {"gradient_accumulation_steps": accumulation, "output_dir": str(tmp_path / name)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        arguments = (str(ROOT / "examples/sft.py"), "--config", str(tmp_path / f"{name}.yaml"))
        command = [sys.executable, *arguments] if name == "one" else launch(kind, *arguments)
        cache = tmp_path / f"cache-{name}"
        environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert result.returncode == 0, result.stderr[-5000:]
        assert len([*cache.glob("dps_hf_codes/*/0.arrow")]) == 1  # encoded ahead, by one of the processes
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        logs[name] = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert len(logs["one"]) == 3
    assert logs["two"] == pytest.approx(logs["one"], rel=1e-2)
