"""Figures that say how sure they are and cannot be argued with."""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image


def wilson_interval(successes: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share of successes, with 95 % confidence at `z=1.96`.

    Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953. Unlike the textbook's, it stays within [0, 1] and is
    right for small `n` and for shares near 0 and 1. Neither need be whole: `effective_items` are not.

    Raises:
        ValueError: unless `0 <= successes <= n` and `n > 0`.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be between 0 and n, and n above 0; got {successes} and {n}.")
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_items(marks: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """How many independent items say as much as these, of which those of one group tend to be right or wrong together.

    Their number through Kish's design effect: the variance of their mean, with each group's errors added up, over that of
    as many independent ones (Korn and Graubard 1998, "Confidence Intervals for Proportions"). It is never more than
    `len(marks)`, and that where all are alike, which tells nothing of groups.
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


def name_match(answer: str, names: str | Iterable[str]) -> bool:
    """Whether the answer is one of the names, apart from capitals, punctuation and a leading article."""
    names = [names] if isinstance(names, str) else names
    return _plain(answer) in {_plain(name) for name in names}


def _plain(text: str) -> str:
    # `\w` leaves out combining marks, Hindi's vowels among them: hence a list of what goes, not of what stays. "#" and "*"
    # are not in it: they are all that tells the one key from the other.
    words = re.sub(r"[!\"$-)+-/:-@\[-`{-~‘’“”„«»¿¡…–—。、！？،؟।]+", " ", text.casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def psnr(a: Image.Image | np.ndarray, b: Image.Image | np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures of one shape, in dB; infinite when they are equal."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same shape; got {x.shape} and {y.shape}. Resize one of them.")
    error = np.square(x - y).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def pooled(images: Sequence[Image.Image] | np.ndarray, side: int = 16) -> np.ndarray:
    """RGB pictures averaged down to `side` x `side`: `(images, side * side * 3)` float32 in [0, 1].

    Raises:
        ValueError: if height or width is no multiple of `side`.
    """
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    n, height, width, channels = array.shape
    if height % side or width % side:
        raise ValueError(f"height and width must be multiples of {side}; got {height} and {width}. Resize first.")
    return array.reshape(n, side, height // side, side, width // side, channels).mean((2, 4)).reshape(n, -1)


def nearest_neighbours_right(
    drawings: Sequence[Image.Image] | np.ndarray,
    candidates: Sequence[Image.Image] | np.ndarray,
    right: Sequence[int],
) -> list[bool]:
    """For each drawing, whether the candidate most like it is the right one.

    Args:
        drawings: `(n, height, width, 3)` uint8, or pictures.
        candidates: usually 50 emoji of one style, the drawn ones among them.
        right: for each drawing, the index of the candidate it should be.

    Likeness is the squared distance of the pictures averaged down to 16x16 RGB. Guessing is right once in
    `len(candidates)`.
    """
    if len(drawings) != len(right):
        raise ValueError(f"right must have one index per drawing; got {len(right)} for {len(drawings)} drawings.")
    nearest = squared_distances(pooled(drawings), pooled(candidates)).argmin(1)
    return [int(found) == wanted for found, wanted in zip(nearest, right, strict=True)]


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between every row of `a` and every row of `b`: `(len(a), len(b))`."""
    return np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
