"""Pictures of records as tensors, for models that take pictures only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from PIL import Image

from dps_hf.data.dropouts import Records
from dps_hf.data.formats import BadRow
from dps_hf.data.record import Record
from dps_hf.data.rows import DatasetSetting
from dps_hf.data.sources import LazyRecords, read_records
from dps_hf.model.image_processing_dps import DPSImageProcessor


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as `(3, height, width)` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class ToPixels:
    """The first picture of a record, as `{"pixel_values": (3, size, size) float32 in [-1, 1]}`.

    size: the side of the square, in pixels. `None` leaves the picture as it is.
    fit: how a picture becomes a square, as the `drawing_fit` of [`DPSImageProcessor`].
    """

    size: int | None = None
    fit: str = "crop"

    def __call__(self, record: Record | Mapping[str, Any]) -> dict[str, torch.Tensor]:
        image = record["images"][0]
        if self.size is not None:
            processor = DPSImageProcessor(size={"height": self.size, "width": self.size}, fit=self.fit)
            image = Image.fromarray(np.moveaxis(processor.process_image(image), 0, -1))
        return {"pixel_values": to_pixels(image)}


class Pictures(torch.utils.data.Dataset):
    """The first picture of each record as pixels, see [`ToPixels`]."""

    def __init__(self, records: Records, size: int | None = None, fit: str = "crop"):
        self.records, self.to_pixels = records, ToPixels(size, fit)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.to_pixels(self.records[index])


def read_pictures(
    dataset: DatasetSetting, seed: int = 0, skipped: str | Path | None = None, max_skipped: float = 0.1
) -> LazyRecords | IterableDataset:
    """Reads records for their pictures, as [`read_records`] does. Rows without a picture are bad."""
    return read_records(dataset, seed, skipped, max_skipped, _HasPicture(), pictures_only=True)


class _HasPicture:
    fingerprint = "has a picture"

    def __call__(self, record: Record) -> None:
        if not record["images"]:
            raise BadRow("no picture")
