"""Files that are written at once or not at all."""

import pytest

from dps_hf.files import write_whole


def test_text_bytes_and_writers_make_the_same_file(tmp_path):
    for number, content in enumerate(("größer", "größer".encode(), lambda path: path.write_text("größer", "utf-8"))):
        write_whole(tmp_path / str(number) / "file", content)
        assert (tmp_path / str(number) / "file").read_text(encoding="utf-8") == "größer"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(own):
        own.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(path, fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_file_that_has_the_content_is_left_alone(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "same")
    inode = path.stat().st_ino
    write_whole(path, b"same")
    assert path.stat().st_ino == inode
    write_whole(path, "other")
    assert path.stat().st_ino != inode
