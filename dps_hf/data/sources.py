"""Records and pairs that `datasets` saved in a folder."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, List, load_from_disk
from PIL.Image import Image as Picture

from dps_hf.data.record import pictures_of, validate
from dps_hf.model.image_processing_dps import DPSImageProcessor, array_to_picture


IMAGE_PROCESSOR = DPSImageProcessor(fetch_urls=True)  # as `datasets` does


def read_saved(path: str | Path, field: str = "dataset") -> Dataset:
    """The one set of records in a folder.

    Args:
        field: what errors call it.

    Raises:
        FileNotFoundError: `datasets` saved nothing there.
        ValueError: it has several splits, or no records.
    """
    try:
        dataset = load_from_disk(path)
    except IndexError:  # how `datasets` meets a set without files
        dataset = Dataset.from_dict({})
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{field} must name a folder with one set of records; {path} has {', '.join(dataset)}.")
    if not len(dataset):
        raise ValueError(f"{field} must name a folder with records; {path} has none. Save some, or name another one.")
    return dataset


def read_records(path: str | Path) -> Dataset:
    """Records to learn from, each of them checked; their pictures are opened when a record is asked for.

    Raises:
        FileNotFoundError, ValueError: as `read_saved`; or a record is wrong, or does not end with an answer, and its number
            is named.
    """
    dataset = unopened(read_saved(path))
    for i, one in enumerate(dataset):
        try:
            validate(one)
            if len(one["messages"]) < 2 or one["messages"][-1]["role"] != "assistant":
                raise ValueError(
                    "'messages' must end with a question and its answer, by the assistant. Add the answer."
                )
        except ValueError as error:
            raise ValueError(f"record {i} of {path}: {error}") from error
    return dataset.with_transform(_open_rows)


def read_preferences(path: str | Path) -> Dataset:
    """Pairs or single responses as trl takes them; their pictures are not opened yet.

    Raises:
        FileNotFoundError, ValueError: as `read_saved`; or a picture is missing, and the number of its record is named.
    """
    dataset = unopened(read_saved(path))
    if "images" in dataset.column_names:
        for i, one in enumerate(dataset.select_columns("images")):
            try:
                pictures_of(one)
            except ValueError as error:
                raise ValueError(f"record {i} of {path}: {error}") from error
    return dataset


def unopened(dataset: Dataset) -> Dataset:
    """The same rows with pictures as bytes or paths, which DPS opens where `datasets` fails, as with odd EXIF tags."""
    for name, kind in dataset.features.items():
        if isinstance(kind, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(kind, List) and isinstance(kind.feature, Image):
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset


def open_pictures(example: Any, image_processor: DPSImageProcessor) -> list[Picture]:
    """The pictures of a record, however they were kept: as such, as arrays, as bytes or as paths.

    Raises:
        TypeError, ValueError: one of them is missing, is no picture, or cannot be opened.
    """
    # Without a format `datasets` gives arrays as lists of numbers.
    kept = [np.asarray(image) if isinstance(image, (list, tuple)) else image for image in pictures_of(example)]
    opened = image_processor.fetch_images(kept)
    return [image if isinstance(image, Picture) else array_to_picture(image) for image in opened]


def _open_rows(rows: dict[str, list]) -> dict[str, list]:
    if "images" not in rows:  # another column was asked for
        return rows
    images = [open_pictures({"images": images}, IMAGE_PROCESSOR) for images in rows["images"]]
    return {**rows, "images": images}
