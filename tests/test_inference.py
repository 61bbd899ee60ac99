"""Drawing and answering in batches."""

import pytest
from PIL import Image

from dps_hf.inference import ask, draw


@pytest.fixture
def colours() -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]


def test_drawings_keep_the_order_of_the_prompts(tiny_model, tiny_processor):
    prompts = ["a", "a cat that is longer", "bb"]
    together = draw(tiny_model, tiny_processor, prompts, do_sample=False, guidance_scale=3.0)
    apart = [draw(tiny_model, tiny_processor, [p], do_sample=False, guidance_scale=3.0)[0] for p in prompts]
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in apart]
    assert all(picture.size == (16, 16) for picture in together)


def test_drawings_of_one_prompt_stand_together(tiny_model, tiny_processor):
    assert len(draw(tiny_model, tiny_processor, ["a", "b", "c"], batch_size=2, num_return_sequences=2)) == 6


def test_answers_keep_the_order_of_the_questions(tiny_model, tiny_processor, colours):
    questions = ["What?", "What is this?", "?"]
    together = ask(tiny_model, tiny_processor, questions, colours, max_new_tokens=5)
    pairs = zip(questions, colours)
    apart = [ask(tiny_model, tiny_processor, [q], [picture], max_new_tokens=5)[0] for q, picture in pairs]
    assert together == apart == ask(tiny_model, tiny_processor, questions, colours, batch_size=2, max_new_tokens=5)


def test_thinking_that_never_ends_is_no_answer(tiny_model, tiny_processor):
    [answer] = ask(tiny_model, tiny_processor, ["Why?"], think=True, max_new_tokens=3)
    assert answer.text == ""


def test_pictures_must_be_as_many_as_questions(tiny_model, tiny_processor, colours):
    with pytest.raises(ValueError, match="got 3 and 1"):
        ask(tiny_model, tiny_processor, ["What is this?"], colours)
