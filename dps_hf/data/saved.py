"""Records and pairs that `datasets` saved in a folder."""

from pathlib import Path

from datasets import Dataset, load_from_disk


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
