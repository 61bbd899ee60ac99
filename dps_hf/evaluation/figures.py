"""Figures with their 95 % confidence intervals."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypedDict

import numpy as np


class Figure(TypedDict):
    """A measured value, the number of items it comes from, and the limits of its 95 % confidence interval."""

    value: float
    n: int
    ci95: list[float]


def share(right: Iterable[bool], groups: Sequence[Hashable] | None = None) -> Figure:
    """The share of items that are right, with Wilson's interval.

    Args:
        groups: the group of each item. The interval is wider where items of one group tend to be right or wrong
            together.
    """
    marks = [bool(mark) for mark in right]
    value, items = sum(marks) / len(marks), count_effective_items(marks, groups) if groups else len(marks)
    return _figure(value, len(marks), compute_wilson_interval(value * items, items))


def mean(values: Iterable[float]) -> Figure:
    """The mean, with the interval of the normal distribution."""
    array = np.array(list(values), dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return _figure(array.mean(), len(array), (array.mean() - half, array.mean() + half))


def mean_of_runs(values: Sequence[float]) -> Figure:
    """The mean over a few runs of one training, with the interval of Student's t distribution.

    Raises:
        ValueError: fewer than two runs, which have no interval.
    """
    if len(values) < 2:
        raise ValueError(f"values must be of 2 runs or more, or there is no interval; got {len(values)}.")
    # Imported here: of all figures only this one needs scipy, which comes with the `train` extra.
    from scipy.stats import t

    array = np.array(values, dtype=np.float64)
    half = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return _figure(array.mean(), len(array), (array.mean() - half, array.mean() + half))


def _figure(value: float, n: int, interval: tuple[float, float]) -> Figure:
    return {"value": round(float(value), 4), "n": n, "ci95": [round(float(limit), 4) for limit in interval]}


def compute_wilson_interval(successes: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share of successes, with 95 % confidence at `z=1.96`.

    Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953. Unlike the normal interval, it stays within [0, 1],
    and it is accurate for small `n` and for shares near 0 and 1. `scipy.stats.binomtest` has the same interval for
    whole numbers only; neither number is whole when it comes from [`count_effective_items`].

    Raises:
        ValueError: unless `0 <= successes <= n` and `n > 0`.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be between 0 and n, and n above 0; got {successes} and {n}.")
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def count_effective_items(marks: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """The number of independent items that say as much as these, whose groups tend to be right or wrong together.

    It is `len(marks)` divided by Kish's design effect: the variance of the mean with the errors of each group added
    up, over the variance of the mean of as many independent items (Korn and Graubard 1998, "Confidence Intervals for
    Proportions"). It is never more than `len(marks)`. If all marks are equal, it is `len(marks)`, because they say
    nothing about groups.
    """
    array, n = np.array(marks, dtype=np.float64), len(marks)
    members = defaultdict(list)
    for group, error in zip(groups, array - array.mean(), strict=True):
        members[group].append(error)
    alone = array.mean() * (1 - array.mean()) / n
    if alone == 0 or len(members) < 2:
        return float(n)
    together = len(members) / (len(members) - 1) * sum(sum(errors) ** 2 for errors in members.values()) / n**2
    return n * min(1.0, alone / together) if together else float(n)
