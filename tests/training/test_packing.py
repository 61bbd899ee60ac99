"""Packed rows: to the model each record, and each question of it, is as if it stood alone."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dps_hf.data.dropouts import Dropouts
from dps_hf.data.guidance import guide
from dps_hf.data.record import record
from dps_hf.inference import encode
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packed_loss import packed_loss
from dps_hf.training.packing import ROW, PackingCollator


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
    packed = packed_loss(model, model, PackingCollator(model, tiny_processor)(records), codes_alone=False)
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
    losses = [packed_loss(model, model, collate(some), codes_alone=False) for some in ([twice], alone([twice]))]
    torch.testing.assert_close(*losses)


def test_each_record_gets_the_gradient_of_its_own(make_model, tiny_processor, asked):
    gradients = []
    for examples in ([asked], alone([asked])):
        model = make_model()
        packed_loss(model, model, PackingCollator(model, tiny_processor)(examples), codes_alone=False).backward()
        gradients.append(model.model.connector.linear_1.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_rows_are_full_and_longer_only_where_a_record_is(make_model, tiny_processor):
    collate = PackingCollator(make_model(), tiny_processor)
    some = [record("t", [f"{i}?"], ["yes"]) for i in range(9)]
    one = int((collate(some[:1])["input_ids"] != collate.config.pad_token_id).sum())
    assert collate(some)["input_ids"].shape == (-(-len(some) // (ROW // one)), ROW)
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
    assert torch.isfinite(packed_loss(model, model, batch, codes_alone=True))


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
