"""Compares two functions by their time, in turns, and writes the ratios down.

The scripts of this folder share it. Other load on the machine affects both functions alike, because they take turns;
therefore the ratio is the figure, and not the seconds.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers


@dataclass
class Comparison:
    """
    The ratio of two times. Above 1, ours is faster.

    name: what was done, e.g. "drawing, guided, batch 1".
    peer: what ours is compared with, e.g. "Janus".
    ratio: median over the rounds of the peer's time divided by ours.
    low, high: the smallest and the largest ratio of the rounds.
    goal: the ratio that is aimed for, if any.
    ours_seconds, peer_seconds: median times on this machine.
    """

    name: str
    peer: str
    ratio: float
    low: float
    high: float
    goal: float | None
    ours_seconds: float
    peer_seconds: float


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    rounds: int = 5,
    goal: float | None = None,
    peer_name: str = "peer",
) -> Comparison:
    """Calls both functions once to warm up, then in turns (ours, peer; peer, ours; ...), and prints the ratio."""
    ours(), peer()
    pairs = []
    for turn in range(rounds):
        first, second = (ours, peer) if turn % 2 == 0 else (peer, ours)
        times = (measure(first), measure(second))
        pairs.append(times if turn % 2 == 0 else times[::-1])
    ratios = [theirs / own for own, theirs in pairs]
    comparison = Comparison(
        name=name,
        peer=peer_name,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        goal=goal,
        ours_seconds=statistics.median(own for own, _ in pairs),
        peer_seconds=statistics.median(theirs for _, theirs in pairs),
    )
    aim = "" if goal is None else f", goal {goal:.2f}"
    spread = f"({comparison.low:.2f} to {comparison.high:.2f}{aim})"
    print(f"{name}, against {peer_name}: {comparison.ratio:.2f} {spread}", flush=True)
    return comparison


def measure(run: Callable[[], object]) -> float:
    """The seconds that a function takes, with what it has left to an accelerator."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_report(path: Path, comparisons: Sequence[Comparison], **facts: object) -> None:
    """Writes the comparisons, the machine and the versions as JSON. `facts` are further fields of the report."""
    report = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **facts,
        "comparisons": [asdict(one) for one in comparisons],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"The report is {path}.")
