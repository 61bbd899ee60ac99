"""Records that a model cannot learn from: too long ones, and codes of another image tokenizer."""

import json

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from dps_hf.data.codes import encode_ahead
from dps_hf.data.formats import BadRow
from dps_hf.data.preferences import read_preferences
from dps_hf.data.record import record
from dps_hf.data.sources import read_records
from dps_hf.training.checks import RecordCheck
from dps_hf.training.collator import RecordCollator
from dps_hf.training.datasets import DataArguments, make_training_data


LIMIT = 256  # of the tiny decoders
RED = Image.new("RGB", (16, 16), "red")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def check(tiny_model, tiny_processor):
    return RecordCheck(tiny_model, tiny_processor)


@pytest.mark.parametrize(
    "one",
    [
        record("t", ["Hi"], ["Ho"]),
        record("t", [RED, "What is this? ", RED], ["<think>It is red.</think>red"]),
        record("t", ["a red square"], [RED]),
        {"messages": record("t", [], ["plain text"])["messages"][1:], "images": [], "task": "t"},
    ],
)
def test_tokens_are_counted_as_the_collator_makes_them(check, tiny_model, tiny_processor, one):
    batch = RecordCollator(tiny_model, tiny_processor)([one])
    assert check.count_tokens(one) == batch["attention_mask"].sum() <= check._bound_tokens(one)


def test_the_last_record_that_fits_is_learned_and_a_longer_one_is_not(check, tiny_model, tiny_processor):
    rest = LIMIT - check.count_tokens(record("t", ["Hi"], [""]))
    fits, longer = (record("t", ["Hi"], ["o" * (rest + more)]) for more in (0, 1))
    collator = RecordCollator(tiny_model, tiny_processor)
    check(fits)
    assert collator([fits])["input_ids"].shape == (1, LIMIT)
    with pytest.raises(
        BadRow, match=r"too long: 257 tokens, and max_position_embeddings of the decoder is 256\. Short"
    ):
        check(longer)
    with pytest.raises(ValueError, match=r"record 0 of the batch \('Hi'\) is too long: 257 tokens, and max_position"):
        collator([longer])


def test_a_prompt_must_leave_room_for_its_answer(tiny_model, tiny_processor):
    prompt = {**record("t", ["o" * 100], []), "messages": record("t", [RED, "o" * 100], [])["messages"][:1]}
    length = RecordCheck(tiny_model, tiny_processor).count_tokens(prompt)
    RecordCheck(tiny_model, tiny_processor, LIMIT - length)(prompt)
    with pytest.raises(BadRow, match="too long: 257 tokens"):
        RecordCheck(tiny_model, tiny_processor, LIMIT - length + 1)(prompt)


@pytest.mark.parametrize("decoder", ["gpt2", "qwen2", "gemma2"])
def test_every_kind_of_decoder_has_its_limit(decoder, make_model, make_config, make_decoder_config, tiny_processor):
    model = make_model(make_config(text_config=make_decoder_config(decoder)))
    with pytest.raises(ValueError, match="of the decoder is 256"):
        RecordCollator(model, tiny_processor)([record("t", ["Hi"], ["o" * 300])])


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_are_too_long_are_skipped_and_listed(streaming, tiny_model, tiny_processor, tmp_path):
    rows = [{"prompt": "Hi", "completion": "o" * (400 if i == 2 else 4)} for i in range(6)]
    data = DataArguments({"path": lines(tmp_path / "rows.jsonl", rows), "streaming": streaming}, prompt_dropout=0.0)
    training = TrainingArguments(str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none")
    records = make_training_data(data, training, tiny_model, tiny_processor)[0]
    made = list(records) if streaming else [records[i] for i in range(6)]
    assert len(made) == (5 if streaming else 6) and RecordCollator(tiny_model, tiny_processor)(made)
    listed = json.loads((tmp_path / "run" / "skipped.jsonl").read_text())
    assert listed["row"] == 2 and listed["reason"].startswith("too long: 4")


def test_where_all_rows_are_too_long_the_error_says_so(check, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "o" * 400}] * 3)
    with pytest.raises(
        ValueError, match=r"No row of .*rows.jsonl is good. The most frequent reason, 3 times: too long"
    ):
        read_records(path, check=check)[0]


def test_long_pairs_are_skipped_and_listed(check, tmp_path):
    pairs = [{"prompt": "Hi", "chosen": "o" * (400 if i == 1 else 4), "rejected": "No"} for i in range(3)]
    path = lines(tmp_path / "pairs.jsonl", pairs)
    assert len(read_preferences(path)) == 3
    assert len(read_preferences(path, skipped=tmp_path / "skipped.jsonl", check=check)) == 2
    assert "too long" in json.loads((tmp_path / "skipped.jsonl").read_text())["reason"]


@pytest.mark.parametrize("kind", ["saved", "parquet", "streamed"])
def test_codes_of_another_image_tokenizer_are_refused_and_both_are_named(
    kind, make_model, tiny_processor, check, tmp_path
):
    encoded = encode_ahead(
        [record("t", ["a red square"], [RED]), record("t", ["Hi"], ["Ho"])], make_model(), tiny_processor
    )
    path = tmp_path / ("set.parquet" if kind == "parquet" else "set")
    encoded.to_dataset().to_parquet(path) if kind == "parquet" else encoded.save_to_disk(path)
    setting = {"path": str(path), "streaming": kind == "streamed"}
    assert next(iter(read_records(setting, check=check)))["image_tokenizer"] == check.image_tokenizer
    model = make_model()
    torch.nn.init.ones_(model.model.image_tokenizer.encoder[0].weight)
    other = RecordCheck(model, tiny_processor)
    names = f"image tokenizer {check.image_tokenizer}, and the model has {other.image_tokenizer}"
    with pytest.raises(ValueError, match=f"{names}. Train a model with that one, or encode the pictures again"):
        list(read_records(setting, check=other))
