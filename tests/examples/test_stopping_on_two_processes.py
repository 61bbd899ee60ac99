"""Too many bad rows on one of two processes stop both."""

import os
import subprocess

import pytest
import yaml
from test_rates_on_two_processes import FIELDS
from two_processes import ROOT, launch


ROWS = """
import os

from datasets import Dataset


def rows():
    bad = os.environ["RANK"] == "1"
    answers = ["" if bad and i % 2 else str(i) for i in range(200)]
    return Dataset.from_dict({"prompt": [f"Say {i}" for i in range(200)], "completion": answers})
"""


@pytest.mark.slow
def test_both_processes_stop_where_one_has_too_many_bad_rows(saved_model, tmp_path):
    (tmp_path / "their_data.py").write_text(ROWS)
    recipe = {name: value for name, value in FIELDS.items() if name != "tasks"}
    recipe |= {
        "model": saved_model,
        "dataset": "their_data.rows",
        "max_steps": 100,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = launch("ddp", str(ROOT / "examples" / "train.py"), "--config", "recipe.yaml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert result.returncode
    assert "rows are bad, more than max_skipped, 0.1. The most frequent reason" in result.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
