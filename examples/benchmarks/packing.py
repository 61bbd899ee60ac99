"""Compares training on packed rows with training on padded batches of the same short and long conversations.

python examples/benchmarks/packing.py
python examples/benchmarks/packing.py --model runs/mine --batch_size 32

Each conversation has one to six turns of dps-nano's tasks, with text, pictures and drawings. Tokens are those of the
conversations; padding is not counted, so the ratio of the seconds is that of the tokens per second.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from comparison import compare, write_report
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
    """

    model: str = NANO
    output: Path = Path("outputs/benchmarks/packing.json")
    rounds: int = 5
    batch_size: int = 16
    steps: int = 4


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

    def run(compute: Callable[[list], torch.Tensor]) -> None:
        for batch in batches:
            compute(batch).backward()
            model.zero_grad()

    packed = compare(
        "training on packed rows",
        lambda: run(lambda batch: packed_loss(model, model, move(pack(batch)))),
        lambda: run(lambda batch: model(**move(pad(batch))).loss),
        script.rounds,
        peer_name="padded batches",
    )
    lengths_of = {"median": statistics.median(lengths), "max": max(lengths)}
    write_report(script.output, [packed], tokens_of_a_conversation=lengths_of)


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
