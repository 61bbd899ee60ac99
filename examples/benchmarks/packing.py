"""Times training on packed rows and on padded batches of the same short and long conversations.

python examples/benchmarks/packing.py
python examples/benchmarks/packing.py --model runs/mine --batch_size 32

Each conversation has one to six turns of dps-nano's tasks, with text, pictures and drawings. Tokens are those of the
conversations; padding is not counted. The two ways take turns, and each figure is the median over the turns.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import HfArgumentParser

from dps_hf import NANO
from dps_hf.data.mixture import Mixture
from dps_hf.data.record import Record
from dps_hf.inference import load
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import PackingCollator
from dps_hf.training.trained_parts import freeze_parts


TASKS = {"facts": 3, "emoji_i2t": 1, "emoji_t2i": 1, "scenes_cot": 1}
MAX_TURNS = 6


@dataclass
class ScriptArguments:
    """
    batch_size: number of conversations in a batch.
    steps: number of batches in a turn.
    repeats: number of turns, after one to warm up.
    """

    model: str = NANO
    output: Path = Path("outputs/packing.json")
    batch_size: int = 16
    steps: int = 4
    repeats: int = 5


def make_conversations(count: int) -> list[Record]:
    """Joins records to conversations, half of them of one turn."""
    records = Mixture({f"dps_hf.nano.tasks.{task}": weight for task, weight in TASKS.items()}).stream()
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        turns = [next(records) for _ in range(int(rng.choice([1, rng.integers(2, MAX_TURNS + 1)])))]
        messages = [message for one in turns for message in one["messages"]]
        made.append(Record(messages=messages, images=[image for one in turns for image in one["images"]], task="chat"))
    return made


def main(script: ScriptArguments) -> None:
    model, processor = load(script.model, dtype=torch.float32)
    freeze_parts(model.train(), vision_tower=True)
    records = make_conversations(script.steps * script.batch_size)
    batches = [records[i : i + script.batch_size] for i in range(0, len(records), script.batch_size)]
    pad, pack = RecordCollator(model, processor), PackingCollator(model, processor)
    lengths = [int(row.sum()) for batch in batches for row in pad(batch)["attention_mask"]]

    def move(batch: dict) -> dict:
        return {name: value.to(model.device) for name, value in batch.items()}

    ways: dict[str, Callable[[list], torch.Tensor]] = {
        "padded": lambda batch: model(**move(pad(batch))).loss,
        "packed": lambda batch: packed_loss(model, model, move(pack(batch)), codes_alone=False),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(script.repeats + 1):
        for way, compute in ways.items():
            start = time.perf_counter()
            for batch in batches:
                compute(batch).backward()
                model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[way].append(time.perf_counter() - start)
    report = {
        "torch": torch.__version__,
        "device": str(model.device),
        "tokens_of_a_conversation": {"median": statistics.median(lengths), "max": max(lengths)},
        "tokens_per_second": {way: sum(lengths) / statistics.median(taken) for way, taken in seconds.items()},
    }
    print(json.dumps(report, indent=2))
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
