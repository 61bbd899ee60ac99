"""Contact sheets: text that Pillow's default font can show, and rows and columns that hold it."""

import numpy as np
from PIL import Image

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
