"""Records and pairs that `datasets` saved in a folder."""

from pathlib import Path

from datasets import Dataset, Image, List, load_from_disk

from dps_hf.data.record import validate


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
    """Records to learn from, each of them checked; their pictures are not opened yet.

    Raises:
        FileNotFoundError, ValueError: as `read_saved`; or a record is wrong, or does not end with an answer, and its number
            is named.
    """
    dataset = read_saved(path)
    unopened = dataset
    if dataset.features.get("images") == List(Image()):
        unopened = dataset.cast_column("images", List(Image(decode=False)))
    for i, one in enumerate(unopened):
        try:
            validate(one)
            if len(one["messages"]) < 2 or one["messages"][-1]["role"] != "assistant":
                raise ValueError(
                    "'messages' must end with a question and its answer, by the assistant. Add the answer."
                )
        except ValueError as error:
            raise ValueError(f"record {i} of {path}: {error}") from error
    return dataset
