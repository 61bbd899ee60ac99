"""Contact sheets: text that Pillow's default font can show, and rows and columns that hold it."""

import sys

import numpy as np
import pytest
from PIL import Image

from dps_hf import contact_sheet
from dps_hf.contact_sheet import Item, Section, draw_page, find_writable, strip_accents


def test_accents_are_left_out_and_other_scripts_too():
    assert strip_accents("cœur élégant, “Größe”") == 'coeur elegant, "Grosse"'
    assert strip_accents("ru: алое сердце") == ""


def test_lines_in_other_scripts_are_left_out():
    assert find_writable(["one", "алое", "deux", "œuf"], 2) == ["one", "deux"]


def test_long_words_stay_in_their_column():
    items = [Item([Image.new("RGB", (64, 64), "red")], ["W" * 200]), Item([Image.new("RGB", (64, 64), "red")], [])]
    sheet = np.asarray(draw_page([Section("Title", items, columns=2)], width=600).convert("L"))
    below_pictures = sheet[52 + 132 :]
    assert below_pictures[:, :300].min() < 100
    assert below_pictures[:, 306:].min() == 255


def test_a_page_grows_with_its_rows():
    item = Item([Image.new("RGB", (64, 64), "blue")] * 2, ["two", "lines"])
    one, two = (draw_page([Section("Title", [item] * n, columns=3)]) for n in (3, 4))
    assert one.height < two.height


def draw_line(line: str, right: bool | None = None) -> np.ndarray:
    """A page with one white picture and this line below it."""
    return np.asarray(draw_page([Section("", [Item([Image.new("RGB", (64, 64), "white")], [line], right)])]))


@pytest.mark.parametrize("line, bare", [("élan", "elan"), ("Größe", "Grosse"), ("сердце", "")])
def test_accents_and_other_scripts_are_drawn_if_a_font_has_them(line, bare):
    pytest.importorskip("matplotlib")
    assert not np.array_equal(draw_line(line), draw_line(bare))


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.font_manager", None)
    contact_sheet._list_fonts.cache_clear()
    yield
    contact_sheet._list_fonts.cache_clear()


def test_without_matplotlib_accents_are_left_out(no_matplotlib):
    assert np.array_equal(draw_line("élan"), draw_line("elan"))


def test_a_line_that_no_font_has_is_left_out():
    assert np.array_equal(draw_line("\U00013000"), draw_line(""))  # an Egyptian hieroglyph


def test_a_wrong_drawing_is_marked():
    unmarked, right, wrong = (draw_line("a star", mark) for mark in (None, True, False))
    red = [255, 0, 0]
    assert (wrong == red).all(-1).any() and not (right == red).all(-1).any() and not (unmarked == red).all(-1).any()
    assert len(right) > len(unmarked), "a line says so, too"
