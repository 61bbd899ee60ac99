"""Records are split into the answers that a model gives again, and the model gives them."""

import pytest
from PIL import Image

from dps_hf.data.record import record
from dps_hf.evaluation.turns import respond, show_wanted, sort_turns, split_turns, write_drawing
from dps_hf.inference import encode


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def text(role, words):
    return {"role": role, "content": [{"type": "text", "text": words}]}


def test_every_answer_of_a_conversation_is_a_turn_with_what_was_said_before():
    messages = [text("system", "Be brief."), text("user", "1 + 1?"), text("assistant", "2"), text("user", "2 + 2?")]
    turns = split_turns({"messages": [*messages, text("assistant", "<think>2 and 2</think>4")], "images": []})
    assert [(turn.prompt, turn.wanted, turn.thinks) for turn in turns] == [
        ("1 + 1?", "2", False),
        ("2 + 2?", "4", True),
    ]
    assert [len(turn.messages) for turn in turns] == [2, 4]


def test_answers_of_the_prompt_are_not_turns():
    messages = [text("user", "1 + 1?"), text("assistant", "2"), text("user", "2 + 2?"), text("assistant", "4")]
    assert [turn.wanted for turn in split_turns({"messages": messages, "images": [], "num_prompt_messages": 3})] == [
        "4"
    ]


def test_a_drawing_is_wanted_as_a_picture_or_as_codes(tiny_model, tiny_processor):
    [edit] = split_turns(record("edits", [RED, "Make it blue."], [BLUE]))
    assert edit.draws and edit.prompt == "Make it blue."
    assert [picture.getpixel((0, 0)) for picture in (*edit.pictures, edit.wanted)] == [(255, 0, 0), (0, 0, 255)]
    [coded] = split_turns(
        {**record("edits", [RED, "Make it blue."], [BLUE]), "images": [RED], "codes": [[1, 2, 3, 4]]}
    )
    assert coded.wanted == [1, 2, 3, 4]
    assert [picture.getpixel((0, 0)) for picture in coded.pictures] == [(255, 0, 0)]
    assert show_wanted(tiny_model, tiny_processor, coded).size == (16, 16)


def captions(count, prompt="What is this?"):
    pictures = [Image.new("RGB", (16, 16), (10 * index, 0, 0)) for index in range(count)]
    return [record("captions", [picture, prompt], [f"red of {index}"]) for index, picture in enumerate(pictures)]


def test_answers_that_differ_to_prompts_that_repeat_are_captions():
    turns = [split_turns(one)[0] for one in captions(6)]
    asked = [split_turns(record("questions", [RED, f"Is it {i}?"], ["yes"]))[0] for i in range(6)]
    drawn = split_turns(record("draw", ["a red square"], [RED]))
    assert {kind: len(found) for kind, found in sort_turns(turns + drawn).items()} == {"captions": 6, "drawings": 1}
    assert list(sort_turns(asked)) == ["questions"]
    assert list(sort_turns(turns, "questions")) == ["questions"] and list(sort_turns(asked, "captions")) == [
        "captions"
    ]
    assert list(sort_turns(split_turns(record("facts", ["1 + 1?"], ["2"])))) == ["questions"]
    with pytest.raises(ValueError, match="answers must be captions or questions; got 'words'"):
        sort_turns(turns, "words")


def test_a_model_answers_each_turn_in_its_place(tiny_model, tiny_processor):
    wanted = [
        record("draw", ["a red square"], [RED]),
        record("captions", [RED, "What is this?"], ["a red square"]),
        record("questions", ["Is it red?"], ["<think>It is red.</think>yes"]),
        record("draw", ["a blue square"], [BLUE]),
    ]
    turns = [turn for one in wanted for turn in split_turns(one)]
    options = {"do_sample": False, "max_new_tokens": 20}
    together = respond(tiny_model, tiny_processor, turns, batch_size=2, **options)
    assert [isinstance(response, Image.Image) for response in together] == [True, False, False, True]
    alone = [respond(tiny_model, tiny_processor, [turn], **options)[0] for turn in turns]
    assert [one.tobytes() if isinstance(one, Image.Image) else one for one in together] == [
        one.tobytes() if isinstance(one, Image.Image) else one for one in alone
    ]


def test_earlier_drawings_of_the_model_are_shown_to_it_as_codes(tiny_model, tiny_processor):
    messages = [
        text("user", "a red square"),
        {"role": "assistant", "content": [{"type": "image"}]},
        text("user", "What did you draw?"),
        text("assistant", "a red square"),
    ]
    turns = split_turns({"messages": messages, "images": [RED]})
    assert [turn.draws for turn in turns] == [True, False]
    assert turns[1].pictures == (), "the user showed none"
    assert isinstance(respond(tiny_model, tiny_processor, turns[1:])[0], str)


def test_a_drawing_is_written_alike_from_its_picture_and_from_its_codes(tiny_model, tiny_processor):
    [codes] = encode(tiny_model, tiny_processor, [BLUE]).tolist()
    expected = tiny_processor.drawing_text(codes)
    assert [write_drawing(tiny_model, tiny_processor, one) for one in (BLUE, codes)] == [expected, expected]
