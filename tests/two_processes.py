"""Runs a function, or a script, in two processes without GPUs that know each other."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch


ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 60  # of a collective that one process waits in alone


def run_on_two(function: Callable, folder: Path, *arguments) -> list:
    """What `function(rank, *arguments)` returns in each process, which need not import torch anew.

    Args:
        folder: for the files by which the processes find each other and return their results.

    Raises:
        AssertionError: a process failed, with what it said.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["dps_hf.model.modeling_dps"])
    processes = [server.Process(target=_run, args=(rank, function, folder, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = [torch.load(folder / f"result-{rank}", weights_only=False) for rank in (0, 1)]
    assert not any(process.exitcode for process in processes), "\n".join(map(str, results))
    return results


def _run(rank: int, function: Callable, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/processes",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        result = function(rank, *arguments)
    except BaseException:
        torch.save(traceback.format_exc(), folder / f"result-{rank}")
        raise
    torch.save(result, folder / f"result-{rank}")
    torch.distributed.destroy_process_group()


def launch(kind: str, script: str, *arguments: str) -> list[str]:
    """The command by which `accelerate` runs a script with `use_cpu`; `kind` is "ddp" or "fsdp2"."""
    config = ["--config_file", str(ROOT / f"examples/recipes/accelerate/{kind}.yaml"), "--main_process_port", "0"]
    wrapper = [str(ROOT / "tests/examples/fsdp_on_cpu.py")] if kind == "fsdp2" else []
    return [sys.executable, "-m", "accelerate.commands.launch", *config, *wrapper, script, *arguments]
