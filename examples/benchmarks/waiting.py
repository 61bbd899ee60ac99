"""Measures how much of a training step two processes wait for each other's gradients.

python examples/benchmarks/waiting.py
python examples/benchmarks/waiting.py --layers 30 --batch_size 8

The processes are DDP over gloo on this machine, with one thread each, and train on packed rows of their own records. A
step with the exchange of gradients takes turns with one without it. The report has the share of a step that is the
exchange, and how much faster than one process alone the two are, which also share the memory of the machine.
"""

import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from comparison import write_report
from training import make_dps, make_records
from transformers import HfArgumentParser

from dps_hf.command_line import run_script
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import PackingCollator


@dataclass
class ScriptArguments:
    """
    layers: of a decoder of SmolLM2-135M's width.
    batch_size: conversations in a step of each process.
    """

    output: Path = Path("outputs/benchmarks/waiting.json")
    rounds: int = 3
    layers: int = 4
    batch_size: int = 8


def measure(rank: int, script: ScriptArguments) -> None:
    torch.set_num_threads(1)
    places = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29533", "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= places
    torch.distributed.init_process_group("gloo")
    model, processor = make_dps(script.layers)
    collate = PackingCollator(model, processor)
    batch = collate(make_records(script.batch_size))  # the same in both, so that neither has more to do
    parallel = torch.nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)

    def step(exchanges: bool) -> float:
        torch.distributed.barrier()
        start = time.perf_counter()
        with nullcontext() if exchanges else parallel.no_sync():
            packed_loss(parallel, model, batch).backward()
        taken = time.perf_counter() - start
        model.zero_grad()
        return taken

    ways: dict[str, list[float]] = {"together": [], "without": [], "alone": []}
    for turn in range(script.rounds + 1):
        for way, times in ways.items():
            if way != "alone":
                taken = step(way == "together")
            else:
                torch.distributed.barrier()
                if rank == 0:
                    start = time.perf_counter()
                    packed_loss(model, model, batch).backward()
                    taken = time.perf_counter() - start
                    model.zero_grad()
                torch.distributed.barrier()
            times += [taken] if turn else []
    if rank == 0:
        together, without, alone = (statistics.median(times) for times in ways.values())
        share, faster = 1 - without / together, 2 * alone / together
        print(f"{share:.0%} of a step is the exchange of gradients; two processes are {faster:.2f} times one.")
        facts = {"share_of_waiting": share, "two_processes_over_one": faster, "layers": script.layers}
        write_report(script.output, [], batch_size=script.batch_size, **facts)
    torch.distributed.destroy_process_group()


def main(script: ScriptArguments) -> None:
    torch.multiprocessing.start_processes(measure, (script,), nprocs=2, start_method="spawn")


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
