"""Pages of pictures with words below them, drawn with Pillow alone."""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


SIDE = 128  # pixels of a picture on the page
MARGIN = 12
LINE = 17  # pixels from one line of text to the next
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
    """All sections on one picture, `width` pixels wide.

    Pillow's own font has only Latin letters without accents: accents are left out, and so are lines in other scripts.
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
    """The text without accents; empty if Pillow's own font cannot write the rest."""
    decomposed = unicodedata.normalize("NFKD", text.translate(LETTERS))
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare if bare.isascii() else ""


def find_writable(lines: Iterable[str], count: int) -> list[str]:
    """The first `count` of the lines that a page can write."""
    return [line for line in lines if strip_accents(line)][:count]


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most about `width` pixels; words that are longer are cut."""
    letters = len(text) * width / max(1, font.getlength(text))
    return textwrap.wrap(text, max(1, int(0.97 * letters)))
