"""Packed rows: to the model each record, and each question of it, is as if it stood alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import MistralConfig, Qwen2Config

from dps_hf.data.dropouts import Dropouts
from dps_hf.data.guidance import guide
from dps_hf.data.record import record
from dps_hf.inference import encode
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import MULTIPLE, ROW, PackingCollator


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def asked():
    """Three questions about one picture."""
    return {**record("t", [RED, "What is it?"], ["a square"]), "more": [("Welche Farbe?", "rot"), ("Size?", "16")]}


@pytest.fixture
def records(asked):
    planned = guide(record("t", ["a red square"], [RED], steps="row 2: a square."), "steps")
    return [
        record("t", ["How many?"], ["<think>one, two</think>2"]),
        asked,
        record("t", [BLUE, "make it red"], [RED]),
        planned,
        record("t", ["Which", BLUE, "colour?"], ["blue"]),
    ]


def alone(records: list) -> list:
    """Each question as a record of its own."""
    each = []
    for one in records:
        each.append({**one, "more": []})
        each += [record("t", [*one["images"], question], [answer]) for question, answer in one.get("more", [])]
    return each


def answers(batch: dict, processor) -> list[str]:
    text = processor.tokenizer.decode([i for row in batch["labels"] for i in row[row != -100].tolist()])
    return text.split("<|im_end|>")[:-1]


def test_every_answer_is_learned_and_nothing_else(make_model, tiny_processor, records):
    model = make_model()
    batch = PackingCollator(model, tiny_processor)(records)
    drawing = tiny_processor.drawing_text(encode(model, tiny_processor, [RED])[0])
    expected = ["one, two</think>2", "a square", "rot", "16", drawing, f"row 2: a square.</think>{drawing}", "blue"]
    assert sorted(answers(batch, tiny_processor)) == sorted(expected)
    assert len(batch["pixel_values"]) == 3, "a picture is given once, however many questions there are about it"


def test_the_loss_is_that_of_the_questions_one_by_one(make_model, tiny_processor, records):
    model = make_model()
    packed = packed_loss(model, model, PackingCollator(model, tiny_processor)(records))
    collate, total, weight = RecordCollator(model, tiny_processor), 0.0, 0.0
    for one in alone(records):
        batch = collate([one])
        count = int((batch["labels"] != -100).sum())
        total, weight = total + model(**batch).loss * count**0.5, weight + count**0.5
    torch.testing.assert_close(packed, total / weight)


def test_a_question_that_is_asked_twice_has_each_of_its_answers_learned_from_the_question(make_model, tiny_processor):
    model = make_model()
    twice = {**record("t", [RED, "What is it?"], ["a square"]), "more": [("What is it?", "red")]}
    collate = PackingCollator(model, tiny_processor)
    losses = [packed_loss(model, model, collate(some)) for some in ([twice], alone([twice]))]
    torch.testing.assert_close(*losses)


def test_each_record_gets_the_gradient_of_its_own(make_model, tiny_processor, asked):
    gradients = []
    for examples in ([asked], alone([asked])):
        model = make_model()
        packed_loss(model, model, PackingCollator(model, tiny_processor)(examples)).backward()
        gradients.append(model.model.connector.linear_1.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_rows_are_full_and_longer_only_where_a_record_is(make_model, make_config, make_text_config, tiny_processor):
    roomy = make_config(text_config=make_text_config(max_position_embeddings=4 * ROW))
    collate = PackingCollator(make_model(roomy), tiny_processor)
    some = [record("t", [f"{i}?"], ["yes"]) for i in range(9)]
    one = int((collate(some[:1])["input_ids"] != collate.config.pad_token_id).sum())
    assert collate(some)["input_ids"].shape == (1, -(-len(some) * one // MULTIPLE) * MULTIPLE)
    rows, length = collate(some * 9)["input_ids"].shape
    assert rows == -(-9 * len(some) // (ROW // one)) and length <= ROW
    assert 9 * len(some) * one > 0.95 * rows * length  # rows are about equally long
    longer = collate([record("t", ["x" * 2 * ROW], ["yes"]), record("t", ["y"], ["no"])])
    assert longer["input_ids"].shape[1] > 2 * ROW


def test_a_dropped_prompt_leaves_begin_of_image_and_the_drawing(make_model, tiny_processor, token_ids, records):
    model = make_model()
    batch = PackingCollator(model, tiny_processor)([{**one, "drop_prompt": True} for one in records[2:4]])
    assert "pixel_values" not in batch, "the picture of the edit goes with its words"
    row = batch["input_ids"][0]
    begins = (row == token_ids["<begin_of_image>"]).nonzero().flatten().tolist()
    assert begins[0] == 0 and len(begins) == 2
    assert batch["position_ids"][0, begins[1]] == 0
    assert torch.isfinite(packed_loss(model, model, batch))


def test_hidden_codes_are_still_learned_and_the_words_stay(make_model, tiny_processor):
    model = make_model()
    collate, hidden = PackingCollator(model, tiny_processor), 0
    for i in range(20):
        example = record("t", [f"a red square, {i}"], [RED], steps="row 2")
        example = guide(example, "steps" if i % 2 else "none")
        batch, plain = collate([Dropouts([example], seed=i, code_dropout=1.0)[0]]), collate([example])
        assert torch.equal(batch["labels"], plain["labels"])
        changed = batch["input_ids"] != plain["input_ids"]
        assert (batch["input_ids"][changed] == model.config.pad_token_id).all()
        assert (plain["input_ids"][changed] >= model.config.image_code_start_id).all(), "more than codes was hidden"
        hidden += int(changed.sum())
    assert hidden > 20


def test_answers_in_words_lose_nothing(make_model, tiny_processor, asked):
    collate = PackingCollator(make_model(), tiny_processor)
    dropping = collate([Dropouts([asked], seed=0, prompt_dropout=1.0)[0]])
    plain = collate([asked])
    assert all(torch.equal(dropping[name], plain[name]) for name in plain)


def test_a_drawing_of_the_prompt_is_not_learned_and_drops_nothing(make_model, tiny_processor):
    said = record("t", ["a red square"], [RED])
    asked = record("t", ["What is it?"], ["a square"])
    both = {**said, "messages": [*said["messages"], *asked["messages"]], "num_prompt_messages": 3}
    collate = PackingCollator(make_model(), tiny_processor)
    assert answers(collate([{**both, "drop_prompt": True}]), tiny_processor) == ["a square"]


def test_batches_made_by_workers_equal_those_made_in_process(make_model, tiny_processor, records):
    collate = PackingCollator(make_model(), tiny_processor)
    dropping = Dropouts(records * 2, seed=0, prompt_dropout=0.3, code_dropout=0.5)
    apart, together = (DataLoader(dropping, 4, num_workers=n, collate_fn=collate) for n in (2, 0))
    for one, other in zip(apart, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_collator_keeps_a_copy_of_the_image_tokenizer_alone(make_model, tiny_processor):
    model = make_model()
    collate = PackingCollator(model, tiny_processor)
    copied = sum(parameter.numel() for parameter in collate.encoder.parameters())
    assert copied == sum(parameter.numel() for parameter in model.model.image_tokenizer.parameters())


def test_more_questions_share_the_pictures_that_begin_the_first(make_model, tiny_processor):
    late = {**record("t", ["Which", BLUE, "colour?"], ["blue"]), "more": [("Size?", "16")]}
    with pytest.raises(ValueError, match="must begin with its pictures"):
        PackingCollator(make_model(), tiny_processor)([late])


NOISE = list(map(Image.fromarray, np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))


@pytest.fixture(scope="module")
def conversations():
    """Several turns, pictures in any of them, drawings, and text alone, short and long."""
    one, two, three, four = NOISE
    seen, drawn = {"type": "image"}, [{"type": "image"}]
    text = lambda words: [{"type": "text", "text": words}]  # noqa: E731
    turns = [
        [("user", [seen, *text("What?")]), ("assistant", text("a square")), ("user", [*text("And "), seen])],
        [("system", text("Be short.")), ("user", text("Draw.")), ("assistant", drawn), ("user", text("Now blue."))],
        [("user", text("Hi")), ("assistant", text("Hello")), ("user", text("Capital?"))],
    ]
    lasts = [text("a circle, which is much longer than what was said of the other"), drawn, text("<think>x</think>P")]
    images = [[one, two], [three, four], []]
    made = [
        {
            "messages": [
                *({"role": role, "content": content} for role, content in some),
                {"role": "assistant", "content": last},
            ],
            "images": pictures,
            "task": "t",
        }
        for some, last, pictures in zip(turns, lasts, images, strict=True)
    ]
    plain = {"messages": [{"role": "assistant", "content": text("Once upon a time.")}], "images": [], "task": "t"}
    return [*made, plain, {**made[0], "num_prompt_messages": 2}]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("decoder", "attention"),
    [
        *((decoder, "eager") for decoder in ("llama", "gpt2", "gemma2", "gemma3", "mistral")),  # Gemma 2 has no other
        *((decoder, "sdpa") for decoder in ("llama", "qwen2", "gpt2", "gemma3", "mistral", "qwen2 with a window")),
    ],
)
def test_the_loss_of_any_decoder_is_that_of_its_conversations_one_by_one(
    make_model, make_config, make_text_config, make_decoder_config, tiny_processor, conversations, asked, decoder,
    attention, whole,
):  # fmt: skip
    window = {"sliding_window": 5}
    text_config = (
        make_text_config()
        if decoder == "llama"
        else make_text_config(MistralConfig, **window)
        if decoder == "mistral"
        else make_text_config(Qwen2Config, use_sliding_window=True, max_window_layers=1, **window)
        if "window" in decoder
        else make_decoder_config(decoder)
    )
    model = make_model(make_config(text_config=text_config))
    model.set_attn_implementation(attention)
    options = {"assistant_only_loss": not whole}
    examples = [*conversations, *([] if whole else [asked])]
    collate = PackingCollator(model, tiny_processor, **options, packed_length=200)
    batch = collate(examples)
    assert len(batch["input_ids"]) < len(examples), "several share a row"
    assert collate.shares_prompts == (decoder in ("llama", "qwen2", "gpt2"))
    total = weight = 0.0
    for one in alone(examples):
        single = RecordCollator(model, tiny_processor, **options)([one])
        labels = single.pop("labels")[0, 1:]
        nats = torch.nn.functional.cross_entropy(model(**single).logits[0, :-1], labels, reduction="none")
        due = labels != -100
        # An answer is a run of labels, or all labels of a record of which all text is learned.
        runs = torch.zeros_like(labels) if whole else (~due).cumsum(0)
        for run in runs[due].unique():
            count = int((due & (runs == run)).sum())
            total, weight = total + nats[due & (runs == run)].mean() * count**0.5, weight + count**0.5
    torch.testing.assert_close(packed_loss(model, model, batch), total / weight)


def test_a_decoder_that_cannot_be_packed_is_refused(tiny_processor, make_model):
    model = make_model()
    model.model.language_model.__class__._is_stateful = True
    try:
        with pytest.raises(ValueError, match=r"LlamaModel carries a state from token to token. Train it without"):
            PackingCollator(model, tiny_processor)
    finally:
        del model.model.language_model.__class__._is_stateful


def test_rows_have_the_length_that_is_asked_for(make_model, tiny_processor):
    some = [record("t", [f"{i}?"], ["yes"]) for i in range(9)]
    assert PackingCollator(make_model(), tiny_processor, packed_length=200)(some)["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match="packed_length must be 1 or more; got 0"):
        PackingCollator(make_model(), tiny_processor, packed_length=0)


def test_one_long_row_gives_the_loss_of_several_rows(make_model, tiny_processor, records):
    """Kernels of flash attention take one row, and tell records apart by positions."""
    model = make_model()
    batch = PackingCollator(model, tiny_processor, packed_length=100)(alone(records))
    assert len(batch["input_ids"]) > 1
    expected = packed_loss(model, model, batch)
    model.model.language_model.config._attn_implementation = "flash"
    seen = []
    forward = model.forward

    def run(**inputs):
        seen.append(inputs["input_ids"].shape)
        assert "attention_mask" not in inputs
        model.model.language_model.config._attn_implementation = "sdpa"
        return forward(**inputs)

    torch.testing.assert_close(packed_loss(run, model, batch), expected)
    assert seen == [(1, batch["input_ids"].numel())]
