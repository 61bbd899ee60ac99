"""Drawings of records as codes: encoded in each batch, or once ahead of training."""

import copy
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, cast

import datasets
from accelerate import PartialState
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers.integrations import is_deepspeed_zero3_enabled

from dps_hf.data.dropouts import Records
from dps_hf.data.formats import BadRow
from dps_hf.data.record import Message, Record, count_drawings, get_pictures, split_pictures
from dps_hf.data.sources import LazyRecords, open_pictures
from dps_hf.inference import digest_weights, encode
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


SHARD = 4096  # records in one file of the cache; an interrupted encoding resumes at the first missing file
# Settings that say where a saved part comes from, and do not change its codes.
ORIGINS = ("architectures", "auto_map", "dtype", "processor_class", "transformers_version")

CODES = List(List(Value("int32")))
PARTS = List({"type": Value("string"), "text": Value("string")})
FEATURES = {
    "messages": List({"role": Value("string"), "content": PARTS}),
    "images": List(Image()),
    "codes": CODES,
    "task": Value("string"),
    "num_prompt_messages": Value("int64"),
    "hint": Value("string"),
    "steps": Value("string"),
    "more": List(List(Value("string"))),
    "image_tokenizer": Value("string"),
}


class EncodedRecords:
    """Records whose drawings are codes: `codes` holds them, and `images` only the pictures of the other messages.

    Args:
        records: where all but the codes comes from.
        codes: a row for each record: the `codes` of its drawings, `None` if it has none, and in `place` the index of
            the record that they belong to, another one if a picture is bad.
        fingerprint: differs for other records, another image tokenizer and other settings of drawings.
        image_tokenizer: its name, from [`name_image_tokenizer`], which saved records keep.
    """

    def __init__(self, records: Records, codes: Dataset, fingerprint: str, image_tokenizer: str):
        self.records, self.codes, self.fingerprint = records, codes, fingerprint
        self.image_tokenizer = image_tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        place, codes = self.codes[index]["place"], self.codes[index]["codes"]
        if codes is None:  # nothing is drawn, unless a row is bad and the next one draws, which is encoded later
            record = self.records[index]
            return record if _needs_codes(record) else cast(Record, {"codes": [], **record})
        if isinstance(self.records, LazyRecords):  # pictures of drawings need not be opened
            return cast(Record, {**self.records.open_prompt(place), "codes": codes})
        record = self.records[place]
        images = get_pictures(record) if record.get("codes") is not None else split_pictures(record)[0]
        return cast(Record, {**record, "images": images, "codes": codes})

    def to_dataset(self) -> Dataset:
        """Copies the records into one `datasets.Dataset`, without the pictures of drawings."""

        def make():
            for i in range(len(self)):
                record = cast(dict, self[i])
                yield {name: record.get(name) for name in FEATURES} | {"image_tokenizer": self.image_tokenizer}

        return Dataset.from_generator(make, features=Features(FEATURES), fingerprint=self.fingerprint)

    def save_to_disk(self, path: str | PathLike, **options: Any) -> None:
        """Saves the records, from which a model can be trained without its image tokenizer.

        Args:
            options: whatever `datasets.Dataset.save_to_disk` takes.
        """
        self.to_dataset().save_to_disk(path, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As [`~EncodedRecords.save_to_disk`], but uploads the records; `options` are those of `datasets`."""
        return self.to_dataset().push_to_hub(repo_id, **options)


def encode_ahead(
    records: Records, model: DPSForConditionalGeneration, processor: DPSProcessor, batch_size: int = 32
) -> EncodedRecords:
    """Encodes the drawings of records once, before training.

    The codes are kept in the cache of `datasets` (`HF_DATASETS_CACHE`), by a fingerprint of the records, the image
    tokenizer's weights and config, and the image processor's settings. A second call with the same things reads them
    from there. On several processes the main one encodes and the others wait. A set that takes longer than the time
    limit of the process group (`ddp_timeout`) should be encoded on one process first.

    Args:
        records: have an attribute `fingerprint`, are a `datasets.Dataset`, or are hashed as they are.
        model: may be on the CPU: drawings are encoded on the accelerator if there is one.
        batch_size: number of records that are encoded at a time.

    Raises:
        ValueError: `batch_size` is below 1, or a picture is missing or cannot be opened. The error names the number of
            the record.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    state, encoder = PartialState(), copy_image_tokenizer(model)
    fingerprint = Hasher.hash([fingerprint_of(records), digest_image_tokenizer(encoder, processor)])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dps_hf_codes" / fingerprint

    def encode_batch(batch: dict[str, list[int]]) -> dict[str, list]:
        encoder.to(state.device)
        places, some = zip(*(_find_drawing(records, index) for index in batch["index"]), strict=True)
        opened = _open(some, processor, [f"record {index}" for index in batch["index"]])
        codes = _encode(opened, encoder, processor)
        return {"codes": [found or None for found in codes], "place": list(places)}

    with state.main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        shards = []
        for start in range(0, max(len(records), 1), SHARD):
            stop = min(start + SHARD, len(records))
            shards.append(
                Dataset.from_dict({"index": range(start, stop)}).map(
                    encode_batch,
                    batched=True,
                    batch_size=batch_size,
                    remove_columns="index",
                    features=Features({"codes": CODES, "place": Value("int64")}),
                    load_from_cache_file=True,
                    cache_file_name=str(folder / f"{start}.arrow"),
                    new_fingerprint=f"{fingerprint}-{start}",
                    desc=f"Encoding the drawings of records {start} to {stop} of {len(records)}",
                )
            )
    return EncodedRecords(records, concatenate_datasets(shards), fingerprint, digest_weights(encoder.image_tokenizer))


def _find_drawing(records: Records, index: int) -> tuple[int, Record]:
    """A record and its index. The pictures of a record without a drawing are left out, and not opened."""
    place = index
    if isinstance(records, LazyRecords):
        try:
            record = records.peek(index)
        except BadRow:
            record = None
        if record is None or count_drawings(record):
            place, record = records.find(index)
    else:
        record = records[index]
    if record.get("codes") is None and not count_drawings(record):
        record = cast(Record, {**record, "images": []})
    return place, record


def fingerprint_of(records: Records) -> str:
    """What tells records from other records."""
    for name in ("fingerprint", "_fingerprint"):
        if found := getattr(records, name, None):
            return str(found)
    return Hasher.hash(records)


def digest_image_tokenizer(encoder: DPSModel, processor: DPSProcessor) -> str:
    """A digest of everything that the codes of a picture depend on."""
    settings = [
        {name: value for name, value in some.to_dict().items() if name not in ORIGINS and not name.startswith("_")}
        for some in (encoder.image_tokenizer.config, processor.image_processor)
    ]
    return digest_weights(encoder.image_tokenizer) + json.dumps(settings, sort_keys=True, default=str)


def name_image_tokenizer(model: DPSForConditionalGeneration) -> str:
    """A name that says what codes mean: the digest of the image tokenizer's weights, 12 hex digits."""
    return digest_weights(copy_image_tokenizer(model).image_tokenizer)


def encode_drawings(
    records: list[Record], model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor
) -> list[Record]:
    """The records with each picture in an answer replaced by the text of its codes.

    trl's trainers accept pictures in prompts only, so drawings reach them as text. Pictures are opened, whether they
    are given as pictures, arrays, bytes or paths. Only drawings without `codes` are encoded.

    Raises:
        ValueError: a picture is missing or cannot be opened, or codes do not belong to this image tokenizer. The error
            names the record's place in the batch.
    """
    places = [f"record {i} of the batch" for i in range(len(records))]
    records = _open(records, processor, places)
    encoded = []
    for place, record, codes in zip(places, records, _encode(records, model, processor), strict=True):
        try:
            drawings = iter([_write_drawing(processor, one) for one in codes])
        except ValueError as error:
            raise ValueError(f"{place}: 'codes' belong to another image tokenizer: {error}") from error
        messages = [
            Message(
                role=message["role"],
                content=[
                    {"type": "text", "text": next(drawings)}
                    if part["type"] == "image" and message["role"] == "assistant"
                    else {"type": "image"}
                    if part["type"] == "image"
                    else {"type": "text", "text": part["text"]}
                    for part in message["content"]
                ],
            )
            for message in record["messages"]
        ]
        images = record["images"] if record.get("codes") is not None else split_pictures(record)[0]
        rest = {name: value for name, value in record.items() if name != "codes"}
        encoded.append(cast(Record, {**rest, "messages": messages, "images": images}))
    return encoded


def _write_drawing(processor: DPSProcessor, codes: Any) -> str:
    codes = [int(code) for code in codes]
    if codes and not 0 <= min(codes) <= max(codes) < len(processor.code_ids):
        raise ValueError(f"they must lie in [0, {len(processor.code_ids)}); got {min(codes)} to {max(codes)}.")
    return processor.drawing_text(codes)


def _encode(
    records: list[Record], model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor
) -> list[list[list[int]]]:
    """The codes of each drawing of each record; those that a record has are taken as they are."""
    drawings = [image for record in records if _needs_codes(record) for image in split_pictures(record)[1]]
    codes = iter(encode(model, processor, drawings).tolist() if drawings else ())
    return [
        [next(codes) for _ in range(count_drawings(record))]
        if record.get("codes") is None
        else [[int(code) for code in drawing] for drawing in record["codes"]]
        for record in records
    ]


def _needs_codes(record: Record) -> bool:
    return record.get("codes") is None and count_drawings(record) > 0


def _open(records: Sequence[Record], processor: DPSProcessor, places: list[str]) -> list[Record]:
    opened = []
    for place, record in zip(places, records, strict=True):
        try:
            opened.append(cast(Record, {**record, "images": open_pictures(record, processor.image_processor)}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
    return opened


def copy_image_tokenizer(model: DPSForConditionalGeneration) -> DPSModel:
    """A copy of the image tokenizer on the CPU, because a loader's workers must not touch the model's accelerator."""
    others = {id(part): None for name, part in model.model.named_children() if name != "image_tokenizer"}
    whole: AbstractContextManager = nullcontext()
    if is_deepspeed_zero3_enabled():  # which shards all weights as soon as they are loaded
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([*model.model.image_tokenizer.parameters()])
    with whole:
        return copy.deepcopy(model.model, others).cpu().requires_grad_(False)
