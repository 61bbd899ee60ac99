"""Reads records and preferences from a folder that `datasets` saved, or from a user's function."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, List, load_from_disk
from PIL.Image import Image as Picture

from dps_hf.data.dropouts import Records
from dps_hf.data.record import get_pictures, validate
from dps_hf.model.image_processing_dps import DPSImageProcessor, array_to_picture
from dps_hf.resolve import resolve


DOTTED_PATH = re.compile(r"\w+(\.\w+)+")
IMAGE_PROCESSOR = DPSImageProcessor(fetch_urls=True)  # like `datasets`


def read_dataset(source: str | Path, field: str = "dataset") -> Dataset:
    """Reads the rows of a data set.

    Args:
        source: a folder that `Dataset.save_to_disk` wrote, or the dotted path of a function without arguments that
            returns a `datasets.Dataset` or a list of rows, such as `my_package.my_dataset`.
        field: the name of this setting in errors.

    Raises:
        FileNotFoundError: there is no saved data set at this path.
        ValueError: the function does not exist or returns something else, or the data set has several splits or no
            rows.
    """
    if not Path(source).exists() and DOTTED_PATH.fullmatch(str(source)):
        dataset = _call(str(source), field)
    else:
        try:
            dataset = load_from_disk(source)
        except IndexError:  # datasets raises it for a data set without files
            dataset = Dataset.from_dict({})
    if not isinstance(dataset, Dataset):
        got = ", ".join(dataset) if isinstance(dataset, dict) else type(dataset).__name__
        raise ValueError(f"{field} must name one set of records; {source} has {got}.")
    if not len(dataset):
        raise ValueError(f"{field} must name a set with records; {source} has none. Add records, or name another one.")
    return dataset


@cache
def _call(path: str, field: str) -> Any:
    rows = resolve(path, field)()
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def read_records(source: str | Path) -> Dataset:
    """Reads records for training and checks each. Pictures are opened when a record is requested.

    Args:
        source: as for [`read_dataset`].

    Raises:
        FileNotFoundError, ValueError: as for [`read_dataset`]. Or a record is wrong or does not end with an answer.
            The error gives its number.
    """
    dataset = leave_unopened(read_dataset(source))
    for i, one in enumerate(dataset):
        try:
            validate(one)
            if len(one["messages"]) < 2 or one["messages"][-1]["role"] != "assistant":
                raise ValueError(
                    "'messages' must end with a question and its answer, by the assistant. Add the answer."
                )
        except ValueError as error:
            raise ValueError(f"record {i} of {source}: {error}") from error
    return dataset.with_transform(_open_rows)


def read_preferences(source: str | Path) -> Dataset:
    """Reads pairs or single responses in the format of trl. Pictures are not opened yet.

    Args:
        source: as for [`read_dataset`].

    Raises:
        FileNotFoundError, ValueError: as for [`read_dataset`]. Or a picture is missing. The error gives the number of
            its record.
    """
    dataset = leave_unopened(read_dataset(source))
    if "images" in dataset.column_names:
        for i, one in enumerate(dataset.select_columns("images")):
            try:
                get_pictures(one)
            except ValueError as error:
                raise ValueError(f"record {i} of {source}: {error}") from error
    return dataset


def make_lazy_dataset(records: Records) -> Dataset:
    """Makes a `datasets.Dataset` whose records are made when they are requested.

    Fields that some records of a batch lack are `None` in these records.
    """

    def make(batch: dict) -> dict:
        made = [records[index] for index in batch["index"]]
        names = dict.fromkeys(name for record in made for name in record)
        return {name: [record.get(name) for record in made] for name in names}

    return Dataset.from_dict({"index": range(len(records))}).with_transform(make)


def leave_unopened(dataset: Dataset) -> Dataset:
    """Returns the same rows with pictures as bytes or paths.

    DPS can open some pictures that `datasets` cannot, such as those with invalid EXIF tags.
    """
    for name, kind in dataset.features.items():
        if isinstance(kind, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(kind, List) and isinstance(kind.feature, Image):
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset


def open_pictures(example: Any, image_processor: DPSImageProcessor) -> list[Picture]:
    """Opens the pictures of a record, which may be pictures, arrays, bytes or paths.

    Raises:
        TypeError, ValueError: a picture is missing, is of another type, or cannot be opened.
    """
    # Without a format, `datasets` returns arrays as lists of numbers.
    kept = [np.asarray(image) if isinstance(image, (list, tuple)) else image for image in get_pictures(example)]
    opened = image_processor.fetch_images(kept)
    return [image if isinstance(image, Picture) else array_to_picture(image) for image in opened]


def _open_rows(rows: dict[str, list]) -> dict[str, list]:
    if "images" not in rows:  # another column was requested
        return rows
    images = [open_pictures({"images": images}, IMAGE_PROCESSOR) for images in rows["images"]]
    return {**rows, "images": images}
