"""Reads data sets as records for training. A row becomes a record, and its pictures are opened, when it is requested.

A data set is a string or a mapping, or a list of them: see [`~dps_hf.data.rows`]. What the columns hold is guessed by
[`~dps_hf.data.formats`].
"""

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    interleave_datasets,
)
from datasets.fingerprint import Hasher
from huggingface_hub import hf_hub_download
from PIL.Image import Image as Picture

from dps_hf.data.dropouts import Records
from dps_hf.data.formats import (
    BadRow,
    Form,
    guess_form,
    guess_pictures,
    holds_pictures,
)
from dps_hf.data.record import Record, get_pictures, split_pictures, validate
from dps_hf.data.rows import (
    IMAGE_PROCESSOR,
    URL_PROCESSOR,
    DatasetSetting,
    Setting,
    find_folder,
    fingerprint_rows,
    is_coco,
    is_ours,
    leave_unopened,
    open_pictures,
    read_coco,
    read_rows,
    read_settings,
    unpack,
)


__all__ = [
    "IMAGE_PROCESSOR", "LazyRecords", "Skips", "compute_fingerprint", "leave_unopened", "make_lazy_dataset",
    "open_pictures", "read_records", "read_unanswered", "split_off",
]  # fmt: skip

ROWS_TO_LOOK_AT = 100  # for one with a picture, to find out where pictures are
ENOUGH_ROWS = 20  # the share of bad rows is not judged before so many


class Check(Protocol):
    """Raises a `BadRow` for a record that a model cannot learn from."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, record: Record) -> None: ...


def read_records(
    dataset: DatasetSetting,
    seed: int = 0,
    skipped: str | Path | None = None,
    max_skipped: float = 0.1,
    check: "Check | None" = None,
    pictures_only: bool = False,
) -> "LazyRecords | IterableDataset":
    """Reads records for training. A row is mapped, and its pictures are opened, when its record is requested.

    What was guessed about each data set is printed in one line.

    Args:
        dataset: one data set or several, see above.
        seed: decides in which order several data sets are mixed, and what is made of captioned pictures.
        skipped: the JSONL file that lists bad rows, each with the data set, its number and the reason. Without it bad
            rows are only counted, and saved records (`messages`, `images`) are all checked at once.
        max_skipped: the share of bad rows above which reading stops.
        check: decides whether a model can learn from a record.
        pictures_only: whether only pictures are needed, so that rows may lack texts.

    Returns:
        Records, or a `datasets.IterableDataset` of records if a data set is streamed. A bad row is replaced by the
        next good one; in a stream it is left out.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        ValueError: a setting is wrong, the rows cannot be read, their format cannot be guessed, or there are none.
            When records are requested: too many rows are bad.
    """
    settings = read_settings(dataset)
    sources = [replace(_open_source(one, seed, pictures_only=pictures_only), check=check) for one in settings]
    skips = Skips(skipped, max_skipped)
    for source in sources:
        if skipped is None and not pictures_only:
            source.check_saved()
        say(str(source))
    weights = normalize_weights(settings)
    if any(isinstance(source.rows, IterableDataset) for source in sources):
        stream = interleave_streams([source.stream(skips) for source in sources], weights, seed)
        return check_stream(stream, sources, skips)
    lengths, visits = [len(source.rows) for source in sources], [source.form.num_visits for source in sources]
    return LazyRecords(sources, mix(lengths, visits, weights, seed), skips)


def mix(lengths: Sequence[int], visits: Sequence[int], weights: Sequence[float] | None, seed: int) -> np.ndarray:
    """The order in which the rows of several data sets are seen.

    With weights, each data set has its share of the records in random order, and is repeated until every row of every
    data set has been seen. Without, each row is seen once, or twice if it is a picture to describe and to draw.

    Args:
        visits: how many records a row of each data set gives without weights.
        weights: one for each data set; they add up to 1.

    Returns:
        `(records, 3)`: the number of the data set, of its row, and of the visit to the row, for each record.
    """
    counts = [length * times for length, times in zip(lengths, visits)]
    if weights:
        total = max(count / weight for count, weight in zip(counts, weights))
        counts = [max(count, round(total * weight)) for count, weight in zip(counts, weights)]
    table = np.concatenate(
        [
            np.stack([np.full(count, i), np.arange(count) % length, np.arange(count) // length], axis=1)
            for i, (length, count) in enumerate(zip(lengths, counts))
        ]
    )
    return np.random.default_rng(seed).permutation(table) if weights else table


def read_unanswered(dataset: DatasetSetting) -> Iterator[Record]:
    """Reads records whose last question may have no answer. A bad row is an error.

    Raises:
        FileNotFoundError, ValueError: as for [`read_records`]; or a row is bad, and the error gives its number.
    """
    for setting in read_settings(dataset):
        source = _open_source(setting, seed=0, answered=False)
        for i, row in enumerate(source.rows):
            try:
                yield source.to_record(row, i)
            except BadRow as error:
                raise ValueError(f"record {i} of {setting.path}: {error}") from error


def compute_fingerprint(dataset: DatasetSetting) -> str:
    """A digest of the contents of data sets. For streamed ones, it is one of their settings and the times of files.

    Raises:
        FileNotFoundError, ValueError: as for [`read_records`].
    """
    return join_fingerprints([fingerprint_rows(one, read_rows(one)) for one in read_settings(dataset)])


def split_off(records: "LazyRecords", share: float, seed: int = 0) -> tuple["LazyRecords", "LazyRecords"]:
    """Splits records into those for training and a share for evaluation. The two have no row in common.

    Raises:
        ValueError: the share is not between 0 and 1, there are too few rows, or the records are streamed.
    """
    if not isinstance(records, LazyRecords):
        raise ValueError("evaluation_share needs a data set that is not streamed. Give an evaluation_dataset.")
    if not 0 < share < 1:
        raise ValueError(f"evaluation_share must be between 0 and 1; got {share}.")
    rows = np.unique(records.table[:, :2], axis=0)
    held_out = max(1, round(share * len(rows)))
    if held_out >= len(rows):
        raise ValueError(f"evaluation_share {share} leaves no rows for training; there are {len(rows)}.")
    say(f"{len(rows):,} rows: {len(rows) - held_out:,} for training, {held_out:,} held out with the seed {seed}.")
    chosen = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:held_out])]
    numbers = np.array([int(rows[:, 1].max()) + 1, 1])
    is_held_out = np.isin(records.table[:, :2] @ numbers, chosen @ numbers)
    visits = np.array([source.form.num_visits for source in records.sources])
    once = records.table[:, 2] < visits[records.table[:, 0]]  # a weight may repeat rows
    return (
        LazyRecords(records.sources, records.table[~is_held_out], records.skips),
        LazyRecords(records.sources, records.table[is_held_out & once], records.skips),
    )


class LazyRecords:
    """Records that are made when they are requested. A bad row is replaced by the next good one of its data set.

    Args:
        sources: the data sets.
        table: `(records, 3)`, see [`mix`].
        skips: lists bad rows.
    """

    def __init__(self, sources: "Sequence[Source]", table: np.ndarray, skips: "Skips"):
        self.sources, self.table, self.skips = sources, table, skips

    @property
    def fingerprint(self) -> str:
        """A digest of the rows and of how they become records."""
        parts = [*(source.fingerprint for source in self.sources), Hasher.hash(self.table)]
        return join_fingerprints(parts + [source.check.fingerprint for source in self.sources if source.check])

    def __len__(self) -> int:
        return len(self.table)

    @property
    def may_draw(self) -> bool:
        """Whether a record may have a drawing to learn, as far as the columns tell."""
        return any(source.may_draw for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        return self.find(index)[1]

    def find(self, index: int) -> tuple[int, Record]:
        """The first good record from an index on, and its index."""
        index = range(len(self))[index]
        first = self.table[index][0]
        for place in (*range(index, len(self)), *range(index)):
            which, row, visit = map(int, self.table[place])
            if which != first:
                continue
            source = self.sources[which]
            try:
                record = source.to_record(source.rows[row], row, visit)
            except BadRow as error:
                self.skips.add(source.setting.source, row, str(error))
                continue
            self.skips.note(source.setting.source, row)
            return place, record
        raise self.skips.explain_none(self.sources[first].setting.path)

    def open_prompt(self, index: int) -> Record:
        """The record of a good row, with its drawings left out of `images`."""
        which = self.table[index][0]
        record = self.peek(index)
        pictures = get_pictures(record) if record.get("codes") is not None else split_pictures(record)[0]
        record["images"] = [self.sources[which].open(picture) for picture in pictures]
        return record

    def peek(self, index: int) -> Record:
        """The record of a row, without opening its pictures and without replacing a bad row.

        Raises:
            BadRow: nothing can be learned from the row. A picture that cannot be opened is not noticed.
        """
        which, row, visit = map(int, self.table[index])
        return self.sources[which].peek(self.sources[which].rows[row], row, visit)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


class Skips:
    """Counts the rows that are read, and lists the bad ones in a file, to which several processes may add.

    Each row is counted and listed once, however often it is read. Each process judges the share of bad rows among
    those that it has read itself.

    Args:
        path: the JSONL file.
        max_share: above this share, `add` raises an error; not before `ENOUGH_ROWS` rows are read, unless it is 0.
    """

    def __init__(self, path: str | Path | None, max_share: float):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_skipped must be between 0 and 1; got {max_share}.")
        self.path, self.max_share = Path(path) if path else None, max_share
        self.seen, self.reasons = 0, Counter[str]()
        self.last = ""  # the reason of the last bad row
        self._read: dict[str, bytearray] = {}  # a byte for each row, since there may be very many
        self._bad: set[tuple[str, int]] = set()
        self._listed: set[tuple[str, int]] = set()
        self._offset = 0

    def note(self, source: str, row: int) -> None:
        """Counts a row that was read."""
        read = self._read.setdefault(source, bytearray())
        read.extend(bytes(max(0, row + 1 - len(read))))
        self.seen += 1 - read[row]
        read[row] = 1

    def add(self, source: str, row: int, reason: str) -> None:
        """Counts and lists a bad row.

        Raises:
            ValueError: too many rows are bad.
        """
        self.note(source, row)
        self.last = f"row {row} of {source}: {reason}"
        if (source, row) not in self._bad:
            self._bad.add((source, row))
            self.reasons[reason.partition(":")[0]] += 1
            if self.path:
                self.write(source, row, reason)
        bad, enough = len(self._bad), ENOUGH_ROWS if self.max_share else 1
        if self.seen >= enough and bad > self.max_share * self.seen:
            raise ValueError(
                f"{bad} of the first {self.seen} rows are bad, more than max_skipped, {self.max_share:g}. "
                f"{self.summary()} The last: {self.last}."
            )

    def summary(self) -> str:
        reason, count = self.reasons.most_common(1)[0] if self.reasons else ("none", 0)
        listed = f" All are listed in {self.path}." if self.path else ""
        return f"The most frequent reason, {count} times: {reason}.{listed}"

    def explain_none(self, path: str) -> ValueError:
        """The error if no row of a data set is good."""
        return ValueError(f"No row of {path} is good. {self.summary()} The last: {self.last or 'there is none'}.")

    def write(self, source: str, row: int, reason: str) -> None:
        """Lists a row, unless it is listed."""
        path = self.path
        assert path is not None
        if path.exists():
            with path.open("rb") as file:  # what other processes have added
                file.seek(self._offset)
                for line in file.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        self._offset += len(line)
                        known = json.loads(line)
                        self._listed.add((known["source"], known["row"]))
        if (source, row) not in self._listed:
            self._listed.add((source, row))
            path.parent.mkdir(parents=True, exist_ok=True)
            listed = json.dumps({"source": source, "row": row, "reason": reason}, ensure_ascii=False) + "\n"
            with path.open("ab") as file:
                file.write(listed.encode())  # one write, so lines of several processes do not mix


@dataclass(frozen=True)
class Source:
    """One data set: its rows, with unopened pictures, and how they become records."""

    setting: Setting
    rows: Dataset | IterableDataset
    form: Form
    seed: int
    is_ours: bool  # saved by `datasets` or made by the user's function, so paths are trusted
    picture_columns: frozenset[str]  # columns of the type Image of `datasets`, which has resolved their paths
    folder: str | None = None
    fingerprint: str = ""
    answered: bool = True
    check: "Check | None" = None

    def __str__(self) -> str:
        number = f"{len(self.rows):,} rows" if isinstance(self.rows, Dataset) else "streamed"
        return f"dataset {self.setting.title}: {number}, {self.form}"

    @property
    def may_draw(self) -> bool:
        form = self.form
        if "caption" in form.columns:
            return form.captions.draw > 0
        if "messages" in form.columns:
            return self.is_ours
        return form.columns.get("completion") in self.picture_columns

    def peek(self, row: Mapping[str, Any], index: int, visit: int = 0) -> Record:
        """Makes the record of a row. Its pictures are what the row has: paths, bytes, pictures.

        Raises:
            BadRow: nothing can be learned from the row.
        """
        rng = np.random.default_rng([self.seed, index, 0xDA7A])
        record = self.form.to_record(unpack(row), rng, self.answered, visit)
        record["task"] = record["task"] or Path(self.setting.title).stem
        return record

    def to_record(self, row: Mapping[str, Any], index: int, visit: int = 0) -> Record:
        """Makes the record of a row, with opened pictures.

        Raises:
            BadRow: nothing can be learned from the row.
        """
        record = self.peek(row, index, visit)
        if self.check:
            self.check(record)
        record["images"] = [self.open(picture) for picture in record["images"]]
        return record

    def open(self, picture: Any) -> Picture:
        """Opens a picture of a row.

        Raises:
            BadRow: it cannot be opened, is a URL, or lies outside of the data's folder.
        """
        processor = URL_PROCESSOR if self.setting.fetch_urls else IMAGE_PROCESSOR
        try:
            return open_pictures({"images": [self.locate(picture)]}, processor)[0]
        except BadRow:
            raise
        except (TypeError, ValueError, OSError) as error:
            raise BadRow(f"unreadable picture: {str(error).rstrip('.')}") from None

    def locate(self, picture: Any) -> Any:
        """The file of a picture that is given by its path, or the picture itself.

        Raises:
            BadRow: it is a URL, or lies outside of the data's folder.
        """
        is_typed = isinstance(picture, Mapping)
        if is_typed:
            content = picture.get("bytes")
            if isinstance(content, str):  # in JSON
                return _decode(content)
            if content is not None:
                return picture
            picture = picture.get("path")
        if not isinstance(picture, str) or picture.startswith("data:"):
            return picture
        if picture.startswith(("http://", "https://")):
            if not self.setting.fetch_urls:
                raise BadRow(f"unreadable picture: URLs are not fetched unless fetch_urls is true; got {picture}")
            return picture
        if is_typed and self.picture_columns and "://" in picture:  # streamed from the Hub by `datasets`
            with fsspec.open(picture, "rb") as file:
                return file.read()
        if self.is_ours or (is_typed and self.picture_columns):
            return picture
        return self._find(picture)

    def _find(self, path: str) -> Any:
        """The file at a path of a row, which may not leave the folder of the data; or the bytes that it encodes."""
        if len(path) > 200 and "." not in path:  # no name of a file
            return _decode(path)
        if self.folder is None:
            return self._fetch(path)
        whole = os.path.normpath(os.path.join(self.folder, path.removeprefix("file://")))
        if os.path.commonpath([whole, self.folder]) != self.folder:
            raise BadRow(
                f"unreadable picture: paths must lie in {self.folder}; got {path}. Set image_folder to another folder"
            )
        if not os.path.exists(whole):
            raise BadRow(f"unreadable picture: there is no file {whole}")
        return whole

    def _fetch(self, path: str) -> str:
        """A file beside the rows on the Hub."""
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise BadRow(f"unreadable picture: paths must lie in the repository; got {path}")
        try:
            return hf_hub_download(self.setting.path, path, repo_type="dataset", revision=self.setting.revision)
        except (OSError, ValueError) as error:
            raise BadRow(f"unreadable picture: {error}") from None

    def stream(self, skips: Skips) -> IterableDataset:
        """The records of all rows in order; bad rows are left out."""
        rows = self.rows if isinstance(self.rows, IterableDataset) else self.rows.to_iterable_dataset()
        columns = rows.column_names or [*next(iter(rows))]
        return map_stream(rows, _MapOne(self, skips), columns)

    def check_saved(self) -> None:
        """Checks records that were saved, without opening pictures.

        Raises:
            ValueError: a record is wrong or does not end with an answer. The error gives its number.
        """
        if (
            not self.is_ours
            or not isinstance(self.rows, Dataset)
            or not {"messages", "images"} <= {*self.rows.column_names}
        ):
            return
        for i, one in enumerate(self.rows):
            if any(isinstance(message["content"], str) for message in one["messages"] or ()):
                return
            try:
                validate(one)
                if one["messages"][-1]["role"] != "assistant":
                    raise ValueError(
                        "'messages' must end with a question and its answer, by the assistant. Add the answer."
                    )
            except ValueError as error:
                raise ValueError(f"record {i} of {self.setting.path}: {error}") from error


@dataclass
class _MapOne:
    """Maps a batch of one row to its records, or to none if the row is bad."""

    source: Source
    skips: Skips

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        row = {name: values[0] for name, values in batch.items()}
        visits = range(self.source.form.num_visits)
        try:
            records = [self.source.to_record(row, indices[0], visit) for visit in visits]
        except BadRow as error:
            self.skips.add(self.source.setting.source, indices[0], str(error))
            return {"messages": [], "images": [], "task": []}
        self.skips.note(self.source.setting.source, indices[0])
        return {name: [record[name] for record in records] for name in records[0]}  # type: ignore[literal-required]


def _open_source(setting: Setting, seed: int, answered: bool = True, pictures_only: bool = False) -> Source:
    rows = read_rows(setting)
    fingerprint = fingerprint_rows(setting, rows)
    features = rows.features
    kind = ""
    if isinstance(rows, Dataset) and is_coco(rows):
        rows, kind = read_coco(rows), "COCO captions"
    row = next(iter(rows.take(1)), None)
    if row is None:
        raise ValueError(f"dataset must name a set with records; {setting.path} has none.")
    first = unpack(row)
    columns = [name for name in first if not name.startswith("__")]
    if pictures_only:
        form = guess_pictures(columns, features, setting.columns, setting.title, kind)
    else:
        form = guess_form(columns, features, setting.columns, setting.captions, setting.title, kind, answered)
    source = Source(
        setting,
        rows,
        form,
        seed,
        is_ours(setting),
        frozenset(name for name, kind in (features or {}).items() if holds_pictures(kind)),
        find_folder(setting),
        fingerprint,
        answered and not pictures_only,
    )
    return replace(source, folder=find_pictures(source))


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRow(f"unreadable picture: broken base64: {error}") from None


def normalize_weights(settings: Sequence[Setting]) -> list[float] | None:
    """The weights of the data sets, scaled to add up to 1; `None` if no data set has one."""
    if all(setting.weight is None for setting in settings):
        return None
    weights = [1.0 if setting.weight is None else setting.weight for setting in settings]
    return [weight / sum(weights) for weight in weights]


def map_stream(rows: IterableDataset, function: Callable, columns: Sequence[str]) -> IterableDataset:
    """Maps each row, given as a batch of one with its index, to any number of others without these columns."""
    # Features of no column leave values as they are: `datasets` finds no type for opened pictures.
    return rows.map(
        function, with_indices=True, batched=True, batch_size=1, remove_columns=[*columns], features=Features({})
    )


def interleave_streams(
    streams: Sequence[IterableDataset], weights: Sequence[float] | None, seed: int
) -> IterableDataset:
    """One stream of several. With weights, each is repeated until all have ended; without, each row is seen once."""
    if len(streams) == 1:
        return streams[0]
    strategy = "all_exhausted" if weights else "all_exhausted_without_replacement"
    return interleave_datasets([*streams], weights, seed, stopping_strategy=strategy)


def check_stream(stream: IterableDataset, sources: "Sequence[Source]", skips: Skips) -> IterableDataset:
    """The same stream, if it has a good row.

    Raises:
        ValueError: it has none.
    """
    if next(iter(stream), None) is None:
        raise skips.explain_none(", ".join(source.setting.path for source in sources))
    return stream


def say(line: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)


def join_fingerprints(fingerprints: Sequence[str]) -> str:
    return fingerprints[0] if len(fingerprints) == 1 else Hasher.hash(list(fingerprints))


def find_pictures(source: Source) -> str | None:
    """The folder of the pictures: that of the file, or the usual one beside it, whichever has the first picture."""
    pictures = (source.form.get(unpack(row), "images") for row in source.rows.take(ROWS_TO_LOOK_AT))
    folder, path = source.folder, next(filter(None, pictures), None)
    path = path[0] if isinstance(path, (list, tuple)) and path else path
    if folder is None or source.setting.image_folder or not isinstance(path, str) or path.startswith("data:"):
        return folder
    if source.is_ours or os.path.isabs(path):
        return folder
    parent, stem = os.path.dirname(folder), Path(source.setting.path).stem
    usual = [folder, os.path.join(folder, "images"), os.path.join(folder, stem)]
    if source.form.kind == "COCO captions":  # annotations/captions_val2017.json beside val2017/ or images/val2017/
        names = (stem.rpartition("_")[2], "images", os.path.join("images", stem.rpartition("_")[2]), "")
        usual += [os.path.normpath(os.path.join(parent, name)) for name in names]
        usual += [os.path.join(folder, name) for name in names[:3:2]]
    return next((one for one in usual if os.path.exists(os.path.join(one, path))), folder)


def make_lazy_dataset(records: Records) -> Dataset:
    """Makes a `datasets.Dataset` whose records are made when they are requested.

    Fields that some records of a batch lack are `None` in these records.
    """

    def make(batch: dict) -> dict:
        made = [records[index] for index in batch["index"]]
        names = dict.fromkeys(name for record in made for name in record)
        return {name: [record.get(name) for record in made] for name in names}

    return Dataset.from_dict({"index": range(len(records))}).with_transform(make)
