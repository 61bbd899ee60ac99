"""Records to padded batches."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dps_hf.data.dropouts import Dropouts
from dps_hf.data.guidance import guide
from dps_hf.data.record import record
from dps_hf.inference import encode
from dps_hf.training.collator import RecordCollator, encode_drawings
from dps_hf.training.packing import PackingCollator


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def collate(tiny_model, tiny_processor):
    return RecordCollator(tiny_model, tiny_processor)


def labelled(batch: dict, row: int, processor) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def test_loss_is_on_the_answer_alone(collate, tiny_processor):
    batch = collate(
        [record("t", ["Which colour?", RED], ["red"]), record("t", ["And", BLUE, "this one here?"], ["blue"])]
    )
    assert labelled(batch, 0, tiny_processor) == "red<|im_end|>"
    assert labelled(batch, 1, tiny_processor) == "blue<|im_end|>"
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_a_drawing_is_learned_as_its_codes(collate, tiny_model, tiny_processor):
    batch = collate([record("t", ["a red square"], [RED])])
    pixels = tiny_processor.image_processor(RED, return_tensors="pt")["pixel_values"]
    assert labelled(batch, 0, tiny_processor) == (
        tiny_processor.drawing_text(tiny_model.encode_image(pixels)[0]) + "<|im_end|>"
    )
    assert "pixel_values" not in batch


def test_a_picture_in_the_prompt_stays_a_picture_when_the_answer_is_a_drawing(collate, tiny_processor):
    batch = collate([record("t", [RED, "make it blue"], [BLUE])])
    assert len(batch["pixel_values"]) == 1
    assert labelled(batch, 0, tiny_processor).startswith("<begin_of_image><img_")


def test_think_belongs_to_the_prompt(collate, tiny_processor):
    batch = collate([record("t", ["How many?"], ["<think>one, two</think>2"])])
    assert labelled(batch, 0, tiny_processor) == "one, two</think>2<|im_end|>"


def test_a_dropped_prompt_leaves_begin_of_image_and_the_drawing(collate, tiny_processor, token_ids):
    batch = collate([{**record("t", ["a red square"], [RED]), "drop_prompt": True}])
    seen = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert seen[0] == token_ids["<begin_of_image>"]
    assert (batch["labels"][0] == token_ids["<begin_of_image>"]).sum() == 0
    assert labelled(batch, 0, tiny_processor).startswith("<img_")


@pytest.fixture
def planned():
    example = record("t", ["a red square"], [RED], hint="Big.", steps="row 2: a square.")
    return guide(example, "steps")


def test_a_drawing_is_learned_with_the_plan_before_it(collate, planned, tiny_processor):
    text = labelled(collate([planned]), 0, tiny_processor)
    assert text.startswith("row 2: a square.</think><begin_of_image><img_") and text.endswith("<|im_end|>")


def test_a_dropped_prompt_takes_the_plan_along(make_model, tiny_processor, token_ids, planned):
    model = make_model()
    records = [planned, record("t", ["a blue square"], [BLUE])]
    batch = RecordCollator(model, tiny_processor)([{**one, "drop_prompt": True} for one in records])
    for row in range(2):
        seen = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert seen[0] == token_ids["<begin_of_image>"]
        assert labelled(batch, row, tiny_processor) == tiny_processor.tokenizer.decode(seen[1:])
    assert torch.isfinite(model(**batch).loss)


def test_an_edit_can_be_learned_without_its_picture(make_model, tiny_processor):
    model = make_model()
    edit = {**record("t", [RED, "make it blue"], [BLUE]), "drop_prompt": True}
    batch = RecordCollator(model, tiny_processor)([edit])
    assert len(batch["pixel_values"]) == 1 and batch["attention_mask"].sum() == 1 + 4 + 1 + 1
    assert torch.isfinite(model(**batch).loss)


def test_pictures_of_prompts_and_answers_go_their_own_ways(collate, tiny_model, tiny_processor):
    edits = [record("t", [RED, "make it blue"], [BLUE]), record("t", ["a red square"], [RED])]
    batch = collate([*edits, record("t", [BLUE, "Which colour?"], ["blue"])])
    pixels = tiny_processor.image_processor([RED, BLUE], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels)
    for row, picture in enumerate((BLUE, RED)):
        codes = encode(tiny_model, tiny_processor, [picture])[0]
        assert labelled(batch, row, tiny_processor) == tiny_processor.drawing_text(codes) + "<|im_end|>"


def test_encoding_keeps_what_guidance_needs(tiny_model, tiny_processor):
    example = record("t", ["a red square"], [RED], hint="Big.", steps="row 2: a square.")
    (encoded,) = encode_drawings([example], tiny_model, tiny_processor)
    assert {field: encoded[field] for field in ("task", "hint", "steps")} == {
        field: example[field] for field in ("task", "hint", "steps")
    }
    assert "<think>row 2: a square.</think><begin_of_image>" in "".join(
        part["text"] for part in guide(encoded, "steps")["messages"][1]["content"]
    )


def test_records_without_a_mark_lose_nothing(collate):
    assert collate([record("t", ["a red square"], [RED])])["attention_mask"].all()


def test_hidden_codes_are_still_learned(collate, tiny_processor, tiny_config):
    drawing = record("t", ["a red square"], [RED])
    plain, hidden = collate([drawing]), collate([{**drawing, "hidden_codes": 1.0, "hidden_codes_seed": 0}])
    assert torch.equal(hidden["labels"], plain["labels"])
    changed = hidden["input_ids"] != plain["input_ids"]
    assert changed.sum() == tiny_config.num_codes
    assert (hidden["input_ids"][changed] == tiny_config.pad_token_id).all()


def tokens_of_records(batch: dict) -> list[tuple[list[int], list[int]]]:
    """What the model sees of each record of a batch, and what it learns, in any order."""
    examples = batch["examples"] if "examples" in batch else batch["attention_mask"]
    found = []
    for ids, labels, belongs in zip(batch["input_ids"], batch["labels"], examples, strict=True):
        found += [(ids[belongs == i].tolist(), labels[belongs == i].tolist()) for i in range(1, belongs.max() + 1)]
    return sorted(found)


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
def test_a_record_loses_the_same_in_every_batch_in_training_and_in_evaluation(make_model, tiny_processor, collator):
    drawings = [record("t", [f"square {i}"], [RED]) for i in range(8)]
    records = Dropouts(drawings, seed=0, prompt_dropout=0.3, code_dropout=0.5)
    seen = []
    for training in (True, False):
        collate = collator(make_model().train(training), tiny_processor)
        for orders in ([[i] for i in range(8)], [[5, 2, 7], [0, 6, 1, 3], [4]], [[*range(8)]]):
            torch.rand(7), np.random.rand(7)  # a resumed training finds these generators elsewhere
            batches = (collate([records[i] for i in batch]) for batch in orders)
            seen.append(sorted(chain.from_iterable(map(tokens_of_records, batches))))
    assert all(some == seen[0] for some in seen)
    plain = [ids for drawing in drawings for ids, _ in tokens_of_records(collate([drawing]))]
    kept = sum(ids in plain for ids, _ in seen[0])
    shorter = sum(len(ids) < min(map(len, plain)) for ids, _ in seen[0])
    assert shorter > 0 and kept > 0 and shorter + kept < 8, "some lose their prompt, some nothing, some codes"


def kept_ways(picture: Image.Image, folder: Path) -> list:
    picture.save(folder / "picture.png")
    data = (folder / "picture.png").read_bytes()
    return [
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(folder / "picture.png")},
        data,
        str(folder / "picture.png"),
        folder / "picture.png",
        np.asarray(picture),
        np.asarray(picture).tolist(),
        np.asarray(picture).transpose(2, 0, 1) / 255,
        torch.from_numpy(np.asarray(picture).copy()),
    ]


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
def test_pictures_of_records_are_opened_however_they_are_kept(make_model, tiny_processor, tmp_path, collator):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    collate = collator(make_model(), tiny_processor)
    edit = record("t", [picture, "Draw it again."], [picture])  # in the question, and as an answer
    expected = collate([edit])
    for kept in kept_ways(picture, tmp_path):
        batch = collate([{**edit, "images": [kept, kept]}])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    plain = record("t", ["Say yes."], ["yes"])
    expected = collate([edit, plain])
    for nothing in (None, (), np.empty(0, dtype=object)):
        batch = collate([edit, {**plain, "images": nothing}])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        (None, r"record 1 of the batch: 'images'\[0\] holds no picture"),
        ({"bytes": None, "path": None}, r"record 1 of the batch: 'images'\[0\] holds no picture"),
        ({"bytes": b"x", "path": None}, "record 1 of the batch: .*corrupt or of an unknown format"),
        ("no/such.png", "record 1 of the batch: No picture at"),
        (7, "record 1 of the batch: A picture must be"),
    ],
)
def test_a_missing_picture_is_named_with_its_record(tiny_model, tiny_processor, collator, missing, complaint):
    right, wrong = (record("t", [RED, "What?"], ["red"]) for _ in range(2))
    with pytest.raises(ValueError, match=complaint):
        collator(tiny_model, tiny_processor)([right, {**wrong, "images": [missing]}])


def test_drawings_are_learned_at_their_own_size_not_at_the_towers(make_model, tiny_processor, monkeypatch):
    seen = []
    model = make_model()
    model.encode_image = lambda pixels: (
        seen.append(pixels.shape) or torch.zeros(len(pixels), model.config.grid_size**2)
    )
    monkeypatch.setattr(tiny_processor.image_processor, "size", {"height": 4, "width": 4})
    encode_drawings([record("t", ["a red square"], [RED])], model, tiny_processor)
    assert seen == [(1, 3, model.config.drawing_size, model.config.drawing_size)]
