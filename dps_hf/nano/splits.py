"""What training never sees, decided by rule and for ever.

Pairs of colour and shape, counts, and styles of emoji are listed here. By `one_in`, a scene is kept out by
`scenes.held_out`, and what is asked to be drawn by `scenes_t2i.held_out_wish`. Of the ways of asking in `wording`, the
last of each language is.
"""

import hashlib
from collections.abc import Collection


SPLITS = ("train", "validation")
UNSEEN = ("pair", "count")
"""What may meet in validation and never in training: a colour and a shape, or a number and a shape."""


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is "train" or "validation"."""
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'validation'; got {split!r}.")


def check_unseen(unseen: str | None, split: str) -> None:
    """Raises ValueError unless `unseen` is None, or in "validation" one of `UNSEEN`."""
    if unseen not in (None, *UNSEEN) or (unseen and split == "train"):
        raise ValueError(f"unseen must be None, or 'pair' or 'count' in validation; got {unseen!r} in {split}.")


def one_in(n: int, text: str) -> bool:
    """True for about one text in `n`, always the same ones."""
    return hashlib.blake2b(text.encode()).digest()[0] * n < 256


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


UNSEEN_PAIRS = frozenset({("purple", "cross"), ("orange", "square"), ("green", "star"), ("pink", "triangle")})
"""Colours and shapes that never meet in training; each of them is seen with all others."""

UNSEEN_COUNTS = frozenset({(2, "diamond"), (4, "diamond")})
"""So many things of a shape never stand in one training picture."""


def held_out_style(codepoints: str, styles: Collection[str]) -> str | None:
    """Which of an emoji's styles is kept out of training, if any.

    At most one, and only where three or more exist: the model has then seen the emoji in two other styles, and the
    style on other emoji. About 8 % of all pairs.
    """
    if len(styles) < 3:
        return None
    share = 0.083 * len(styles)
    if digest(codepoints) % 10_000 >= share * 10_000:
        return None
    return min(styles, key=lambda style: digest(f"{codepoints} {style}"))
