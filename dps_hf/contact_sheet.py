"""Draws pages of pictures with captions, with Pillow as the only dependency."""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


SIDE = 128  # largest side of a picture on the page, in pixels
MARGIN = 12
LINE = 17  # line height of text, in pixels
LETTERS = str.maketrans(
    {"œ": "oe", "Œ": "OE", "ß": "ss", "æ": "ae", "’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"}
)


@dataclass(frozen=True)
class Item:
    """Pictures side by side, and the lines of text below them."""

    pictures: Sequence[Image.Image]
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """Items in rows of `columns`, below a title."""

    title: str
    items: Sequence[Item]
    columns: int = 6


def draw_page(sections: Sequence[Section], width: int = 1120) -> Image.Image:
    """Draws all sections on one picture that is `width` pixels wide.

    Pillow's default font has only Latin letters without accents. Accents and lines in other scripts are left out.
    """
    rows = []
    for section in sections:
        rows.append(_title(section.title, width))
        for start in range(0, len(section.items), section.columns):
            rows.append(_row(section.items[start : start + section.columns], section.columns, width))
    sheet = Image.new("RGB", (width, sum(row.height for row in rows) + MARGIN), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return sheet


def _title(text: str, width: int) -> Image.Image:
    row = Image.new("RGB", (width, 52), "white")
    ImageDraw.Draw(row).text((MARGIN, 16), text, fill="black", font=ImageFont.load_default(22))
    return row


def _row(items: Sequence[Item], columns: int, width: int) -> Image.Image:
    font, cell = ImageFont.load_default(13), (width - MARGIN) // columns
    texts = [
        [part for line in item.lines for part in _wrap(strip_accents(line), cell - MARGIN, font)] for item in items
    ]
    row = Image.new("RGB", (width, SIDE + 4 + LINE * max(map(len, texts)) + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(row)
    for column, (item, text) in enumerate(zip(items, texts)):
        left = MARGIN + column * cell
        side = min(SIDE, (cell - MARGIN) // max(1, len(item.pictures)))
        for i, picture in enumerate(item.pictures):
            x = left + i * side
            row.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, 0))
            draw.rectangle((x, 0, x + side - 1, side - 1), outline="lightgrey")
        for i, line in enumerate(text):
            draw.text((left, SIDE + 6 + LINE * i), line, fill="black", font=font)
    return row


def strip_accents(text: str) -> str:
    """Removes accents and ligatures. Returns an empty string if other letters than Latin ones remain."""
    decomposed = unicodedata.normalize("NFKD", text.translate(LETTERS))
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare if bare.isascii() else ""


def find_writable(lines: Iterable[str], count: int) -> list[str]:
    """The first `count` lines that Pillow's default font can show."""
    return [line for line in lines if strip_accents(line)][:count]


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Splits text into lines of about `width` pixels at most. Longer words are cut."""
    letters = len(text) * width / max(1, font.getlength(text))
    return textwrap.wrap(text, max(1, int(0.97 * letters)))
