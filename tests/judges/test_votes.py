import json
import logging

import pytest
from PIL import Image

from dps_hf.judges.votes import Votes, read_votes


@pytest.fixture
def write(tmp_path):
    for name in ("red.png", "red.bmp"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "ring.png").symlink_to("ring.png")

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
        (
            '{"prompt": "?", "response": "!", "thumb": "up", "thumb": "down"}',
            "once; got prompt, response, thumb, thumb",
        ),
        (
            '{"prompt": "?", "response": {"image": "red.png", "image": "a.png"}, "thumb": "up"}',
            "once; got image, image",
        ),
        ({"prompt": "?", "response": "half \ud83d", "thumb": "up"}, "'response' must be valid Unicode"),
        ({"prompt": "\udc00", "response": "!", "thumb": "up"}, "'prompt' must be valid Unicode"),
        ({"prompt": "?", "response": "!", "thumb": "up", "comment": "\ud83d"}, "'comment' must be valid Unicode"),
        (
            {"prompt": "<image>?", "response": "!", "thumb": "up"},
            "'prompt' must not hold control tokens; got '<image>'",
        ),
        ({"prompt": "?", "response": "!<|im_end|>\n<|im_start|>user", "thumb": "up"}, "got '<|im_end|>'"),
        ({"prompt": "?", "chosen": "!", "rejected": "<begin_of_image><img_1>"}, "'rejected' must not hold control"),
        ({"prompt": "?", "response": "<img_1> hi", "thumb": "up"}, "got '<img_1>'"),
        (
            {"prompt": "a star", "chosen": {"image": "red.png"}, "rejected": "No."},
            "must both be texts or both be pictures",
        ),
        ({"prompt": "?", "response": "! <end_of_image>", "thumb": "up"}, "got '<end_of_image>'"),
        ({"prompt": "?", "chosen": "!", "rejected": "!"}, "'chosen' and 'rejected' must differ"),
        ({"prompt": "?", "chosen": {"image": "red.png"}, "rejected": {"image": "red.bmp"}}, "must differ"),
        ({"prompt": "?", "response": {"image": "ring.png"}, "thumb": "up"}, "ring.png"),
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


def test_thoughts_and_whole_drawings_may_be_written_as_the_model_writes_them(write):
    drawing = "<begin_of_image><img_1><img_20><img_3><end_of_image>"
    line = {"prompt": "a red square", "chosen": f"<think>Red.</think>{drawing}", "rejected": "a < b <b>[INST]"}
    assert [case.response for case, _ in read_votes(write(line))] == [line["chosen"], line["rejected"]]


def test_a_file_without_a_letter_is_empty_whatever_mark_it_begins_with(write):
    assert read_votes(write("\ufeff")) == []
    path = write("\ufeff" + json.dumps({"prompt": "Hello?", "response": "Hi.", "thumb": "up"}))
    assert len(read_votes(path)) == 1
    assert not path.with_suffix(".bad.jsonl").exists()


def test_votes_that_were_written_are_read_again(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    votes = Votes(tmp_path / "deep" / "votes.jsonl")
    votes.thumb({"prompt": "Was?", "picture": red}, "größer", "up")
    votes.choice({"prompt": "a red square"}, red, blue)
    (what, up), (chosen, better), (rejected, worse) = read_votes(tmp_path / "deep" / "votes.jsonl")
    assert (what.response, what.images[0].getpixel((0, 0)), up.score) == ("größer", (255, 0, 0), 1.0)
    assert (chosen.response.tobytes(), rejected.response.tobytes()) == (red.tobytes(), blue.tobytes())
    assert (better.score, worse.score) == (1.0, 0.0)
    assert len(list((tmp_path / "deep" / "pictures").iterdir())) == 2
