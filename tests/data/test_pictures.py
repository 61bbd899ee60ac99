import io

import pytest
from datasets import Dataset
from PIL import Image

from dps_hf.data.pictures import Pictures, read_pictures
from dps_hf.data.record import record


def test_pictures_are_pixels_between_minus_one_and_one():
    pixels = Pictures([record("t", ["red"], [Image.new("RGB", (16, 16), "red")])])[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]


def make_wide_picture() -> Image.Image:
    """Red on the left, blue on the right, 48 x 16."""
    picture = Image.new("RGB", (48, 16), "blue")
    picture.paste("red", (0, 0, 24, 16))
    return picture


@pytest.mark.parametrize("fit, left", [("crop", [1, -1, -1]), ("pad-white", [1, 1, 1]), ("stretch", [1, -1, -1])])
def test_pictures_become_squares_as_drawings_do(fit, left):
    pixels = Pictures([record("t", ["?"], [make_wide_picture()])], 16, fit)[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == left


def write_bytes(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_pictures_are_read_without_texts_and_from_conversations(tmp_path):
    content = write_bytes(make_wide_picture())
    Dataset.from_list([{"photo": content, "id": 3}, {"photo": None, "id": 4}]).to_parquet(tmp_path / "a.parquet")
    skipped = tmp_path / "skipped.jsonl"
    found = read_pictures(
        {"path": str(tmp_path / "a.parquet"), "columns": {"images": "photo"}}, skipped=skipped, max_skipped=0.9
    )
    assert [one["images"][0].size for one in found] == [(48, 16), (48, 16)]  # in place of the bad row, the good one
    assert "no picture" in skipped.read_text()

    chat = [{"role": "user", "content": [{"type": "image", "image": content}]}]
    Dataset.from_dict({"messages": [chat]}).to_parquet(tmp_path / "chats.parquet")
    assert read_pictures(str(tmp_path / "chats.parquet"))[0]["images"][0].size == (48, 16)


def test_rows_without_a_column_of_pictures_are_refused_with_an_example(tmp_path):
    Dataset.from_list([{"words": "cat"}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"it has words. Write, for example, columns: \{images: my_pictures\}"):
        read_pictures(str(tmp_path / "a.parquet"))
