"""What is read of a folder that `datasets` saved, and what is refused."""

import pytest
from datasets import Dataset, DatasetDict

from dps_hf.data.saved import read_saved


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
