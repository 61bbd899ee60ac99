"""What is excluded from training, by fixed rules.

Combinations of colour and shape, counts, and styles of emoji are excluded here. `scenes.is_held_out` excludes scenes
and `scenes_t2i.is_held_out_wish` excludes prompts, both by `is_one_in`. The last template of each language in
`wording` is excluded as well.
"""

import hashlib
from collections.abc import Collection


SPLITS = ("train", "validation")
UNSEEN = ("pair", "count")
"""What validation may contain and training does not: combinations of colour and shape, or of number and shape."""


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is "train" or "validation"."""
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'validation'; got {split!r}.")


def check_unseen(unseen: str | None, split: str) -> None:
    """Raises ValueError unless `unseen` is None, or is one of `UNSEEN` and the split is "validation"."""
    if unseen not in (None, *UNSEEN) or (unseen and split == "train"):
        raise ValueError(f"unseen must be None, or 'pair' or 'count' in validation; got {unseen!r} in {split}.")


def is_one_in(n: int, text: str) -> bool:
    """True for about one in `n` texts, always the same ones, by their hash."""
    return hashlib.blake2b(text.encode()).digest()[0] * n < 256


def compute_digest(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


UNSEEN_PAIRS = frozenset({("purple", "cross"), ("orange", "square"), ("green", "star"), ("pink", "triangle")})
"""Combinations that training does not contain. Training contains each of the colours and shapes in other ones."""

UNSEEN_COUNTS = frozenset({(2, "diamond"), (4, "diamond")})
"""Number and shape: no training picture contains exactly this number of the shape."""


def choose_held_out_style(codepoints: str, styles: Collection[str]) -> str | None:
    """The style of an emoji that is excluded from training, or None.

    It is at most one style, and only of emoji with three or more. Training then contains the emoji in two other styles
    and the style with other emoji. About 8 % of all pairs are excluded.
    """
    if len(styles) < 3:
        return None
    share = 0.083 * len(styles)
    if compute_digest(codepoints) % 10_000 >= share * 10_000:
        return None
    return min(styles, key=lambda style: compute_digest(f"{codepoints} {style}"))
