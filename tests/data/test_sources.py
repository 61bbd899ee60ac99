"""Reading data sets from folders and functions, and the errors for wrong ones."""

import io
import struct
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from dps_hf.data.record import record
from dps_hf.data.sources import read_dataset, read_records


ROWS = Dataset.from_dict({"text": ["one", "two"]})


def test_what_was_saved_is_read(tmp_path):
    ROWS.save_to_disk(tmp_path)
    assert read_dataset(tmp_path).to_dict() == ROWS.to_dict()


@pytest.mark.parametrize("rows", [Dataset.from_dict({"text": []}), ROWS.select([])])
def test_a_folder_without_records_is_refused_by_name(tmp_path, rows):
    rows.save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"dataset must name a set with records; .*mine has none"):
        read_dataset(tmp_path / "mine")


def test_several_splits_are_refused_by_name(tmp_path):
    DatasetDict(train=ROWS, test=ROWS).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"prompts must name one set of records; .*both has train, test"):
        read_dataset(tmp_path / "both", "prompts")


def test_nothing_there_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read_dataset(tmp_path / "nothing-here")


MINE = """
from datasets import Dataset
from PIL import Image

from dps_hf.data.record import record

calls = []


def my_records():
    calls.append(1)
    return [record("mine", [Image.new("RGB", (8, 8), "red"), "What colour?"], ["red"]), record("mine", ["Hi"], ["Ho"])]


def my_dataset():
    return Dataset.from_list(my_records())


def my_number():
    return 7
"""


@pytest.mark.parametrize("name", ["my_records", "my_dataset"])
def test_a_dataset_may_be_anybodys_function(tmp_path, monkeypatch, name):
    module = f"module_of_{name}"
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        first, second = read_records(f"{module}.{name}")
        assert first["images"][0].getpixel((0, 0)) == (255, 0, 0) and second["images"] == []
        assert [part["type"] for part in first["messages"][0]["content"]] == ["image", "text"]
    assert len(sys.modules[module].calls) == 1, "it may be slow"
    with pytest.raises(ValueError, match=rf"dataset must name one set of records; {module}.my_number has int"):
        read_dataset(f"{module}.my_number")
    with pytest.raises(ValueError, match=rf"dataset must be the dotted path of a function.*'{module}.no_such'"):
        read_dataset(f"{module}.no_such")


def saved(tmp_path, *records):
    columns = {name: [one[name] for one in records] for name in ("messages", "images")}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "mine")
    return tmp_path / "mine"


def test_records_to_learn_from_are_read_with_their_pictures(tmp_path):
    red = Image.new("RGB", (8, 8), "red")
    path = saved(tmp_path, record("mine", [red, "What colour?"], ["red"]), record("mine", ["Say yes."], ["yes"]))
    first, second = read_records(path)
    assert first["images"][0].getpixel((0, 0)) == (255, 0, 0) and second["images"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["messages"].pop(), "record 1 of .*mine: 'messages' must end with a question and its answer"),
        (lambda one: one["messages"].append(one["messages"][0]), "record 1 of .*mine: 'messages' mention 2 image"),
        (
            lambda one: one["images"].clear(),
            r"record 1 of .*mine: 'messages' mention 1 image\(s\) but 'images' holds 0",
        ),
    ],
)
def test_a_record_that_nothing_can_be_learned_from_is_named(tmp_path, change, message):
    red = Image.new("RGB", (8, 8), "red")
    right, wrong = (record("mine", [red, "What colour?"], ["red"]) for _ in range(2))
    change(wrong)
    with pytest.raises(ValueError, match=message):
        read_records(saved(tmp_path, right, wrong))


def png(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


PART = {"type": Value("string"), "text": Value("string")}
MESSAGES = List({"role": Value("string"), "content": List(PART)})


@pytest.mark.parametrize("kind", ["decoded", "undecoded", "bytes", "paths", "paths alone", "arrays"])
def test_pictures_of_records_are_opened_however_they_were_saved(tmp_path, kind):
    rng = np.random.default_rng(0)
    one = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
    one.save(tmp_path / "one.png")
    kept, feature = {
        "decoded": (one, ImageFeature()),
        "undecoded": ({"bytes": png(one), "path": None}, ImageFeature(decode=False)),
        "bytes": (png(one), Value("binary")),
        "paths": (str(tmp_path / "one.png"), Value("string")),
        "paths alone": ({"bytes": None, "path": str(tmp_path / "one.png")}, ImageFeature(decode=False)),
        "arrays": (np.asarray(one).tolist(), List(List(List(Value("uint8"))))),
    }[kind]
    messages = [record("t", [one, "What?"], ["noise"])["messages"], record("t", ["Hi"], ["Ho"])["messages"]]
    rows = {"messages": messages, "images": [[kept], None]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(feature)})).save_to_disk(tmp_path / "mine")
    first, second = read_records(tmp_path / "mine")
    assert np.array_equal(np.asarray(first["images"][0]), np.asarray(one)) and second["images"] == []


def test_odd_exif_tags_do_not_make_a_record_unreadable(tmp_path):
    tags = struct.pack("<HHI", 0x0100, 2, 4) + b"abc\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a width as text
    odd = png(Image.new("RGB", (8, 6)), exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    one = record("t", [Image.new("RGB", (8, 6)), "What?"], ["nothing"])
    rows = {"messages": [one["messages"]], "images": [[{"bytes": odd, "path": None}]]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(ImageFeature())})).save_to_disk(tmp_path)
    assert read_records(tmp_path)[0]["images"][0].size == (6, 8)  # turned


@pytest.mark.parametrize("feature", [ImageFeature(), ImageFeature(decode=False)])
def test_a_missing_picture_is_named_with_its_record(tmp_path, feature):
    red = {"bytes": png(Image.new("RGB", (8, 8), "red")), "path": None}
    messages = [record("t", [Image.new("RGB", (8, 8))] * 2, ["no"])["messages"]] * 2
    rows = {"messages": messages, "images": [[red, red], [red, None]]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(feature)})).save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"record 1 of .*mine: 'images'\[1\] holds no picture"):
        read_records(tmp_path / "mine")
