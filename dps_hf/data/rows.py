"""Reads the rows of data sets from the Hub, files, folders or a user's function. `datasets` does the reading.

A data set is a string or a mapping, or a list of them. The string is a name on the Hub, a file, a pattern of files, a
folder, or the dotted path of a function without arguments. The fields of a mapping are those of [`Setting`].
"""

import glob
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from PIL.Image import Image as Picture

from dps_hf.data.record import get_pictures, is_features
from dps_hf.model.image_processing_dps import DPSImageProcessor, array_to_picture
from dps_hf.resolve import resolve


_OneDataset: TypeAlias = "str | Path | Mapping[str, Any]"
DatasetSetting: TypeAlias = "_OneDataset | Sequence[_OneDataset]"

DOTTED_PATH = re.compile(r"\w+(\.\w+)+")
IMAGE_PROCESSOR = DPSImageProcessor()
URL_PROCESSOR = DPSImageProcessor(fetch_urls=True)
BUILDERS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".txt": "text",
}
WRAPPERS = ("data", "rows", "samples", "examples", "items", "train")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
PICTURE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Setting:
    """How one data set is read and used.

    path: a name on the Hub, a file or a pattern such as `shards/*.tar`, a folder, a dotted path of a function, or the
        name of a builder of `datasets` if `data_files` are given.
    name: the name of a configuration on the Hub; `config` is the same.
    split: by default "train", or the only split.
    revision: branch, tag or commit of a data set on the Hub.
    data_files: which files of the folder or of the repository are read; by default `datasets` chooses.
    streaming: whether rows are read while training runs.
    columns: the columns that are not guessed rightly, such as `{images: photo, prompt: question, completion: answer}`.
    captions: what is made of captioned pictures, see [`~dps_hf.data.formats.Captions`].
    weight: how often the rows are sampled, compared with those of the other data sets. Without weights, each row of
        all data sets is seen once.
    image_folder: the folder that paths of pictures are relative to, by default that of the file.
    fetch_urls: whether pictures that are given as URLs are fetched.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    data_files: Any = None
    streaming: bool = False
    columns: Mapping[str, str] | None = None
    captions: Mapping[str, Any] | None = None
    weight: float | None = None
    image_folder: str | None = None
    fetch_urls: bool = False

    @property
    def title(self) -> str:
        """A short name to print."""
        return self.path if self.is_remote else Path(os.path.abspath(self.path)).name

    @property
    def source(self) -> str:
        """Where the rows come from."""
        return ":".join(filter(None, (self.path, self.name, self.split)))

    @property
    def is_remote(self) -> bool:
        return not self.files and not os.path.exists(self.path)

    @property
    def files(self) -> list[str]:
        """The local files that `path` names."""
        return (
            [self.path]
            if os.path.isfile(self.path)
            else sorted(glob.glob(self.path, recursive=True)) * (not os.path.isdir(self.path))
        )


def read_settings(dataset: DatasetSetting) -> list[Setting]:
    """Reads the field `dataset` of a script or a recipe.

    Raises:
        ValueError: a field is unknown or of a wrong type.
    """
    listed = list(dataset) if isinstance(dataset, (list, tuple)) else [dataset]
    if not listed:
        raise ValueError("dataset must name at least one data set; got an empty list.")
    known = [one.name for one in fields(Setting)]
    settings = []
    for one in listed:
        given: Any = {"path": one} if isinstance(one, (str, Path)) else one
        if not isinstance(given, Mapping) or not given.get("path"):
            raise ValueError(
                "dataset must be a path or a name, or a mapping with path, such as {path: my_data.jsonl, weight: "
                f"2}}; got {one!r}."
            )
        given = {("name" if key == "config" else str(key)): value for key, value in given.items()}
        if unknown := sorted({*given} - {*known}):
            raise ValueError(f"dataset has no field {', '.join(unknown)}. Its fields are {', '.join(known)}.")
        weight = given.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0):
            raise ValueError(f"dataset.weight must be a number above 0; got {weight!r}.")
        settings.append(Setting(**given | {"path": os.path.expanduser(str(given["path"]))}))
    return settings


def _load_saved(source: str | Path) -> Dataset | DatasetDict:
    try:
        return load_from_disk(source)
    except IndexError:  # datasets raises it for a data set without files
        return Dataset.from_dict({})


@cache
def _call(path: str, field: str) -> Any:
    function = resolve(path, field)
    if not _takes_nothing(function):
        raise ValueError(f"{field} must name a function that is called without arguments; {path} needs some.")
    rows = function()
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a function written in C may have no signature
        return callable(function)
    return True


def fingerprint_rows(setting: Setting, rows: Dataset | IterableDataset) -> str:
    plain = setting == Setting(setting.path)
    if isinstance(rows, Dataset):
        return rows._fingerprint if plain else Hasher.hash([rows._fingerprint, repr(setting)])
    stamps = [(path, os.stat(path).st_mtime_ns) for path in setting.files]
    return Hasher.hash([repr(setting), stamps])


def is_saved(path: str | Path) -> bool:
    """Whether `datasets` saved a data set in this folder."""
    return any(os.path.exists(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))


def is_ours(setting: Setting) -> bool:
    return is_saved(setting.path) or (setting.is_remote and _is_dotted(setting))


def _is_dotted(setting: Setting) -> bool:
    return bool(DOTTED_PATH.fullmatch(setting.path)) and Path(setting.path).suffix not in BUILDERS


def read_rows(setting: Setting) -> Dataset | IterableDataset:
    """The rows of a data set, with pictures unopened."""
    path = setting.path
    if is_ours(setting):
        rows = _call(path, "dataset") if setting.is_remote else _load_saved(path)
    else:
        rows = _load(setting)
    rows = _choose_split(rows, setting)
    if isinstance(rows, Dataset):
        rows = _unwrap(rows, setting)
        if not len(rows):
            raise ValueError(
                f"dataset must name a set with records; {path} has none. Add records, or name another one."
            )
        if setting.streaming and is_ours(setting):
            rows = rows.to_iterable_dataset()
    return leave_unopened(rows)


def _has_text(text: str) -> bool:
    return bool(text.strip())


def _is_one_value(path: str) -> bool:
    """Whether a JSON file is one array or object, and not one object in each line."""
    if Path(path).suffix != ".json":
        return False
    with open(path, "rb") as file:
        first, more = file.readline(), file.readline()
    try:
        return not more.strip() or not isinstance(json.loads(first), dict)
    except ValueError:
        return True


def _load(setting: Setting) -> Any:
    """Loads files, a folder, or a data set on the Hub.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or has no rows.
    """
    streaming = setting.streaming and not any(map(_is_one_value, setting.files))  # which has to be read whole
    path, options = setting.path, {"name": setting.name, "streaming": streaming, "split": setting.split}
    is_file = os.path.isabs(path) or path.startswith(".") or Path(path).suffix in BUILDERS or glob.has_magic(path)
    if setting.is_remote and is_file:
        raise FileNotFoundError(f"dataset must name a data set; there is no file or folder {path}.")
    files = _read_files({"train": setting.files}) if setting.files else None
    if os.path.isdir(path):
        files = _read_folder(setting)
    try:
        if files:
            return _load_files(files, options)
        return load_dataset(path, data_files=setting.data_files, revision=setting.revision, **options)
    except (FileNotFoundError, ConnectionError) as error:
        if os.path.isdir(path):
            raise FileNotFoundError(
                f"dataset must name a data set; the folder {path} has no files of rows or pictures. Add some, or name "
                "another one."
            ) from error
        raise FileNotFoundError(
            f"dataset must name a data set; {path} is no file or folder here, and cannot be had from the Hub: {error}"
        ) from error
    except StopIteration:  # a file without rows
        raise ValueError(f"dataset must name a set with records; {path} has none. Add records.") from None
    except (DatasetGenerationError, ValueError) as error:  # a ValueError is one of metadata or of splits
        raise ValueError(f"dataset {path} cannot be read: {error.__cause__ or error}") from error


def _choose_split(rows: Any, setting: Setting) -> Dataset | IterableDataset:
    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        wanted = setting.split or ("train" if "train" in rows else next(iter(rows)) if len(rows) == 1 else None)
        if wanted not in rows:
            raise ValueError(
                f"dataset {setting.path} has the splits {', '.join(rows)}; got {wanted or 'none'}. Write, for "
                f"example, {{path: {setting.path}, split: {next(iter(rows), 'train')}}}."
            )
        rows = rows[wanted]
    if not isinstance(rows, (Dataset, IterableDataset)):
        raise ValueError(f"dataset must name one set of records; {setting.path} has {type(rows).__name__}.")
    return rows


def _load_files(files: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    try:
        rows = load_dataset(**files, **options)
        return rows.filter(_has_text, input_columns="text") if files["path"] == "text" else rows
    except DatasetGenerationError:
        if files["path"] != "json":
            raise
        # The JSON builder takes the columns from the first 10 MB of a file, unless the file is one chunk.
        sizes = [os.path.getsize(path) for paths in files["data_files"].values() for path in paths]
        return load_dataset(**files, chunksize=max(sizes) + 1, **options)


def _read_files(splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The arguments of `load_dataset` for files of one kind, by split."""
    splits = {split: [os.path.abspath(path) for path in paths] for split, paths in splits.items()}
    listed = [path for paths in splits.values() for path in paths]
    suffixes = {
        Path(path.removesuffix(Path(path).suffix) if path.endswith(COMPRESSED) else path).suffix.lower()
        for path in listed
    }
    builders = {BUILDERS.get(suffix) for suffix in suffixes}
    builder = builders.pop() if len(builders) == 1 else None
    if builder is None:
        raise ValueError(
            f"dataset must name files of one kind out of {', '.join(BUILDERS)}; got {', '.join(listed[:3])}."
        )
    more = {"sep": "\t"} if suffixes == {".tsv"} else {"sample_by": "paragraph"} if builder == "text" else {}
    return {"path": builder, "data_files": splits, **more}


def _guess_split(path: str) -> str:
    """The split that the name of a file says, "train" if it says none."""
    stem = Path(path).name.lower()
    for split, names in (("validation", ("validation", "valid", "val", "dev")), ("test", ("test",))):
        if any(re.search(rf"(^|[^a-z]){name}([^a-z]|$)", stem) for name in names):
            return split
    return "train"


def _read_folder(setting: Setting) -> dict[str, Any]:
    """The arguments of `load_dataset` for a folder.

    `datasets` would read the most frequent kind of file, so files of rows beside their pictures are named here.
    """
    path = Path(setting.path)
    if setting.data_files:
        return {"path": str(path), "data_files": setting.data_files}
    beside = sorted(str(file) for file in path.iterdir() if _is_data(file))
    texts = sorted(str(file) for file in path.glob("**/*.txt"))
    others = [file for file in path.glob("**/*") if file.is_file() and file.suffix != ".txt"]
    if not others:  # each paragraph is a row, as in a single file
        beside = texts
    if any(Path(file).stem == "metadata" for file in beside) and len(beside) > 1:
        # `datasets` would leave out the pictures if the name of another file has "train" or "test" in it.
        return {"path": "imagefolder", "data_files": {"train": str(path / "**")}}
    if beside and not any(path.glob("**/metadata.*")) and (not others or any(map(_is_picture, others))):
        splits: dict[str, list[str]] = {}
        for file in beside:
            splits.setdefault(_guess_split(file), []).append(file)
        return _read_files(splits)
    return {"path": str(path)}


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_FILES


def _is_data(file: Path) -> bool:
    return file.is_file() and BUILDERS.get(file.suffix.lower()) in ("json", "csv", "parquet", "webdataset")


def _unwrap(rows: Dataset, setting: Setting) -> Dataset:
    """The rows of a JSON file that holds one object with a list of rows, such as `{"version": 1, "data": [...]}`."""
    found = [name for name in WRAPPERS if name in rows.column_names]
    if len(rows) != 1 or not found or not setting.files:
        return rows
    column = found[0]
    if not isinstance(getattr(rows.features[column], "feature", None), dict):
        return rows
    return load_dataset(**_read_files({"train": setting.files}), field=column)["train"]


def is_coco(rows: Dataset) -> bool:
    return len(rows) == 1 and {"images", "annotations"} <= {*rows.column_names}


def read_coco(rows: Dataset) -> Dataset:
    """One row for each picture of COCO's annotations, with its captions."""
    whole = rows[0]
    captions: dict[Any, list[str]] = {}
    for one in whole["annotations"]:
        if one.get("caption"):
            captions.setdefault(one["image_id"], []).append(one["caption"])
    pictures = [one for one in whole["images"] if one["id"] in captions]
    if not pictures:
        raise ValueError("COCO annotations must have captions; these have none. Take the file captions_*.json.")
    return Dataset.from_dict(
        {"image": [one["file_name"] for one in pictures], "caption": [captions[one["id"]] for one in pictures]}
    )


def unpack(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a dict. For a row of a WebDataset, the fields of its JSON file are added."""
    if "__key__" in row and isinstance(row.get("json"), Mapping):
        return {**row["json"], **{name: value for name, value in row.items() if name != "json"}}
    return dict(row)


def find_folder(setting: Setting) -> str | None:
    """The folder that paths of pictures are relative to; `None` for a repository on the Hub."""
    if setting.image_folder:
        folder = os.path.abspath(os.path.expanduser(setting.image_folder))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"dataset.image_folder must be a folder; there is none at {folder}.")
        return folder
    if setting.files:
        return os.path.dirname(os.path.abspath(setting.files[0]))
    if os.path.isdir(setting.path):
        return os.path.abspath(setting.path)
    named = setting.data_files if isinstance(setting.data_files, str) else None
    if named and os.path.exists(named):
        return os.path.dirname(os.path.abspath(named))
    return None


def leave_unopened(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Returns the same rows with pictures as bytes or paths.

    DPS can open some pictures that `datasets` cannot, such as those with invalid EXIF tags.
    """
    if isinstance(dataset, IterableDataset) and not dataset.features:
        dataset = dataset._resolve_features()
    features = dataset.features
    for name, kind in (features or {}).items():
        if isinstance(kind, Image):
            features[name] = Image(decode=False)
        elif isinstance(kind, List) and isinstance(kind.feature, Image):
            features[name] = List(Image(decode=False), length=kind.length)
    if features == dataset.features:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.cast(features)
    # `Dataset.cast` would write all pictures again.
    info, fingerprint = dataset.info.copy(), Hasher.hash([dataset._fingerprint, "unopened"])
    info.features = features
    table = dataset.data.cast(features.arrow_schema)
    return Dataset(table, info, dataset.split, indices_table=dataset._indices, fingerprint=fingerprint)


def open_pictures(example: Any, image_processor: DPSImageProcessor) -> list[Picture]:
    """Opens the pictures of a record, which may be pictures, arrays, bytes or paths. Features of pictures stay.

    Raises:
        TypeError, ValueError: a picture is missing, is of another type, or cannot be opened.
    """
    # Without a format, `datasets` returns arrays as lists of numbers.
    kept: list[Any] = [
        np.asarray(image) if isinstance(image, (list, tuple)) else image for image in get_pictures(example)
    ]
    if kept and all(is_features(image) for image in kept):
        return kept
    opened = image_processor.fetch_images(kept)
    return [image if isinstance(image, Picture) else array_to_picture(image) for image in opened]
