"""A weighted mixture of tasks, whose records are made when they are requested."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TypeAlias

import numpy as np

from dps_hf.data.guidance import Schedule, guide
from dps_hf.data.record import Record
from dps_hf.resolve import resolve


Task: TypeAlias = Callable[[np.random.Generator, str], Record]
"""Makes a random record of a split, "train" or "validation"."""


def name_of(task: str) -> str:
    """The name of a task in figures and schedules, which is the last part of its dotted path."""
    return task.rpartition(".")[2]


class Mixture:
    """A map-style dataset whose i-th record depends on `(seed, i)` alone, or also on `length` if guidance changes.

    Training can therefore resume at any record.

    Args:
        weights: task to weight; weights need not sum to 1. A task is the dotted path of a [`Task`], such as
            `my_package.my_task`.
        seed: different seeds give different sequences.
        length: the number of records for `len()` and for indexing. `stream` has no end.
        split: "train" or "validation".
        guidance: name of a task to its schedule of guidance, from index 0 to `length`. By default 2 of 3 records have
            steps.
        block: number of consecutive records of the same task, so that a batch of `block` records has similar lengths.
        num_records: number of different records. They repeat, but their guidance may change. By default none repeats.

    Raises:
        ValueError: a task is unknown, two tasks have the same name, a weight is negative, no weight is positive,
            `block`, `length` or `num_records` is below 1, or the split is unknown.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        seed: int = 0,
        length: int = 1_000_000,
        split: str = "train",
        block: int = 1,
        guidance: Mapping[str, Schedule] | None = None,
        num_records: int | None = None,
    ) -> None:
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"weights must give each task a number, such as {{'my_package.my_task': 1}}; got {weights!r}."
            )
        for task, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights[{task!r}] must be 0 or more and finite; got {weight}.")
        if not any(weights.values()):
            raise ValueError(f"weights must give at least one task a weight above 0; got {dict(weights)}.")
        names = [name_of(task) for task in weights]
        if len({*names}) < len(names):
            raise ValueError(f"weights must name tasks with different names; got {', '.join(weights)}. Rename one.")
        if idle := sorted(set(guidance or {}) - {*names}):
            raise ValueError(
                f"guidance names {', '.join(idle)}, which weights do not contain. Remove it, or add a weight."
            )
        for name, number in (("block", block), ("length", length), ("num_records", num_records)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1; got {number}.")
        if split not in ("train", "validation"):
            raise ValueError(f"split must be 'train' or 'validation'; got {split!r}.")
        self.tasks: dict[str, Task] = {name_of(task): resolve(task, "weights") for task in weights}
        self._guidance = {name: (guidance or {}).get(name) or Schedule() for name in names}
        self.weights, self.seed, self.length, self.split, self.block = dict(weights), seed, length, split, block
        self.num_records = num_records
        self._drawn = [name_of(task) for task, weight in weights.items() if weight]
        shares = np.cumsum([weight for weight in weights.values() if weight])
        self._bounds = shares / shares[-1]

    def __len__(self) -> int:
        return self.length

    def task(self, index: int) -> str:
        """The name of the task that the record at `index` belongs to."""
        # A third number in the seed, because this draw must be independent of those that make the record.
        draw = np.random.default_rng([self.seed, self._which(index) // self.block, 0x7A5C]).random()
        return self._drawn[int(np.searchsorted(self._bounds, draw, side="right"))]

    def _which(self, index: int) -> int:
        return index % self.num_records if self.num_records else index

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in [0, {self.length}); got {index}.")
        return self._at(index)

    def _at(self, index: int) -> Record:
        rng = np.random.default_rng([self.seed, self._which(index)])
        task = self.task(index)
        record = self.tasks[task](rng, self.split)
        return guide(record, self._guidance[task].level(rng, index / self.length))

    def stream(self, start: int = 0) -> Iterator[Record]:
        """Yields the records `start`, `start + 1`, ... without end."""
        return map(self._at, count(start))


class ShuffledWords:
    """The records of a mixture of drawings, each with the prompt of the next record.

    A model that uses the prompt has a higher loss on these records than on the mixture itself.
    """

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Record:
        record, other = self.mixture[index], self.mixture[(index + 1) % len(self)]
        return {**record, "messages": [*other["messages"][:-1], record["messages"][-1]]}
