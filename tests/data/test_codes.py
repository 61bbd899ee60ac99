"""Drawings that are encoded once, ahead of training."""

import os

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from PIL import Image
from two_processes import run_on_two

from dps_hf.data.codes import encode_ahead, encode_drawings
from dps_hf.data.dropouts import Dropouts
from dps_hf.data.record import record, validate
from dps_hf.data.sources import read_records
from dps_hf.inference import load
from dps_hf.model.image_tokenizer_dps import DPSImageTokenizer
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packing import PackingCollator


# Noise, so that their codes differ.
RED, BLUE, GREEN = map(Image.fromarray, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))


class Records:
    """A list with a fingerprint, which counts how often a record is read."""

    def __init__(self, records, fingerprint):
        self.records, self.fingerprint, self.read = records, fingerprint, 0

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.read += 1
        return self.records[index]


@pytest.fixture
def make_seeing_model(make_model):
    """Makes models whose image tokenizer tells pictures apart, unlike one of fresh weights."""

    def make():
        model = make_model()
        for part in (0, -1):
            torch.nn.init.normal_(model.model.image_tokenizer.encoder[part].weight)
        return model

    return make


@pytest.fixture
def records():
    two = record("t", ["a red square"], [RED])
    two["messages"] += record("t", [BLUE, "and now this in green"], [GREEN])["messages"]
    two["images"] = [RED, BLUE, GREEN]
    return [two, record("t", [RED, "Which colour?"], ["red"]), record("t", ["a blue square"], [BLUE])]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def encoded_pictures(monkeypatch):
    """The number of pictures in each call of the image tokenizer."""
    calls, encode = [], DPSImageTokenizer.encode

    def count(self, pixel_values):
        calls.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(DPSImageTokenizer, "encode", count)
    return calls


@pytest.mark.parametrize("collator", [RecordCollator, PackingCollator])
def test_batches_of_codes_equal_those_of_pictures(make_seeing_model, tiny_processor, records, collator):
    model = make_seeing_model()
    collate = collator(model, tiny_processor)
    ahead = encode_ahead(records, model, tiny_processor)
    one, other = (collate([some[i] for i in range(3)]) for some in (records, ahead))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert len({str(codes) for i in range(3) for codes in ahead[i]["codes"]}) == 3
    assert [len(ahead[i]["images"]) for i in range(3)] == [1, 1, 0]
    for i in range(3):
        validate(ahead[i])


def test_each_drawing_is_encoded_once_in_batches(make_model, tiny_processor, records, encoded_pictures):
    model, some = make_model(), Records(records, "a")
    ahead = encode_ahead(some, model, tiny_processor, batch_size=2)
    assert encoded_pictures == [2, 1]
    read = some.read
    again = encode_ahead(some, model, tiny_processor, batch_size=2)
    assert encoded_pictures == [2, 1] and some.read == read, "the second call reads the cache"
    assert again.fingerprint == ahead.fingerprint and again[0]["codes"] == ahead[0]["codes"]
    for _ in range(2):
        RecordCollator(model, tiny_processor)([again[i] for i in range(3)])
    assert encoded_pictures == [2, 1], "no epoch encodes"


def test_other_records_weights_and_settings_are_encoded_anew(make_model, tiny_processor, records, encoded_pictures):
    model, found = make_model(), set()
    found.add(encode_ahead(Records(records, "a"), model, tiny_processor).fingerprint)
    found.add(encode_ahead(Records(records, "b"), model, tiny_processor).fingerprint)
    found.add(encode_ahead(records, model, tiny_processor).fingerprint)
    found.add(encode_ahead(records[:2], model, tiny_processor).fingerprint)
    torch.nn.init.normal_(model.model.image_tokenizer.encoder[0].weight)
    found.add(encode_ahead(Records(records, "a"), model, tiny_processor).fingerprint)
    assert len(found) == 5 and encoded_pictures == [3, 3, 3, 2, 3]
    mean, tiny_processor.image_processor.image_mean = tiny_processor.image_processor.image_mean, [0.4, 0.5, 0.5]
    try:
        found.add(encode_ahead(Records(records, "a"), model, tiny_processor).fingerprint)
    finally:
        tiny_processor.image_processor.image_mean = mean
    assert len(found) == 6 and len(encoded_pictures) == 6


def test_an_interrupted_encoding_goes_on_where_it_stopped(
    make_model, tiny_processor, records, encoded_pictures, monkeypatch
):
    monkeypatch.setattr("dps_hf.data.codes.SHARD", 2)
    model, some = make_model(), Records([*records, record("t", ["x"], ["no/such.png"])], "a")
    some.records[3] = {**record("t", ["x"], [RED]), "images": ["no/such.png"]}
    with pytest.raises(ValueError, match="record 3: No picture at"):
        encode_ahead(some, model, tiny_processor, batch_size=1)
    assert encoded_pictures == [2, 1]
    some.records[3] = record("t", ["x"], [RED])
    ahead = encode_ahead(some, model, tiny_processor, batch_size=1)
    assert encoded_pictures == [2, 1, 1, 1], "only the unfinished file is written again"
    assert len(ahead) == 4 and len(ahead[3]["codes"]) == 1


def test_a_saved_set_trains_without_the_image_tokenizer(
    make_seeing_model, tiny_processor, records, encoded_pictures, tmp_path
):
    model = make_seeing_model()
    expected = PackingCollator(model, tiny_processor)(records)
    encode_ahead(Records(records, "a"), model, tiny_processor).save_to_disk(tmp_path / "set")
    torch.nn.init.normal_(model.model.image_tokenizer.encoder[0].weight)  # as with a config in place of a checkpoint
    encoded_pictures.clear()
    saved = read_records(tmp_path / "set")
    assert [len(one["images"]) for one in saved] == [1, 1, 0]
    batch = PackingCollator(model, tiny_processor)([saved[i] for i in range(3)])
    assert not encoded_pictures and all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_saved_set_that_is_encoded_again_keeps_its_codes(make_model, tiny_processor, records, encoded_pictures):
    model = make_model()
    ahead = encode_ahead(records, model, tiny_processor)
    again = encode_ahead(ahead, model, tiny_processor)
    assert encoded_pictures == [3] and [again[i] for i in range(3)] == [ahead[i] for i in range(3)]


def test_dropouts_wrap_records_with_codes(make_model, tiny_processor, records, token_ids):
    model = make_model()
    dropping = Dropouts(encode_ahead(records, model, tiny_processor), seed=0, prompt_dropout=1.0)
    batch = RecordCollator(model, tiny_processor)([dropping[2]])
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()][0] == token_ids["<begin_of_image>"]


def test_all_processes_wait_for_the_main_one(make_model, tiny_processor, records, encoded_pictures, monkeypatch):
    order = []

    class FirstMain:
        def __enter__(self):
            order.append(len(encoded_pictures))

        def __exit__(self, *_):
            order.append(len(encoded_pictures))

    monkeypatch.setattr("dps_hf.data.codes.PartialState.main_process_first", lambda self: FirstMain())
    encode_ahead(records, make_model(), tiny_processor)
    assert order == [0, 1], "all encoding is inside"


def encode_on(rank: int, base: str, cache: str) -> tuple[int, list]:
    """The number of records that a process read to encode them, and the codes that it gets."""
    datasets.config.HF_DATASETS_CACHE = cache
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # all as launchers do
    PartialState(cpu=True)  # as `TrainingArguments` does
    model, processor = load(base, device="cpu")
    some = Records([record("t", ["a red square"], [RED]), record("t", ["a blue square"], [BLUE])], "a")
    ahead = encode_ahead(some, model, processor)
    return some.read, [ahead[i]["codes"] for i in range(2)]


@pytest.mark.slow
def test_of_two_processes_the_main_one_encodes(saved_model, tmp_path):
    (first, codes), (second, others) = run_on_two(encode_on, tmp_path, saved_model, str(tmp_path / "shared"))
    assert (first, second) == (2, 0) and codes == others


def test_codes_of_another_image_tokenizer_are_refused(tiny_model, tiny_processor):
    drawing = {**record("t", ["a red square"], [RED]), "images": []}
    for codes, complaint in (([0, 1, 2, 99], r"in \[0, 16\); got 0 to 99"), ([0, 1, 2], "must be 4")):
        with pytest.raises(ValueError, match=f"record 0 of the batch: 'codes' belong to another .*{complaint}"):
            encode_drawings([{**drawing, "codes": [codes]}], tiny_model, tiny_processor)


def test_an_empty_set_and_a_dataset_of_rows_are_encoded(make_model, tiny_processor, records):
    model = make_model()
    assert len(encode_ahead([], model, tiny_processor)) == 0
    rows = Dataset.from_list([{"messages": record("t", ["Hello"], ["Hi"])["messages"]}])
    assert encode_ahead(rows, model, tiny_processor)[0]["codes"] == []


def test_a_batch_size_below_one_is_refused(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match="batch_size must be 1 or more; got 0"):
        encode_ahead([], tiny_model, tiny_processor, batch_size=0)
