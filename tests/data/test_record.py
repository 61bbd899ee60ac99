import numpy as np
import pytest
from PIL import Image

from dps_hf.data.record import get_text, record, validate


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), "white")


def test_record_keeps_the_order_of_parts_and_pictures(picture):
    drawing = Image.new("RGB", (64, 64), "red")
    example = record("edit", [picture, "Make it red."], [drawing])
    assert example["messages"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Make it red."}]},
        {"role": "assistant", "content": [{"type": "image"}]},
    ]
    assert example["images"] == [picture, drawing]
    assert example["task"] == "edit"
    validate(example)


def test_the_key_image_is_refused_with_the_right_key():
    with pytest.raises(ValueError, match="Rename it to 'images'"):
        validate({"messages": [], "image": None})


@pytest.mark.parametrize(
    ("messages", "images", "complaint"),
    [
        ([], 0, "'messages' is empty"),
        ("Hello", 0, "'messages' must be a list; got str"),
        (["Hello"], 0, r"messages\[0\] must be"),
        ([{"role": "bot", "content": [{"type": "text", "text": "Hi"}]}], 0, r"messages\[0\]\['role'\].*'bot'"),
        ([{"role": "user", "content": "Hi"}], 0, r"messages\[0\]\['content'\] must be a list"),
        ([{"role": "user", "content": []}], 0, r"messages\[0\]\['content'\] must be a list with at least one part"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, r"\['content'\]\[0\]\['type'\] must be"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], 0, r"\['text'\] must be a string; got 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], 0, r"mention 1 image\(s\) but 'images' holds 0"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], 2, r"mention 0 image\(s\) but .* holds 2"),
    ],
)
def test_validate_names_what_is_wrong(messages, images, complaint, picture):
    with pytest.raises(ValueError, match=complaint):
        validate({"messages": messages, "images": [picture] * images, "task": "mine"})


@pytest.mark.parametrize("field", ["messages", "images"])
def test_validate_names_the_missing_field(field):
    example = {"messages": [], "images": []}
    del example[field]
    with pytest.raises(ValueError, match=f"lacks '{field}'"):
        validate(example)


@pytest.mark.parametrize("nothing", [None, [], (), np.empty(0, dtype=object)])
def test_a_record_without_pictures_may_say_so_in_several_ways(nothing):
    messages = record("t", ["Hi"], ["Ho"])["messages"]
    validate({"messages": messages, "images": nothing})
    with pytest.raises(ValueError, match=r"mention 1 image\(s\) but 'images' holds 0"):
        validate({"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": nothing})


@pytest.mark.parametrize("images", ["red.png", {"bytes": b"x"}, 7, b"x"])
def test_images_must_be_a_list(images):
    with pytest.raises(ValueError, match="'images' must be a list; got"):
        validate({"messages": record("t", ["Hi"], ["Ho"])["messages"], "images": images})


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}])
def test_a_picture_that_is_missing_is_named(picture, missing):
    example = record("t", [picture, picture, "The same?"], ["Yes."])
    example["images"][1] = missing
    with pytest.raises(ValueError, match=r"'images'\[1\] holds no picture; got .*None"):
        validate(example)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Red.", "Red."),
        ([{"role": "assistant", "content": "Red."}], "Red."),
        ([{"role": "assistant", "content": [{"type": "text", "text": "Red."}]}], "Red."),
        ([{"content": [{"type": "image", "text": None}, {"type": "text", "text": "R"}, {"text": "ed."}]}], "Red."),
        ([{"content": None}], ""),
        ([{"content": []}], ""),
        ([], ""),
        ("", ""),
        (None, ""),
    ],
)
def test_words_of_an_answer_are_found_however_it_is_given(answer, words):
    assert get_text(answer) == words


def test_a_record_with_codes_has_no_pictures_of_drawings():
    picture = Image.new("RGB", (8, 8))
    edit = record("t", [picture, "make it blue"], [picture])
    validate({**edit, "codes": None, "num_prompt_messages": None})
    validate({**edit, "images": [picture], "codes": [[1, 2]], "num_prompt_messages": 1})
    for fields, complaint in (
        ({"codes": [[1, 2]]}, r"1 image\(s\) outside of the assistant's but 'images' holds 2.*leave the pictures"),
        ({"codes": [], "images": [picture]}, r"mention 1 drawing\(s\) but 'codes' holds 0"),
        ({"codes": [[1, 2], [3, 4]], "images": [picture]}, "'codes' holds 2"),
        ({"codes": "12", "images": [picture]}, "'codes' must be a list of lists of integers; got '12'"),
        ({"codes": [[]], "images": [picture]}, r"'codes'\[0\] must be a list of integers; got \[\]"),
        ({"codes": [7], "images": [picture]}, r"'codes'\[0\] must be a list of integers; got 7"),
        ({"codes": [[-1, 2]], "images": [picture]}, r"'codes'\[0\] must be integers of 0 or more; got \[-1, 2\]"),
        ({"codes": [[0.5, 2]], "images": [picture]}, r"'codes'\[0\] must be integers"),
    ):
        with pytest.raises(ValueError, match=complaint):
            validate({**edit, **fields})


@pytest.mark.parametrize("count", [-1, 2, 1.0, True, "1"])
def test_the_prompt_must_leave_messages_to_learn(count):
    with pytest.raises(ValueError, match=f"'num_prompt_messages' must be an integer from 0 to 1.*got {count!r}"):
        validate({**record("t", ["a"], ["b"]), "num_prompt_messages": count})


def test_a_prompt_without_an_answer_after_it_is_refused():
    one = record("t", ["a"], ["b"])
    one["messages"].append(one["messages"][0])
    with pytest.raises(ValueError, match="'num_prompt_messages' must leave an assistant message to learn; got 2 of 3"):
        validate({**one, "num_prompt_messages": 2})
