"""EleutherAI's harness measures a saved DPS as it is, with tasks that are files on this machine."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset
from PIL import Image


pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="needs lm_eval, which brings 30 packages: pip install lm_eval")

CAPITALS = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is the capital of {{country}}?"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SQUARES = """
task: squares
dataset_path: parquet
dataset_kwargs: {data_files: {test: FOLDER/squares.parquet}}
test_split: test
output_type: generate_until
doc_to_image: images
doc_to_text: "<image>Describe the picture."
doc_to_target: caption
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "capitals.yaml").write_text(CAPITALS.replace("FOLDER", str(tmp_path)))
    (tmp_path / "squares.yaml").write_text(SQUARES.replace("FOLDER", str(tmp_path)))
    row = {"country": "France", "choices": ["Paris", "Rome"], "answer": 0}
    (tmp_path / "capitals.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    pictures = [[Image.new("RGB", (16, 16), colour)] for colour in ("red", "blue")]
    Dataset.from_dict({"images": pictures, "caption": ["red", "blue"]}).to_parquet(tmp_path / "squares.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "task", "metric", "count"),
    [("hf", "capitals", "acc,none", 3), ("hf-multimodal", "squares", "exact_match,none", 2)],
)
def test_lm_eval_measures_a_saved_model_by_a_task_of_ones_own(saved_model, tasks, kind, task, metric, count):
    command = [sys.executable, "-m", "lm_eval", "--model", kind, "--tasks", task, "--include_path", str(tasks)]
    command += ["--model_args", f"pretrained={saved_model},trust_remote_code=True", "--apply_chat_template"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tasks / "home")}
    result = subprocess.run(
        [*command, "--device", "cpu", "--output_path", str(tasks / "out")],
        env=environment,
        cwd=tasks,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    [report] = [json.loads(path.read_text()) for path in (tasks / "out").rglob("results_*.json")]
    assert 0 <= report["results"][task][metric] <= 1 and report["n-samples"][task]["effective"] == count
