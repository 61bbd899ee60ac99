import json

from dps_hf.judges.cache import ReplyCache


def test_replies_are_there_again_in_the_next_run(tmp_path):
    cache = ReplyCache(tmp_path / "new" / "cache.jsonl")
    assert "a" not in cache
    cache.add("a", 'one\n"two" ✓', judge="me")
    again = ReplyCache(cache.path)
    assert again["a"] == cache["a"] == 'one\n"two" ✓'
    assert json.loads(cache.path.read_text())["judge"] == "me"


def test_a_file_that_was_cut_anywhere_keeps_the_lines_before_and_takes_new_ones(tmp_path):
    cache = ReplyCache(tmp_path / "cache.jsonl")
    for key in "abc":
        cache.add(key, f"reply {key} é")
    whole = cache.path.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for length in range(len(whole) + 1):
        cache.path.write_bytes(whole[:length])
        cut = ReplyCache(cache.path)
        # A line that lacks only its end is whole.
        lines = sum(end - 1 <= length for end in starts[1:])
        assert [key in cut for key in "abc"] == [i < lines for i in range(3)]
        assert cut.broken_lines == (length not in starts and length + 1 not in starts)
        cut.add("d", "new")
        assert ReplyCache(cut.path)["d"] == "new"


def test_lines_of_something_else_are_skipped_and_counted(tmp_path):
    path = tmp_path / "cache.jsonl"
    broken = [
        b"\xff\xfe",
        b'{"key": "a"}',
        b"7",
        b"\0\0\0",
        b'{"key": [1], "reply": "?"}',
        b'{"key": "a", "reply": 7}',
    ]
    broken += [b"[" * 100_000, b'{"key": "a", "reply": ["?"]}']
    path.write_bytes(b"\n".join([*broken, b"", b'{"key": "b", "reply": "fine"}\n']))
    cache = ReplyCache(path)
    assert cache.broken_lines == len(broken) and cache["b"] == "fine" and "a" not in cache


def test_a_message_is_kept_as_it_came(tmp_path):
    cache, message = ReplyCache(tmp_path / "cache.jsonl"), {"content": [{"type": "text", "text": "é"}]}
    cache.add("a", message)
    assert ReplyCache(cache.path)["a"] == cache["a"] == message


def test_an_empty_text_that_an_earlier_version_kept_hides_no_reply(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"key": "a", "reply": "theirs"}\n')
    (tmp_path / "cache.jsonl").write_text('{"key": "a", "reply": ""}\n{"key": "b", "reply": ""}\n')
    cache = ReplyCache(tmp_path / "cache.jsonl", others=[tmp_path / "other.jsonl"])
    assert cache["a"] == "theirs" and "b" not in cache and not cache.broken_lines


def test_a_cache_among_the_others_is_read_once(tmp_path):
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"?\n")
    assert ReplyCache(path, others=[path]).broken_lines == 1


def test_files_of_other_processes_are_read_and_never_written(tmp_path):
    other = ReplyCache(tmp_path / "other.jsonl")
    other.add("a", "theirs")
    before = other.path.read_bytes()
    cache = ReplyCache(tmp_path / "cache.jsonl", others=[other.path])
    assert cache["a"] == "theirs" and cache.path.read_bytes() == b""
    cache.add("b", "mine")
    assert other.path.read_bytes() == before
    assert "a" not in ReplyCache(cache.path)
