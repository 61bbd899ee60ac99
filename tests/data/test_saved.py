"""What is read of a folder that `datasets` saved, and what is refused."""

import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from dps_hf.data.record import record
from dps_hf.data.saved import read_records, read_saved


ROWS = Dataset.from_dict({"text": ["one", "two"]})


def test_what_was_saved_is_read(tmp_path):
    ROWS.save_to_disk(tmp_path)
    assert read_saved(tmp_path).to_dict() == ROWS.to_dict()


@pytest.mark.parametrize("rows", [Dataset.from_dict({"text": []}), ROWS.select([])])
def test_a_folder_without_records_is_refused_by_name(tmp_path, rows):
    rows.save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"dataset must name a folder with records; .*mine has none"):
        read_saved(tmp_path / "mine")


def test_several_splits_are_refused_by_name(tmp_path):
    DatasetDict(train=ROWS, test=ROWS).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"prompts must name .* one set of records; .*both has train, test"):
        read_saved(tmp_path / "both", "prompts")


def test_nothing_there_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read_saved(tmp_path / "nothing-here")


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
