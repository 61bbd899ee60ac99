"""Packed rows: to the model each record, and each question of it, is as if it stood alone."""

import copy
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import JanusVQVAEConfig, TrainingArguments

from dps_hf.data.guidance import guide
from dps_hf.data.record import record
from dps_hf.inference import encode
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packing import (
    BLOCK,
    ROW,
    DPSTrainer,
    PackingCollator,
    ShuffledWords,
    _NatsOfAnswers,
    _smoothed,
    attention_mask,
    name_alignment_loss,
    packed_loss,
)


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def asked():
    """Three questions about one picture."""
    return {**record("t", [RED, "What is it?"], ["a square"]), "more": [("Welche Farbe?", "rot"), ("Size?", "16")]}


@pytest.fixture
def records(asked):
    planned = guide(record("t", ["a red square"], [RED], steps="row 2: a square."), "steps", np.random.default_rng(0))
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
    one = int((collate(some[:1])["input_ids"] != collate.model.config.pad_token_id).sum())
    assert collate(some)["input_ids"].shape == (-(-len(some) // (ROW // one)), ROW)
    longer = collate([record("t", ["x" * 2 * ROW], ["yes"]), record("t", ["y"], ["no"])])
    assert longer["input_ids"].shape[1] > 2 * ROW


def test_codes_are_compared_with_codes_and_text_with_text(make_model, tiny_processor, records):
    model = make_model()
    batch = PackingCollator(model, tiny_processor)(records)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "pixel_values")}
    inputs["attention_mask"] = attention_mask(batch["examples"], batch["branches"])
    logits = model(**inputs).logits[:, :-1]
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    first = model.config.image_code_start_id
    is_code = (labels >= first) & (labels < first + model.config.codebook_size)
    is_text_row = torch.arange(logits.shape[-1]) < first
    logits = logits.masked_fill(is_code[..., None] == is_text_row, torch.finfo(torch.float32).min)
    nats = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(
        packed_loss(model, model, batch, codes_alone=True), (nats * weights).sum() / weights.sum()
    )


@pytest.mark.parametrize("tables", [[(4, 4)], [(4, 2), (2, 4)]])
@pytest.mark.parametrize("codes_alone", [True, False])
def test_a_smoothed_code_is_aimed_at_with_its_neighbours_digit_by_digit(
    make_model, make_config, tiny_processor, codes_alone, tables
):
    codes = make_config().image_tokenizer_config.to_dict() | dict(zip(("levels", "colour_levels"), tables))
    model = make_model(make_config(image_tokenizer_config=codes))
    first, share = model.config.image_code_start_id, 0.1
    processor = copy.copy(tiny_processor)
    processor.num_codes = model.config.num_codes
    batch = PackingCollator(model, processor)([record("t", ["a red square"], [RED])])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    inputs["attention_mask"] = attention_mask(batch["examples"], batch["branches"])
    labels, weights = batch["labels"][0, 1:], batch["loss_weights"][0, 1:]
    is_code = (labels >= first) & (labels < first + model.config.codebook_size)
    logits = model(**inputs).logits[0, :-1]
    if codes_alone:
        logits = logits.clone()
        logits[is_code, :first] = logits[~is_code, first:] = torch.finfo(torch.float32).min
    nats, expected = -logits.log_softmax(-1), 0.0
    for i in (labels != -100).nonzero().flatten().tolist():
        aims = {int(labels[i]): 1.0}
        if is_code[i]:
            start, levels = first, tables[0]
            if labels[i] >= first + np.prod(levels):
                start, levels = first + int(np.prod(levels)), tables[1]
            radix = np.cumprod([1, *levels[:-1]])
            digits = (int(labels[i]) - start) // radix % levels
            aims = {}
            for steps in itertools.product((-1, 0, 1), repeat=len(levels)):
                code = start + int(np.clip(digits + steps, 0, np.array(levels) - 1) @ radix)
                aims[code] = aims.get(code, 0.0) + float(np.prod([share if step else 1 - 2 * share for step in steps]))
            assert sum(aims.values()) == pytest.approx(1)
        expected += weights[i] * sum(odds * nats[i, token] for token, odds in aims.items())
    loss = packed_loss(model, model, batch, codes_alone, code_smoothing=share)
    torch.testing.assert_close(loss, expected / weights.sum())


def test_codes_are_smoothed_and_mostly_told_apart_alone_in_the_first_steps_and_in_no_evaluation(
    make_model, tiny_processor, tmp_path, monkeypatch
):
    smoothing, alone = [], []

    def seen(*_, codes_alone, code_smoothing):
        smoothing.append(code_smoothing)
        alone.append(codes_alone)

    monkeypatch.setattr("dps_hf.training.packing.packed_loss", seen)
    model = make_model().train()
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=10, use_cpu=True, report_to="none")
    trainer = DPSTrainer(model=model, args=args, processing_class=tiny_processor, code_smoothing=0.1)
    for trainer.state.global_step in range(10):
        trainer.compute_loss(model, {})
    assert smoothing == [0.1] * 6 + [0.0] * 4
    assert alone == [False, True, True, True, False, True] + [False] * 4
    trainer.state.global_step = 1
    trainer.compute_loss(model.eval(), {})
    assert (smoothing[-1], alone[-1]) == (0.0, False)


def test_without_smoothing_codes_and_words_are_told_apart_in_every_step(
    make_model, tiny_processor, tmp_path, monkeypatch
):
    alone = []
    monkeypatch.setattr("dps_hf.training.packing.packed_loss", lambda *_, codes_alone, **__: alone.append(codes_alone))
    model = make_model().train()
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=4, use_cpu=True, report_to="none")
    trainer = DPSTrainer(model=model, args=args, processing_class=tiny_processor)
    for trainer.state.global_step in range(4):
        trainer.compute_loss(model, {})
    assert alone == [False] * 4


def test_the_mean_of_neighbours_counts_a_code_twice_at_the_end_of_a_digit():
    line = torch.tensor([[8.0], [0.0], [0.0], [4.0]])
    torch.testing.assert_close(_smoothed(line, [4], 0.25), torch.tensor([[6.0], [2.0], [1.0], [3.0]]))


def test_smoothing_that_cannot_be_is_refused(make_model, tmp_path):
    model, args = make_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"between 0 and 0\.5; got 0\.7"):
        DPSTrainer(model=model, args=args, code_smoothing=0.7)
    model.config.image_tokenizer_config = JanusVQVAEConfig()
    with pytest.raises(ValueError, match=r"janus_vqgan.*has none. Set it to 0"):
        DPSTrainer(model=model, args=args, code_smoothing=0.1)


def test_a_dropped_prompt_leaves_begin_of_image_and_the_drawing(make_model, tiny_processor, token_ids, records):
    model = make_model().train()
    batch = PackingCollator(model, tiny_processor, prompt_dropout=1.0)(records[2:4])
    assert "pixel_values" not in batch, "the picture of the edit goes with its words"
    row = batch["input_ids"][0]
    begins = (row == token_ids["<begin_of_image>"]).nonzero().flatten().tolist()
    assert begins[0] == 0 and len(begins) == 2
    assert batch["position_ids"][0, begins[1]] == 0
    assert torch.isfinite(packed_loss(model, model, batch, codes_alone=True))


def test_hidden_codes_are_still_to_be_foretold_and_the_words_stay(make_model, tiny_processor):
    model = make_model().train()
    hidden = 0
    for i in range(20):
        example = record("t", [f"a red square, {i}"], [RED], steps="row 2")
        example = guide(example, "steps" if i % 2 else "none", np.random.default_rng(0))
        batch = PackingCollator(model, tiny_processor, code_dropout=1.0)([example])
        plain = PackingCollator(model, tiny_processor)([example])
        assert torch.equal(batch["labels"], plain["labels"])
        changed = batch["input_ids"] != plain["input_ids"]
        assert (batch["input_ids"][changed] == model.config.pad_token_id).all()
        assert (plain["input_ids"][changed] >= model.config.image_code_start_id).all(), "more than codes was hidden"
        hidden += int(changed.sum())
    assert hidden > 20


def test_nothing_is_dropped_in_evaluation(make_model, tiny_processor, records):
    model = make_model().eval()
    dropping = PackingCollator(model, tiny_processor, prompt_dropout=0.5, code_dropout=1.0)(records)
    plain = PackingCollator(model, tiny_processor)(records)
    assert all(torch.equal(dropping[name], plain[name]) for name in plain)


def test_a_drawing_of_an_earlier_turn_is_not_learned(make_model, tiny_processor):
    said = record("t", ["a red square"], [RED])
    asked = record("t", ["What is it?"], ["a square"])
    both = {**said, "messages": [*said["messages"], *asked["messages"]]}
    collate = PackingCollator(make_model().train(), tiny_processor, prompt_dropout=1.0)
    assert answers(collate([both]), tiny_processor) == ["a square"]


def test_what_is_dropped_depends_on_the_batch_alone(make_model, tiny_processor):
    collate = PackingCollator(make_model().train(), tiny_processor, prompt_dropout=0.3, code_dropout=0.5)
    examples = [record("t", [f"square {i}"], [RED]) for i in range(8)]
    first = collate(examples)
    torch.rand(7), np.random.rand(7)  # a resumed run finds the generators elsewhere
    again = collate(examples)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_batches_made_by_workers_equal_those_made_in_process(make_model, tiny_processor, records):
    model = make_model().train()
    collate = PackingCollator(model, tiny_processor, prompt_dropout=0.3, code_dropout=0.5)
    apart, together = (DataLoader(records * 2, 4, num_workers=n, collate_fn=collate) for n in (2, 0))
    for one, other in zip(apart, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_collator_keeps_a_copy_of_the_image_tokenizer_alone(make_model, tiny_processor):
    model = make_model()
    collate = PackingCollator(model, tiny_processor)
    copied = sum(parameter.numel() for parameter in collate.encoder.parameters())
    assert copied == sum(parameter.numel() for parameter in model.model.image_tokenizer.parameters())


def test_shuffled_words_keep_the_drawings():
    records = [record("t", ["red"], [RED]), record("t", ["blue"], [BLUE])]
    shuffled = ShuffledWords(records)[0]
    assert shuffled["messages"][0]["content"][0]["text"] == "blue"
    assert shuffled["images"] == [RED]


def test_names_in_two_languages_are_drawn_together(make_model, tiny_processor):
    model = make_model()
    optimizer = torch.optim.Adam(model.get_input_embeddings().parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = name_alignment_loss(model, tiny_processor, np.random.default_rng(0), count=8)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert tiny_processor.tokenizer.backend_tokenizer.padding is None  # as it will be saved


def test_tokens_that_come_after_the_codes_are_text(make_model, tiny_processor):
    model = make_model()
    end = model.config.image_code_start_id + model.config.codebook_size
    model.resize_token_embeddings(end + 2, mean_resizing=False)
    batch = PackingCollator(model, tiny_processor)([record("t", ["a red square"], [RED])])
    place = (batch["labels"] == model.config.eoi_token_id).nonzero()[0]
    batch["labels"][tuple(place)] = end + 1
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    inputs["attention_mask"] = attention_mask(batch["examples"], batch["branches"])
    logits = model(**inputs).logits[0, place[1] - 1]
    logits[model.config.image_code_start_id : end] = float("-inf")
    batch["loss_weights"][:] = 0.0
    batch["loss_weights"][tuple(place)] = 1.0
    loss = packed_loss(model, model, batch, codes_alone=True)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[end + 1])


def test_more_questions_share_the_pictures_that_begin_the_first(make_model, tiny_processor):
    late = {**record("t", ["Which", BLUE, "colour?"], ["blue"]), "more": [("Size?", "16")]}
    with pytest.raises(ValueError, match="must begin with its pictures"):
        PackingCollator(make_model(), tiny_processor)([late])


def test_in_bfloat16_the_loss_by_blocks_is_that_of_the_library():
    torch.manual_seed(0)
    hidden, rows = torch.randn(9, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels, weights = torch.randint(50, (9,)), torch.rand(9)
    with torch.autocast("cpu", torch.bfloat16):
        ours = _NatsOfAnswers.apply(hidden, rows, labels, weights)
        reference = (F.cross_entropy(F.linear(hidden, rows).float(), labels, reduction="none") * weights).sum()
    torch.testing.assert_close(ours, reference, rtol=1e-2, atol=1e-2)
    found = [torch.autograd.grad(total, (hidden, rows)) for total in (ours, reference)]
    for gradient, expected in zip(*found, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_the_loss_by_blocks_and_its_gradients_are_those_of_the_whole_table(count):
    torch.manual_seed(0)
    sides = [torch.randn(count, 16), torch.randn(50, 16)]
    labels, weights = torch.randint(50, (count,)), torch.rand(count)
    found = []
    for nats in (
        _NatsOfAnswers.apply,
        lambda hidden, rows, labels, weights: F.cross_entropy(hidden @ rows.T, labels, reduction="none") @ weights,
    ):
        hidden, rows = (side.clone().requires_grad_() for side in sides)
        total = nats(hidden, rows, labels, weights)
        (3 * total).backward()
        found.append((total, hidden.grad, rows.grad))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
