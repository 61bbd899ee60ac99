"""Exact comparisons of answers and of pictures."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image


def name_match(answer: str, names: str | Iterable[str]) -> bool:
    """Whether the answer is one of the names, apart from capitals, punctuation and a leading article."""
    names = [names] if isinstance(names, str) else names
    return _plain(answer) in {_plain(name) for name in names}


def _plain(text: str) -> str:
    # `\w` leaves out combining marks, Hindi's vowels among them: hence a list of what goes, not of what stays. "#" and
    # "*" are not in it: they are all that tells the one key from the other.
    words = re.sub(r"[!\"$-)+-/:-@\[-`{-~‘’“”„«»¿¡…–—。、！？،؟।]+", " ", text.casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


def normalize_answer(text: str) -> str:
    """Normalises an answer like the scripts of SQuAD and VQA.

    Capitals, punctuation and English articles go, and English numbers become digits.
    """
    words = _plain(text.replace("'", "")).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def compute_psnr(a: Image.Image | np.ndarray, b: Image.Image | np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures of one shape, in dB; infinite when they are equal."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same shape; got {x.shape} and {y.shape}. Resize one of them.")
    error = np.square(x - y).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def pool(images: Sequence[Image.Image] | np.ndarray, side: int = 16) -> np.ndarray:
    """RGB pictures averaged down to `side` x `side`: `(images, side * side * 3)` float32 in [0, 1].

    Raises:
        ValueError: if height or width is no multiple of `side`.
    """
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    n, height, width, channels = array.shape
    if height % side or width % side:
        raise ValueError(f"height and width must be multiples of {side}; got {height} and {width}. Resize first.")
    return array.reshape(n, side, height // side, side, width // side, channels).mean((2, 4)).reshape(n, -1)


def find_right_neighbours(
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
    nearest = compute_squared_distances(pool(drawings), pool(candidates)).argmin(1)
    return [int(found) == wanted for found, wanted in zip(nearest, right, strict=True)]


def compute_squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between every row of `a` and every row of `b`: `(len(a), len(b))`."""
    return np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
