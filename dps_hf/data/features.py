"""The features of pictures from a frozen vision tower, computed once ahead of training."""

import json
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import torch
from accelerate import PartialState
from datasets import Array2D, Dataset, Features, Value
from datasets.fingerprint import Hasher
from transformers.integrations import is_deepspeed_zero3_enabled

from dps_hf.data.codes import fingerprint_of
from dps_hf.data.dropouts import Records
from dps_hf.data.record import Record
from dps_hf.data.sources import LazyRecords
from dps_hf.inference import digest_weights
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


READ_TWICE = 16  # records whose pictures are compared between two readings


class FeaturedRecords:
    """Records whose `images` are the features that the vision tower has of them.

    Args:
        records: where all but the features comes from.
        features: a row for each picture, `record`, the index of its record, and `features`, float16 of shape
            `(num_image_tokens, hidden_size of the tower)`.
        fingerprint: differs for other records, another tower and other settings of pictures.
    """

    def __init__(self, records: Records, features: Dataset, fingerprint: str):
        self.records, self.fingerprint = records, fingerprint
        self.features = features.with_format("torch", columns=["features"], dtype=torch.float16)
        self.starts = np.searchsorted(np.array(features["record"]), np.arange(len(records) + 1))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        start, stop = self.starts[index : index + 2].tolist()
        found = self.features[start:stop]["features"] if stop > start else ()
        return cast(Record, {**self.records[index], "images": [*found]})


def compute_features_ahead(
    records: Records, model: DPSForConditionalGeneration, processor: DPSProcessor, batch_size: int = 32
) -> FeaturedRecords:
    """Computes the features of all pictures in prompts once, before training. The connector still learns.

    They are kept in the cache of `datasets`, as float16, by a fingerprint of the records, the tower's weights and the
    image processor's settings. For a tower of 196 tokens of width 768, a picture takes 0.3 MB there. On several
    processes the main one computes and the others wait.

    Raises:
        ValueError: the tower is trained or has dropout, drawings are not encoded ahead, or pictures differ from one
            reading to the next, as with random crops.
    """
    tower, config = model.model.vision_tower, model.config.vision_config
    live = "Set vision_features to 'live'."
    if is_deepspeed_zero3_enabled() or any(weight.requires_grad for weight in tower.parameters()):
        raise ValueError(f"vision_features: ahead needs a frozen vision tower, which ZeRO-3 does not shard. {live}")
    if config.attention_dropout:
        raise ValueError(
            f"vision_features: ahead needs a tower without dropout; it has {config.attention_dropout}. {live}"
        )
    if isinstance(records, LazyRecords) and records.may_draw:
        raise ValueError("vision_features: ahead needs encode_drawings: ahead, since both are pictures of a record.")
    for index in range(min(len(records), READ_TWICE)):
        once, again = (records[index]["images"] for _ in range(2))
        if any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(once, again, strict=True)):
            raise ValueError(f"The pictures of record {index} differ from one reading to the next. {live}")
    state = PartialState()
    settings = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    fingerprint = Hasher.hash([fingerprint_of(records), digest_weights(tower), settings])
    file = Path(datasets.config.HF_DATASETS_CACHE) / "dps_hf_features" / f"{fingerprint}.arrow"
    shape = (config.image_size // config.patch_size) ** 2, config.hidden_size

    @torch.no_grad()
    def compute(batch: dict[str, list[int]]) -> dict[str, list]:
        pictures = [(index, picture) for index in batch["index"] for picture in records[index]["images"]]
        if not pictures:
            return {"record": [], "features": []}
        pixels = processor.image_processor([picture for _, picture in pictures], return_tensors="pt")["pixel_values"]
        pixels = pixels.to(state.device, tower.dtype)
        features = tower.to(state.device)(pixels).last_hidden_state.half().cpu()
        if not features.isfinite().all():
            raise ValueError(f"The vision tower's features are too large for float16. {live}")
        return {"record": [index for index, _ in pictures], "features": list(features.numpy())}

    place = tower.device
    with state.main_process_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = Dataset.from_dict({"index": range(len(records))}).map(
            compute,
            batched=True,
            batch_size=batch_size,
            remove_columns="index",
            features=Features({"record": Value("int64"), "features": Array2D(shape, "float16")}),
            load_from_cache_file=True,
            cache_file_name=str(file),
            new_fingerprint=fingerprint,
            desc="Computing the features of pictures",
        )
    tower.to(place)
    return FeaturedRecords(records, found, fingerprint)
