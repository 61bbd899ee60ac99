"""Measures the peak memory of LoRA tuning on weights of 32, 16, 8 and 4 bits, each in a separate process.

python examples/benchmarks/tuning_memory.py

The model has the tokenizers and the vision tower of dps-nano, and a random decoder of the size of SmolLM2-360M. It is
tuned by `examples/sft.py`. Peak memory is the maximum resident set size of the process, which includes Python, the
libraries and the mapped pages of the weights.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HfArgumentParser, LlamaConfig

from dps_hf import from_components
from dps_hf.command_line import run_script
from dps_hf.inference import load


SIZES = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
SIZES |= {"num_attention_heads": 15, "num_key_value_heads": 5}
WAYS = {
    "nothing loaded": None,
    "LoRA, 32 bits": ["--dtype", "float32"],
    "LoRA, 16 bits": ["--dtype", "bfloat16"],
    "QLoRA, 8 bits": ["--load_in_8bit", "--dtype", "bfloat16"],
    "QLoRA, 4 bits": ["--load_in_4bit", "--dtype", "bfloat16"],
}


@dataclass
class ScriptArguments:
    output: Path = Path("outputs/tuning_memory.json")
    batch_size: int = 4
    steps: int = 2


def save_model(folder: Path) -> int:
    """Saves a DPS with a random decoder and returns its number of parameters."""
    nano, processor = load()
    for name in ("vision_tower", "image_tokenizer"):
        getattr(nano.model, name).save_pretrained(folder / name)
    processor.tokenizer.save_pretrained(folder / "tokenizer")
    model, processor = from_components(
        text=LlamaConfig(**SIZES, vocab_size=nano.config.vocab_size, tie_word_embeddings=True),
        vision=str(folder / "vision_tower"),
        image_tokenizer=str(folder / "image_tokenizer"),
        tokenizer=str(folder / "tokenizer"),
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # the type in which most models are published
    processor.save_pretrained(folder)
    return model.num_parameters()


def measure_peak(command: list[str]) -> int:
    """Runs a command and returns the peak memory of its process in MiB.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return used.ru_maxrss // 1024


def main(script: ScriptArguments) -> None:
    sft = str(Path(__file__).parents[1] / "sft.py")
    with tempfile.TemporaryDirectory() as folder:
        # In a separate process, because children of this process would count its peak memory as theirs.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            parameters = pool.apply(save_model, (Path(folder),))
        report = {"parameters": parameters, "torch": torch.__version__, "peak_mib": {}}
        fields = ["--model_name_or_path", folder, "--output_dir", f"{folder}/out", "--max_steps", str(script.steps)]
        fields += ["--per_device_train_batch_size", str(script.batch_size), "--gradient_accumulation_steps", "1"]
        fields += ["--eval_strategy", "no", "--save_strategy", "no", "--use_peft", "--use_cpu", "--bf16", "false"]
        recipe = str(Path(sft).parent / "recipes/nano/sft.yaml")
        for way, options in WAYS.items():
            command = [sys.executable, sft, "--config", recipe, *fields, *(options or [])]
            report["peak_mib"][way] = measure_peak([*command[:2], "--help"] if options is None else command)
            print(f"{way:16}{report['peak_mib'][way]:8} MiB", flush=True)
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
