"""`push_to_hub: true` in a recipe: what loading needs is pushed during the training, and no path of this machine."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard

from dps_hf.inference import load


ROOT = Path(__file__).parents[2]
FIELDS = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "evaluation_share": 0.2,
    "load_best_model_at_end": True,
    "push_to_hub": True,
    "report_to": "tensorboard",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def push_while_training(server: HubServer, script: str, folder: Path, model: str, **fields) -> list[dict]:
    """Trains with `push_to_hub`; returns the files of each commit."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    rows = [{"messages": chat}] * 29 + [{"messages": []}]  # the last is bad
    (folder / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = "model" if script == "train.py" else "model_name_or_path"
    recipe = {**FIELDS, name: model, "dataset": str(folder / "words.jsonl"), "output_dir": str(folder / "run")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "hub_model_id": "me/tuned", **fields}))
    command = [sys.executable, str(ROOT / "examples" / script), "--config", str(folder / "recipe.yaml")]
    hub = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "CI": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | hub)
    assert result.returncode == 0, result.stderr[-5000:]
    assert "is not pushed" not in result.stdout, result.stdout
    return server.commits["models", "me/tuned"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, fields",
    [
        ("train.py", {}),
        ("train.py", {"hub_strategy": "checkpoint"}),
        ("sft.py", {"hub_strategy": "end"}),
        ("sft.py", {"hub_strategy": "all_checkpoints", "use_peft": True, "lora_r": 2}),
    ],
)
def test_a_training_pushes_its_model_and_no_path_of_this_machine(script, fields, saved_model, tmp_path):
    with HubServer() as server:
        commits = push_while_training(server, script, tmp_path, saved_model, **fields)
    strategy = fields.get("hub_strategy", "every_save")
    assert (tmp_path / "run" / "skipped.jsonl").exists() and (tmp_path / "run" / "settings.json").exists()
    places = [str(place).encode() for place in (tmp_path, saved_model, ROOT)]
    for commit in commits:
        for name, content in commit.items():
            assert not any(place in content for place in places), name
    files = {name: content for name, content in commits[-1].items()}
    weights = "adapter_model.safetensors" if fields.get("use_peft") else "model.safetensors"
    assert {weights, "README.md", "processor_config.json"} <= {*files}
    assert not {"settings.json", "skipped.jsonl", "training_args.bin"} & {Path(name).name for name in files}
    pushed = sum(commit.get(weights) != before.get(weights) for before, commit in pairwise(commits))
    assert pushed == (1 if strategy == "end" else 2)  # the last is the same as that of step 4, or as the best
    folders = {name.partition("/")[0] for name in files if "/" in name}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4"}}
    assert folders == expected.get(strategy, set())
    for folder in folders:
        assert {f"{folder}/optimizer.pt", f"{folder}/trainer_state.json", f"{folder}/{weights}"} <= {*files}
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model is None
    if not fields.get("use_peft"):
        for name, content in files.items():
            if "/" not in name:
                (tmp_path / "pushed").mkdir(exist_ok=True)
                (tmp_path / "pushed" / name).write_bytes(content)
        load(tmp_path / "pushed", device="cpu")
