"""Prompts from records, files and folders."""

import json
from io import BytesIO

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from dps_hf.data.record import record
from dps_hf.preferences.prompts import PATIENCE, Prompt, extract_prompts, read_prompts


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def test_prompts_are_asked_once_and_know_their_answers():
    records = [
        record("t2i", ["a star"], [RED]), record("i2t", [RED, "What?"], ["red"]),
        record("t2i", ["a star"], [BLUE]), record("i2t", [BLUE, "What?"], ["blue"]),
    ]  # fmt: skip
    star, red, blue = extract_prompts(records, think=["i2t"])
    assert star == Prompt("a star", draw=True, task="t2i")
    assert red == Prompt("What?", (RED,), ("red",), think=True, task="i2t")
    assert blue.images == (BLUE,)


def test_prompts_end_where_nothing_new_comes():
    endless = iter(lambda: record("t", ["again"], ["and again"]), None)
    assert len(list(extract_prompts(endless))) == 1


def test_a_file_of_prompts_asks_for_each_line_once(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a star\n\n  une étoile \na star\n", encoding="utf-8")
    lines = ("a star", "une étoile")
    assert list(read_prompts(path)) == [Prompt(text, draw=True, task="mine") for text in lines]
    assert list(read_prompts(path, think=["mine"])) == [Prompt(text, (), (), True, True, "mine") for text in lines]


def test_control_tokens_in_prompts_are_named_with_their_place(tmp_path):
    (tmp_path / "mine.txt").write_text("a star\na <image> star\n")
    with pytest.raises(ValueError, match=r"line 2 of .*mine.txt must not hold control tokens; got '<image>'"):
        list(read_prompts(tmp_path / "mine.txt"))
    asked = record("mine", ["a <|im_end|> star"], ["yes"])
    with pytest.raises(
        ValueError, match=r"record 0 of .*: a question must not hold control tokens; got '<\|im_end\|>'"
    ):
        list(read_prompts(save([asked], tmp_path / "records")))


def test_a_file_of_prompts_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "mine.txt").write_bytes("ein großer Stern".encode("latin1"))
    with pytest.raises(ValueError, match=r"prompts must name a file in UTF-8; .*mine.txt is not"):
        list(read_prompts(tmp_path / "mine.txt"))


def test_a_file_without_prompts_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "none.txt"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"none\.txt has none"):
        next(read_prompts(path))


def save(records, path, columns=("messages", "images")):
    Dataset.from_dict({name: [one[name] for one in records] for name in columns}).save_to_disk(path)
    return path


def test_a_folder_of_records_asks_each_question_once_and_knows_the_answers(tmp_path):
    records = [record("i2t", [RED, "What?"], ["red"], steps="I see."), record("t2i", ["a star"], [BLUE])]
    red, star = read_prompts(save(records * 2, tmp_path / "mine"), think=["mine"])
    assert red.steps == ""
    assert (red.text, red.answers, red.draw, red.think, red.task) == ("What?", ("red",), False, True, "mine")
    assert red.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert (star.text, star.images, star.answers, star.draw) == ("a star", (), (), True)
    with_tasks = read_prompts(save(records, tmp_path / "more", ("messages", "images", "task", "steps")), think=["i2t"])
    assert [(p.task, p.think, p.steps) for p in with_tasks] == [("i2t", True, "I see."), ("t2i", False, "")]


@pytest.mark.parametrize("decode", [True, False])
def test_prompts_of_a_folder_have_their_pictures_however_these_were_kept(tmp_path, decode):
    RED.save(tmp_path / "red.png")
    asked, plain = record("t", [RED, "What?"], ["red"]), record("t", ["Say yes."], ["yes"])
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": List(part)}),
            "images": List(ImageFeature(decode=decode)),
        }
    )
    kept = {"bytes": None, "path": str(tmp_path / "red.png")}
    rows = {"messages": [asked["messages"], plain["messages"]], "images": [[kept], None]}
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "mine")
    what, say = read_prompts(tmp_path / "mine")
    assert what.images[0].getpixel((0, 0)) == (255, 0, 0) and say.images == ()
    rows["images"][0] = [None]
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"record 0 of .*missing: 'images'\[0\] holds no picture"):
        list(read_prompts(tmp_path / "missing"))


def test_steps_that_stand_in_an_answer_are_steps_and_no_part_of_it(tmp_path):
    worked = record("i2t", [RED, "What?"], ["<think>I see red.</think>red"])
    (prompt,) = read_prompts(save([worked], tmp_path / "mine"))
    assert (prompt.answers, prompt.steps) == (("red",), "I see red.")
    (prompt,) = read_prompts(
        save([{**worked, "steps": "Better."}], tmp_path / "more", ("messages", "images", "steps"))
    )
    assert (prompt.answers, prompt.steps) == (("red",), "Better.")


@pytest.mark.parametrize("mode", ["CMYK", "F", "LA", "P", "I;16"])
def test_pictures_of_any_mode_come_to_the_trainer_in_colours(mode):
    picture = Image.new(mode, (8, 8))
    prompt = Prompt("What?", (picture,))
    assert len(prompt.key) == 64
    (encoded,) = prompt.encoded_images
    assert Image.open(BytesIO(encoded["bytes"])).mode == "RGB"


def test_a_question_whose_answer_nobody_knows_is_asked_too(tmp_path):
    one = record("i2t", [RED, "What?"], ["red"])
    (prompt,) = read_prompts(save([{**one, "messages": one["messages"][:1]}], tmp_path / "mine"))
    assert (prompt.text, len(prompt.images), prompt.answers) == ("What?", 1, ())


def test_the_last_question_of_a_conversation_has_its_own_pictures(tmp_path):
    first, last = record("t", [RED, "What?"], ["red"]), record("t", [BLUE, "And this?"], ["blue"])
    both = {"messages": first["messages"] + last["messages"], "images": first["images"] + last["images"], "task": "t"}
    assert list(extract_prompts([both])) == [Prompt("And this?", (BLUE,), ("blue",), task="t")]


def test_a_wrong_record_in_a_folder_is_named_by_its_number(tmp_path):
    right = record("i2t", [RED, "What?"], ["red"])
    with pytest.raises(ValueError, match=r"record 1 of .*mine: wrong number of pictures: the messages have"):
        list(read_prompts(save([right, {**right, "images": []}], tmp_path / "mine")))
    with pytest.raises(ValueError, match=r"record 0 of .*mute: 'messages' must end with a question of the user"):
        list(read_prompts(save([{"messages": right["messages"][1:], "images": []}], tmp_path / "mute")))
    cut = {"bytes": png_of(RED)[:-30], "path": None}
    part = {"type": Value("string"), "text": Value("string")}
    messages = List({"role": Value("string"), "content": List(part)})
    features = Features({"messages": messages, "images": List(ImageFeature())})
    broken = Dataset.from_dict({"messages": [right["messages"]], "images": [[cut]]}, features)
    broken.save_to_disk(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"record 0 of .*cut: "):
        list(read_prompts(tmp_path / "cut"))
    DatasetDict(valid=broken, test=broken).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"both has the splits valid, test"):
        list(read_prompts(tmp_path / "both"))


def test_all_questions_of_a_file_are_asked_however_often_one_comes_before(tmp_path):
    rows = [{"prompt": "Why?"}] * (PATIENCE + 1) + [{"prompt": "Why not?"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [prompt.text for prompt in read_prompts(tmp_path / "mine.jsonl")] == ["Why?", "Why not?"]


def png_of(image):
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_questions_of_a_file_of_rows_are_asked_with_and_without_answers(tmp_path):
    RED.save(tmp_path / "red.png")
    rows = [
        {"image": "red.png", "question": "What?", "answer": "red"},
        {"image": None, "question": "Hi?", "answer": "Ho"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    what, hi = read_prompts(tmp_path / "mine.jsonl")
    assert (what.text, what.answers, what.task) == ("What?", ("red",), "mine")
    assert what.images[0].getpixel((0, 0)) == (255, 0, 0) and hi.images == ()
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Why?"}\n')
    (why,) = read_prompts(tmp_path / "bare.jsonl")
    assert (why.text, why.answers, why.draw) == ("Why?", (), False)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a <|im_end|>"}\n')
    with pytest.raises(ValueError, match=r"record 0 of .*bad.jsonl: a question must not hold control tokens"):
        list(read_prompts(tmp_path / "bad.jsonl"))


def test_captions_become_prompts_for_drawings_where_the_settings_say_so(tmp_path):
    RED.save(tmp_path / "red.png")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"image": "red.png", "caption": "a red square"}) + "\n")
    draws = {"draw": {"share": 1, "prompts": ["{caption}"]}}
    (prompt,) = read_prompts({"path": str(tmp_path / "mine.jsonl"), "captions": draws})
    assert (prompt.text, prompt.draw, prompt.images) == ("a red square", True, ())
