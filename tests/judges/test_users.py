import json
import logging

import pytest
from PIL import Image

from dps_hf.judges.users import read_votes


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")

    def write(*lines: dict | str | bytes):
        path = tmp_path / "votes.jsonl"
        encoded = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
        path.write_bytes(b"".join((e if isinstance(e, bytes) else e.encode()) + b"\n" for e in encoded))
        return path

    return write


def test_thumbs_and_ratings_are_verdicts_with_their_line_as_origin(write):
    votes = read_votes(
        write(
            {"prompt": "Hello?", "response": "Hi.", "thumb": "up", "user": 7},
            "",
            {"prompt": "Hello?", "response": "What.", "thumb": "down", "comment": "rude"},
            {"prompt": "a red square", "response": {"image": "red.png"}, "rating": 4},
        )
    )
    assert [(v.scores, v.rationale, v.judge, v.origin) for _, v in votes] == [
        ({"thumb": 1.0}, "", "users", "votes.jsonl:1"),
        ({"thumb": 0.0}, "rude", "users", "votes.jsonl:3"),
        ({"rating": 0.75}, "", "users", "votes.jsonl:4"),
    ]
    assert [case.origin for case, _ in votes] == [v.origin for _, v in votes]
    assert votes[2][0].response.getpixel((0, 0)) == (255, 0, 0)


def test_a_choice_is_a_verdict_on_each_response(write):
    line = {"prompt": "What is this?", "images": ["red.png"], "chosen": "red", "rejected": "blue"}
    (chosen, up), (rejected, down) = read_votes(write(line))
    assert (chosen.response, up.scores, rejected.response, down.scores) == (
        "red",
        {"choice": 1.0},
        "blue",
        {"choice": 0.0},
    )
    assert len(chosen.images) == len(rejected.images) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "Expecting"),
        (b"\xff\xfe{}", ""),
        ("[1]", "must be an object"),
        ({"prompt": "?", "response": "!"}, "one of thumb, rating, chosen; got none"),
        ({"prompt": "?", "response": "!", "thumb": "up", "rating": 3}, "got thumb, rating"),
        ({"prompt": " ", "response": "!", "thumb": "up"}, "'prompt' must be a text"),
        ({"prompt": "?", "response": "", "thumb": "up"}, "'response' must be a text"),
        ({"prompt": "?", "response": "!", "thumb": True}, "'thumb' must be"),
        ({"prompt": "?", "response": "!", "thumb": ["up"]}, "'thumb' must be"),
        ({"prompt": "?", "response": "!", "rating": 6}, "'rating' must be a number from 1 to 5; got 6"),
        ({"prompt": "?", "response": "!", "rating": True}, "'rating' must be a number"),
        ('{"prompt": "?", "response": "!", "rating": NaN}', "got nan"),
        ({"prompt": "?", "chosen": "!"}, "'rejected' must be a text"),
        ({"prompt": "?", "response": "!", "thumb": "up", "images": "red.png"}, "'images' must be a list"),
        ({"prompt": "?", "response": "!", "thumb": "up", "comment": 3}, "'comment' must be a text"),
        ({"prompt": "?", "response": {"image": "blue.png"}, "thumb": "up"}, "No picture at"),
        ({"prompt": "?", "response": {"image": "votes.jsonl"}, "thumb": "up"}, "unknown format"),
        ({"prompt": "?", "response": {"image": "../secret.png"}, "thumb": "up"}, "a picture below"),
        ({"prompt": "?", "response": {"image": "/etc/passwd"}, "thumb": "up"}, "a picture below"),
    ],
)
def test_a_bad_line_is_reported_by_number_and_kept_aside_while_the_others_count(line, complaint, write, caplog):
    good = {"prompt": "Hello?", "response": "Hi.", "thumb": "up"}
    path = write(good, line, good)
    with caplog.at_level(logging.WARNING):
        assert [verdict.origin for _, verdict in read_votes(path)] == ["votes.jsonl:1", "votes.jsonl:3"]
    assert "1 bad line(s) left out" in caplog.text and "line 2: " in caplog.text
    [kept] = map(json.loads, (path.parent / "votes.bad.jsonl").read_text().splitlines())
    assert kept["line"] == 2 and complaint in kept["error"] and complaint in caplog.text
    if not isinstance(line, bytes):
        assert kept["text"].rstrip("\n") == (line if isinstance(line, str) else json.dumps(line))
    write(good)
    read_votes(path)
    assert not (path.parent / "votes.bad.jsonl").exists()
