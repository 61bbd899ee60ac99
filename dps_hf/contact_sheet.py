"""Draws pages of pictures with captions, in the scripts for which this machine has a font."""

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SIDE = 128  # largest side of a picture on the page, in pixels
MARGIN = 12
LINE = 17  # line height of text, in pixels
MARKS = {True: ("right", "green"), False: ("wrong", "red")}
LETTERS = str.maketrans(
    {"œ": "oe", "Œ": "OE", "ß": "ss", "æ": "ae", "’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"}
)


@dataclass(frozen=True)
class Item:
    """Pictures side by side, and the lines of text below them.

    right: whether the last picture is what was asked for, which its frame and a line below it then say.
    """

    pictures: Sequence[Image.Image]
    lines: Sequence[str]
    right: bool | None = None


@dataclass(frozen=True)
class Section:
    """Items in rows of `columns`, below a title."""

    title: str
    items: Sequence[Item]
    columns: int = 6


def draw_page(sections: Sequence[Section], width: int = 1120) -> Image.Image:
    """Draws all sections on one picture that is `width` pixels wide.

    With matplotlib, a line is drawn in a font that comes with matplotlib (Latin, Greek, Cyrillic and Arabic letters)
    or in one that is installed on this machine. If no font has all letters of a line, its accents are left out, and a
    line in another script is left out as a whole.
    """
    rows = []
    for section in sections:
        rows.append(_draw_title(section.title, width))
        for start in range(0, len(section.items), section.columns):
            rows.append(_draw_row(section.items[start : start + section.columns], section.columns, width))
    sheet = Image.new("RGB", (width, sum(row.height for row in rows) + MARGIN), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return sheet


def _draw_title(text: str, width: int) -> Image.Image:
    row = Image.new("RGB", (width, 52), "white")
    text, font = _choose_font(text, 20)
    ImageDraw.Draw(row).text((MARGIN, 16), text, fill="black", font=font)
    return row


def _draw_row(items: Sequence[Item], columns: int, width: int) -> Image.Image:
    cell = (width - MARGIN) // columns
    texts = [[part for line in item.lines for part in _wrap(line, cell - MARGIN)] for item in items]
    count = max(len(text) + (item.right is not None) for item, text in zip(items, texts))
    row = Image.new("RGB", (width, SIDE + 4 + LINE * count + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(row)
    for column, (item, text) in enumerate(zip(items, texts)):
        left = MARGIN + column * cell
        side = min(SIDE, (cell - MARGIN) // max(1, len(item.pictures)))
        for i, picture in enumerate(item.pictures):
            x = left + i * side
            row.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, 0))
            draw.rectangle((x, 0, x + side - 1, side - 1), outline="lightgrey")
        if item.right is not None:
            mark, colour = MARKS[item.right]
            draw.rectangle((x, 0, x + side - 1, side - 1), outline=colour, width=3)
            text = [*text, (mark, ImageFont.load_default(13))]
        for i, (line, font) in enumerate(text):
            draw.text((left, SIDE + 6 + LINE * i), line, fill="black", font=font)
    return row


def strip_accents(text: str) -> str:
    """Removes accents and ligatures. Returns an empty string if other letters than Latin ones remain."""
    decomposed = unicodedata.normalize("NFKD", text.translate(LETTERS))
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare if bare.isascii() else ""


def find_writable(lines: Iterable[str], count: int) -> list[str]:
    """Returns the first `count` lines in Latin letters, which every machine can show."""
    return [line for line in lines if strip_accents(line)][:count]


def _wrap(text: str, width: int) -> list[tuple[str, Font]]:
    """Splits text into lines of about `width` pixels at most, each with its font. Longer words are cut."""
    text, font = _choose_font(text, 12)
    letters = len(text) * width / max(1, font.getlength(text))
    return [(line, font) for line in textwrap.wrap(text, max(1, int(0.97 * letters)))]


def _choose_font(text: str, size: int) -> tuple[str, Font]:
    """Returns the text, as far as it can be shown, and a font that has all of its letters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    letters = set(map(ord, text))
    for path in _list_fonts():
        if letters <= _read_letters(path):
            return text, ImageFont.truetype(path, size)
    return strip_accents(text), ImageFont.load_default(size + 1)


@cache
def _list_fonts() -> list[str]:
    """Lists the regular fonts that matplotlib finds, its own DejaVu Sans first."""
    try:
        from matplotlib.font_manager import fontManager
    except ImportError:
        return []
    # "Last Resort" has a box for every letter, and the fonts for formulas have symbols in the place of letters.
    regular = [
        font
        for font in fontManager.ttflist
        if (font.style, font.stretch) == ("normal", "normal") and font.weight in (300, 350, 400, 500)
        if not font.name.startswith(("Last Resort", "STIX", "cm"))
    ]
    paths = [font.fname for font in sorted(regular, key=lambda font: font.name != "DejaVu Sans")]
    return list(dict.fromkeys(path for path in paths if path.endswith((".ttf", ".otf", ".ttc"))))


@cache
def _read_letters(path: str) -> frozenset[int]:
    """Reads which letters a font has; none if it cannot be drawn at any size, such as one of coloured pictures."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
