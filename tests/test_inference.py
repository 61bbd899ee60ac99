"""Drawing and answering in batches."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import dps_hf
from dps_hf.inference import (
    CODES,
    ask,
    attach_codes,
    complete,
    decode,
    draw,
    encode,
    encode_drawing,
    make_conversation,
    save_drawing,
)
from dps_hf.model.image_processing_dps import open_picture, to_square


@pytest.fixture
def colours() -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]


def test_dps_nano_draws_and_answers_in_three_lines():
    torch.manual_seed(0)
    model, processor = dps_hf.load()
    picture = dps_hf.draw(model, processor, ["a big red heart"])[0]
    answer = dps_hf.ask(model, processor, ["Describe the picture."], [picture])[0]
    assert picture.size == (64, 64) and not model.training
    assert (answer.thinking, answer.text) == ("", "a big red heart")


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model, processor = dps_hf.load(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16 and model.device.type == "cpu"
    assert processor.num_codes == tiny_processor.num_codes


def test_drawings_keep_the_order_of_the_prompts(tiny_model, tiny_processor):
    prompts = ["a", "a cat that is longer", "bb"]
    together = draw(tiny_model, tiny_processor, prompts, do_sample=False, guidance_scale=3.0)
    apart = [draw(tiny_model, tiny_processor, [p], do_sample=False, guidance_scale=3.0)[0] for p in prompts]
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in apart]
    assert all(picture.size == (16, 16) for picture in together)


def test_drawings_of_one_prompt_stand_together(tiny_model, tiny_processor):
    assert len(draw(tiny_model, tiny_processor, ["a", "b", "c"], batch_size=2, num_return_sequences=2)) == 6


def test_batches_of_nothing_are_refused(tiny_model, tiny_processor):
    for call in (draw, ask):
        with pytest.raises(ValueError, match="batch_size must be 1 or more; got 0"):
            call(tiny_model, tiny_processor, ["a"], batch_size=0)


def test_answers_keep_the_order_of_the_questions(tiny_model, tiny_processor, colours):
    questions = ["What?", "What is this?", "?"]
    together = ask(tiny_model, tiny_processor, questions, colours, max_new_tokens=5)
    pairs = zip(questions, colours)
    apart = [ask(tiny_model, tiny_processor, [q], [picture], max_new_tokens=5)[0] for q, picture in pairs]
    assert together == apart == ask(tiny_model, tiny_processor, questions, colours, batch_size=2, max_new_tokens=5)


def test_a_question_may_be_about_several_pictures_and_another_about_one(tiny_model, tiny_processor, colours):
    questions, pictures = ["Which is red?", "What is this?"], [colours, colours[0]]
    together = ask(tiny_model, tiny_processor, questions, pictures, max_new_tokens=5)
    apart = [ask(tiny_model, tiny_processor, [q], [seen], max_new_tokens=5)[0] for q, seen in zip(questions, pictures)]
    assert together == apart
    assert together[0] != ask(tiny_model, tiny_processor, questions[:1], [colours[::-1]], max_new_tokens=5)[0]


def test_a_drawing_may_come_from_several_pictures(tiny_model, tiny_processor, colours):
    options = {"do_sample": False, "guidance_scale": 1.0}
    together = draw(tiny_model, tiny_processor, ["mix", "red"], [colours, colours[0]], **options)
    apart = [
        draw(tiny_model, tiny_processor, [p], [c], **options)[0] for p, c in (("mix", colours), ("red", colours[0]))
    ]
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in apart]


def test_thinking_that_never_ends_is_no_answer(tiny_model, tiny_processor):
    [answer] = ask(tiny_model, tiny_processor, ["Why?"], think=True, max_new_tokens=3)
    assert answer.text == ""


def test_pictures_must_be_as_many_as_texts_and_texts_a_list(tiny_model, tiny_processor, colours):
    with pytest.raises(ValueError, match="pictures must be as many as questions; got 3 and 1"):
        ask(tiny_model, tiny_processor, ["What is this?"], colours)
    with pytest.raises(ValueError, match="pictures must be as many as prompts; got 3 and 1"):
        draw(tiny_model, tiny_processor, ["Make it red."], colours)
    with pytest.raises(TypeError, match="prompts must be a list of texts; got the text 'a cat'"):
        draw(tiny_model, tiny_processor, "a cat")


def test_an_edit_depends_on_its_own_picture_alone(tiny_model, tiny_processor, colours):
    prompts = ["Make it red.", "Make it green, please.", "?"]
    options = {"do_sample": False, "guidance_scale": 3.0}
    seen = []
    decode = tiny_model.decode_image_tokens
    tiny_model.decode_image_tokens = lambda tokens: seen.append(tokens[:, -6:]) or decode(tokens)
    try:
        draw(tiny_model, tiny_processor, prompts, colours, **options)
        for prompt, picture in zip(prompts, colours):
            draw(tiny_model, tiny_processor, [prompt], [picture], **options)
        draw(tiny_model, tiny_processor, prompts, colours[::-1], **options)
    finally:
        del tiny_model.decode_image_tokens
    together, *apart, others = seen
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(together, others)


def planning(model, answer: list[int], monkeypatch) -> list[dict]:
    """Makes the model's first row answer this, the others one token of text, and returns what it is asked with."""
    asked = []

    def generate(input_ids, **options):
        asked.append(options)
        rows = [answer] + [[65, *[model.config.pad_token_id] * (len(answer) - 1)]] * (len(input_ids) - 1)
        return torch.cat([input_ids, torch.tensor(rows)], 1)

    monkeypatch.setattr(model, "generate", generate)
    return asked


def test_a_drawing_comes_after_its_plan_and_a_missing_one_is_a_white_page(
    make_model, tiny_processor, token_ids, monkeypatch
):
    model = make_model()
    codes = [token_ids[f"<img_{code}>"] for code in (3, 1, 4, 1)]
    plan = tiny_processor.tokenizer("row 2</think>")["input_ids"]
    drawn = [token_ids["<begin_of_image>"], *codes, token_ids["<end_of_image>"]]
    asked = planning(model, [*plan, *drawn, token_ids["<|im_end|>"]], monkeypatch)
    first, second = draw(model, tiny_processor, ["a star", "a very long circle"], think=True)
    pixels = model.decode_image_tokens(torch.tensor([drawn]))
    (expected,) = tiny_processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert first.tobytes() == expected.tobytes()
    assert second.size == (16, 16) and second.getextrema() == ((255, 255),) * 3
    assert asked[0]["generation_mode"] == "interleaved"


def test_the_text_of_a_drawing_becomes_the_picture_again(make_model, tiny_processor):
    model = make_model()
    pixels = model.decode_image_tokens(torch.tensor([[3, 1, 4, 1]]))
    (expected,) = tiny_processor.post_process_multimodal_output(pixels, generation_mode="image")
    text = tiny_processor.drawing_text([5, 5, 5, 5]) + " and then " + tiny_processor.drawing_text([3, 1, 4, 1])
    drawing = decode(model, tiny_processor, text)
    assert drawing is not None and drawing.tobytes() == expected.tobytes()
    assert decode(model, tiny_processor, "<begin_of_image><img_1>, cut off") is None
    again = decode(model, tiny_processor, text + "<begin_of_image><img_1><img_2>")
    assert again is not None and again.tobytes() == expected.tobytes(), "one that was cut off is none"
    assert decode(model, tiny_processor, text.replace("<img_", "<img_9999999999999999999")) is None


def test_thinking_is_asked_for_and_leaves_room_for_a_whole_drawing(make_model, tiny_processor, monkeypatch):
    model = make_model()
    prompts, generate = [], model.generate

    def spy(**options):
        prompts.append((tiny_processor.tokenizer.decode(options["input_ids"][0]), options["max_new_tokens"]))
        return generate(**options)

    monkeypatch.setattr(model, "generate", spy)
    assert len(draw(model, tiny_processor, ["a", "bb"], think=True, num_return_sequences=2, guidance_scale=2.0)) == 4
    assert prompts[0][0].endswith("assistant\n<think>")
    assert prompts[0][1] == 192 + 4 + 2


def test_a_saved_drawing_keeps_its_codes(tiny_model, tiny_processor, tmp_path):
    torch.manual_seed(0)
    for drawing in draw(tiny_model, tiny_processor, ["a", "bb"], temperature=1.0):
        save_drawing(drawing, tmp_path / "one.png")
        read = open_picture(tmp_path / "one.png")
        text = encode_drawing(tiny_model, tiny_processor, read)
        assert read.tobytes() == drawing.tobytes() and text == drawing.info[CODES]
        # Decoded in a batch, values may be rounded otherwise.
        again = decode(tiny_model, tiny_processor, text)
        assert np.abs(np.asarray(again, dtype=int) - np.asarray(drawing, dtype=int)).max() <= 1


def test_a_drawing_after_a_plan_knows_its_codes_too(make_model, tiny_processor, monkeypatch):
    model, text = make_model(), tiny_processor.drawing_text([3, 1, 2, 0])
    drawn = tiny_processor.tokenizer("so</think>" + text, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.cat([input_ids, drawn], 1))
    [drawing] = draw(model, tiny_processor, ["a"], think=True)
    assert drawing.info[CODES] == text and drawing.tobytes() == decode(model, tiny_processor, text).tobytes()


def test_codes_that_do_not_give_the_picture_are_not_believed(tiny_model, tiny_processor):
    shown = decode(tiny_model, tiny_processor, tiny_processor.drawing_text([0, 1, 2, 3]))
    by_tokenizer = tiny_processor.drawing_text(encode(tiny_model, tiny_processor, [shown])[0])
    assert (
        encode_drawing(tiny_model, tiny_processor, shown) == tiny_processor.drawing_text([0, 1, 2, 3]) != by_tokenizer
    )
    attach_codes(shown, tiny_processor, [7, 6, 5, 4])
    assert encode_drawing(tiny_model, tiny_processor, shown) == by_tokenizer
    for nonsense in ("", "<|im_end|>" + tiny_processor.drawing_text([0, 1, 2, 3]), "<img_1>", 7):
        shown.info[CODES] = nonsense
        assert encode_drawing(tiny_model, tiny_processor, shown) == by_tokenizer


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad-edge"])
def test_pictures_become_codes_as_the_squares_that_are_set_for_drawings(tiny_model, tiny_processor, fit, monkeypatch):
    processor = copy.copy(tiny_processor)
    processor.image_processor = copy.deepcopy(tiny_processor.image_processor)
    processor.image_processor.fit, processor.image_processor.drawing_fit = "pad-white", fit
    monkeypatch.setattr(tiny_model, "encode_image", lambda pixels: pixels)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    square = to_square(picture, fit, tiny_model.config.drawing_size)
    expected = processor.image_processor([square], return_tensors="pt")["pixel_values"]
    assert encode(tiny_model, processor, [picture]).equal(expected)


def test_pictures_are_encoded_a_few_at_a_time_whatever_their_number(tiny_model, tiny_processor, monkeypatch):
    shades = [Image.new("RGB", (8, 8), (20 * i, 200 - 20 * i, 0)) for i in range(5)]
    whole, sizes, encode_image = encode(tiny_model, tiny_processor, shades), [], tiny_model.encode_image
    monkeypatch.setattr(dps_hf.inference, "PIXELS_AT_A_TIME", 2 * tiny_model.config.drawing_size**2)
    monkeypatch.setattr(tiny_model, "encode_image", lambda pixels: sizes.append(len(pixels)) or encode_image(pixels))
    assert encode(tiny_model, tiny_processor, shades).equal(whole)
    assert sizes == [2, 2, 1]


def test_completions_have_the_drawing_as_text_and_as_a_picture(tiny_model, tiny_processor):
    chats = [make_conversation("a star"), make_conversation("a heart")]
    torch.manual_seed(0)
    completions = complete(tiny_model, tiny_processor, chats, drawing=True, do_sample=True, num_return_sequences=2)
    assert len(completions) == 4
    for completion in completions:
        assert completion.text == completion.drawing.info[CODES]
        assert decode(tiny_model, tiny_processor, completion.text).tobytes() == completion.drawing.tobytes()
    torch.manual_seed(0)
    again = draw(tiny_model, tiny_processor, ["a star", "a heart"], temperature=1.0, num_return_sequences=2)
    assert [drawing.tobytes() for drawing in again] == [completion.drawing.tobytes() for completion in completions]
