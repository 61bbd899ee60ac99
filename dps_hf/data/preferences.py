"""Data sets of preferences in the format of trl: pairs of answers, or answers that are labelled good or bad."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from datasets.fingerprint import Hasher

from dps_hf.data.formats import (
    IMAGE_MARK,
    PICK_A_PIC,
    BadRow,
    Form,
    guess_preferences,
    holds_pictures,
    is_picture,
    make_turns,
    read_messages,
)
from dps_hf.data.rows import (
    IMAGE_PROCESSOR,
    URL_PROCESSOR,
    DatasetSetting,
    Setting,
    find_folder,
    is_ours,
    open_pictures,
    read_rows,
    read_settings,
)
from dps_hf.data.sources import (
    Check,
    Skips,
    Source,
    check_stream,
    find_pictures,
    interleave_streams,
    map_stream,
    normalize_weights,
    say,
)


ANSWERS = ("chosen", "rejected", "completion")
TEXTS = ("prompt", *ANSWERS)
TIE = "neither is better"

PART = {"type": Value("string"), "text": Value("string"), "column": Value("string")}
CHAT = List({"role": Value("string"), "content": List(PART)})
"""Messages of preferences. If an answer is a picture, it is a part of type image that names the picture's column."""


ORIGIN = {"dps_origin": Value("string"), "dps_origin_row": Value("int64")}
"""Columns that say which data set, and which row of it, a pair comes from. They are kept while pairs can be bad."""


def read_preferences(
    dataset: DatasetSetting,
    seed: int = 0,
    skipped: str | Path | None = None,
    max_skipped: float = 0.1,
    check: Check | None = None,
) -> Dataset | IterableDataset:
    """Reads pairs of answers, or answers that are labelled good or bad, in the format of trl.

    Texts are read at once, and pictures of prompts when a row is requested. Answers may be pictures;
    [`~dps_hf.preferences.drawings.write_drawings`] turns them into text. If a data set is streamed, all of a row is
    read when it is requested.

    Args:
        dataset, seed, skipped, max_skipped, check: as for [`~dps_hf.data.sources.read_records`]. Without `skipped`,
            the first bad row is an error.

    Raises:
        FileNotFoundError, ValueError: as for [`read_records`]. Without `skipped`, the error gives the number of the
            bad row.
    """
    settings = read_settings(dataset)
    sources = [replace(_open_pairs(setting), check=check) for setting in settings]
    skips = Skips(skipped, max_skipped)
    weights = normalize_weights(settings)
    if any(isinstance(source.rows, IterableDataset) for source in sources):
        shows = any(map(_may_show_pictures, sources))
        mixed = len(sources) > 1
        drawings = [column for source in sources for column in _list_drawing_columns(source)]
        streams = [_stream_pairs(source, skips, shows, mixed, drawings) for source in sources]
        return check_stream(interleave_streams(streams, weights, seed), sources, skips)
    parts = [_map_pairs(source, skips, len(sources) > 1) for source in sources]
    if len(parts) == 1:
        rows = parts[0]
    elif weights:
        rows = interleave_datasets(parts, weights, seed, stopping_strategy="all_exhausted")
    else:
        rows = concatenate_datasets(parts)
    pairs = rows if list_drawings(rows) else rows.remove_columns([*ORIGIN])
    if "images" not in rows.column_names:
        return pairs
    fetch = any(setting.fetch_urls for setting in settings)
    return pairs.with_transform(OpenPairs(rows, skips, fetch))


@dataclass(frozen=True)
class _MapPair:
    """Maps a row of preferences to messages, and gives the reason if the row is bad.

    converts: whether the row becomes messages. Otherwise it is only checked.
    embeds: whether the pictures of prompts are written to a column `images`, because they are paths or in messages.
    """

    source: Source
    converts: bool
    embeds: bool

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        made: dict[str, Any] = {name: [] for name in ("prompt", *self.answers)} if self.converts else {}
        made |= {"label": None} if self.converts and "label" in self.source.form.columns else {}
        made |= {"images": []} if self.embeds else {}
        made |= {"dps_origin": self.source.setting.source, "dps_origin_row": index}
        try:
            chats, pictures = self.read(row)
        except BadRow as error:
            return {**made, "reason": str(error)}
        if self.converts:
            made |= chats
        if self.embeds:
            made["images"] = pictures
        return {**made, "reason": ""}

    @property
    def answers(self) -> list[str]:
        """The fields of the answers."""
        columns = self.source.form.columns
        return ["chosen", "rejected"] if "jpg_0" in columns or "chosen" in columns else ["completion"]

    def read(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], list]:
        form = self.source.form
        values = {name: form.get(row, name) for name in ("prompt", *self.answers)}
        if "jpg_0" in form.columns:
            values |= dict(zip(("chosen", "rejected"), self._order(row)))
        elif "prompt" not in form.columns or _begins_with_question(values.get("chosen")):
            values |= _split_prompt(values["chosen"], values["rejected"])
        made: dict[str, Any] = {}
        for name in self.answers:
            if isinstance(values[name], _Drawing):
                column = values[name].column
            elif self._is_drawing(name, values[name]):
                column = f"{name}_picture"
            else:
                answer = read_messages(_read_turns(values[name], "assistant", name), [])["messages"]
                made[name] = [_add_missing_keys(message) for message in answer]
                continue
            made[name] = [{"role": "assistant", "content": [{"type": "image", "text": None, "column": column}]}]
        prompt = form.add_system(row, _read_turns(values["prompt"], "user", "prompt"))
        pictures = form.list_pictures(row)
        record = read_messages(prompt, pictures)
        made["prompt"] = [_add_missing_keys(message) for message in record["messages"]]
        if self.source.check:
            for name in self.answers:
                self.source.check({"messages": [*record["messages"], *made[name]], "images": pictures, "task": ""})
        if "label" in form.columns:
            label = form.get(row, "label")
            if label is None or (isinstance(label, str) and label.lower() not in ("true", "false", "1", "0")):
                raise BadRow(f"no label: must be true or false; got {label!r}")
            made["label"] = label.lower() in ("true", "1") if isinstance(label, str) else bool(label)
        located = [self.source.locate(picture) for picture in record["images"]]
        for picture in located:
            path = picture.get("path") if isinstance(picture, Mapping) and picture.get("bytes") is None else picture
            if isinstance(path, str) and not path.startswith(("data:", "http")) and not os.path.exists(path):
                raise BadRow(f"unreadable picture: there is no file {path}")
        return made, [_store_picture(picture) for picture in located] if self.embeds else []

    def _is_drawing(self, name: str, value: Any) -> bool:
        return self.source.form.columns[name] in self.source.picture_columns or is_picture(value)

    def _order(self, row: Mapping[str, Any]) -> "tuple[_Drawing, _Drawing]":
        """The better and the worse of two drawings."""
        first, second = (row.get(name) for name in PICK_A_PIC[2:])
        if row.get("jpg_0") is None or row.get("jpg_1") is None or first is None or second is None:
            raise BadRow("a picture or a label is missing")
        if first == second:
            raise BadRow(TIE)
        drawings = _Drawing("jpg_0"), _Drawing("jpg_1")
        return drawings if first > second else drawings[::-1]


@dataclass(frozen=True)
class _Drawing:
    """An answer that is the picture of a column."""

    column: str


def _split_prompt(chosen: Any, rejected: Any) -> dict[str, Any]:
    """The prompt that two answers begin with, and the rest of each."""
    from trl import extract_prompt  # only here: trl is slow to import

    if not chosen or not rejected:
        raise BadRow("no text in chosen or rejected")
    return extract_prompt({"chosen": chosen, "rejected": rejected})


def _begins_with_question(answer: Any) -> bool:
    """Whether an answer is the whole conversation."""
    first = answer[0] if isinstance(answer, (list, tuple)) and answer else None
    return isinstance(first, Mapping) and first.get("role") in ("system", "user")


def _read_turns(value: Any, role: str, name: str) -> list:
    """Messages of a prompt or an answer, which is a text or messages."""
    try:
        return make_turns(value, role)
    except BadRow as error:
        raise BadRow(f"{error} in {name}") from None


def _add_missing_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = [{"type": part["type"], "text": part.get("text"), "column": None} for part in message["content"]]
    return {"role": message["role"], "content": parts}


def _store_picture(picture: Any) -> dict[str, Any]:
    """A picture as `datasets` stores it."""
    if isinstance(picture, Mapping):
        return {"bytes": picture.get("bytes"), "path": picture.get("path")}
    return {"bytes": None, "path": picture} if isinstance(picture, str) else {"bytes": picture, "path": None}


def list_drawings(preferences: Dataset | IterableDataset) -> list[str]:
    """The columns of the pictures that are answers."""
    names = (*PICK_A_PIC[:2], *(f"{name}_picture" for name in ANSWERS))
    columns = preferences.column_names or [*next(iter(preferences), {})]
    return [name for name in names if name in columns]


def _may_hold_pictures(prompt: Any) -> bool:
    """Whether messages of prompts may contain pictures, judging by the feature of their column."""
    message = getattr(prompt, "feature", None)
    return isinstance(message, Mapping) and message.get("content") != Value("string")


def _has_marks(rows: Dataset, form: Form) -> bool:
    """Whether texts of the first prompts contain `<image>`."""
    column = form.columns.get("prompt") or form.columns["chosen"]
    return any(IMAGE_MARK in repr(prompt) for prompt in rows.select_columns(column).take(100)[column])


def _may_show_pictures(source: Source) -> bool:
    """Whether prompts may have pictures, judging by the columns."""
    columns = source.form.columns
    return "images" in columns or _may_hold_pictures((source.rows.features or {}).get(columns.get("prompt", "")))


def _open_pairs(setting: Setting) -> Source:
    rows = read_rows(setting)
    first = next(iter(rows.take(1)), None)
    if first is None:
        raise ValueError(f"dataset must name a set with records; {setting.path} has none.")
    features = rows.features or {}
    form = guess_preferences([*first], features, setting.columns, setting.title)
    typed = frozenset(name for name, kind in features.items() if holds_pictures(kind))
    source = Source(setting, rows, form, 0, is_ours(setting), typed, find_folder(setting))
    source = replace(source, folder=find_pictures(source))
    say(str(source))
    return source


def _list_drawing_columns(source: Source) -> list[str]:
    """The columns of pairs that hold pictures which are answers."""
    form, first = source.form, next(iter(source.rows.take(1)))
    if "jpg_0" in form.columns:
        return [*PICK_A_PIC[:2]]
    used = [(name, form.columns[name]) for name in ANSWERS if name in form.columns]
    typed = source.picture_columns
    return [f"{name}_picture" for name, column in used if column in typed or is_picture(first.get(column))]


def _stream_pairs(source: Source, skips: Skips, shows: bool, mixed: bool, drawings: Sequence[str]) -> IterableDataset:
    """The pairs of all rows in order; bad rows are left out.

    shows: whether pairs have a list of pictures, because some of these or of another set have.
    drawings: the columns of pictures that are answers, in this or in another set.
    """
    rows = source.rows if isinstance(source.rows, IterableDataset) else source.rows.to_iterable_dataset()
    columns = rows.column_names or [*next(iter(rows))]
    kept = [*source.form.columns.values()] if not (shows or _needs_conversion(source, mixed)) else []
    mapper = _StreamPair(_MapPair(source, not kept, True), skips, shows, drawings)
    return map_stream(rows, mapper, [name for name in columns if name not in kept])


def _needs_conversion(source: Source, mixed: bool) -> bool:
    """Whether pairs are written as messages: not if they have texts or messages as trl takes them."""
    form, first = source.form, next(iter(source.rows.take(1)))
    prompt, answer = (form.get(first, name) for name in ("prompt", _MapPair(source, True, False).answers[0]))
    features, label = source.rows.features or {}, form.columns.get("label")
    return (
        mixed
        or "system" in form.columns
        or any(name != column for name, column in form.columns.items() if name != "images")
        or (prompt is not None and isinstance(prompt, str) != isinstance(answer, str))
        or ("prompt" in form.columns and _begins_with_question(answer))
        or bool(label and features.get(label) != Value("bool"))
    )


@dataclass
class _StreamPair:
    """Maps a batch of one row to its pair, with opened pictures, or to none if the row is bad."""

    mapper: _MapPair
    skips: Skips
    shows: bool
    drawings: Sequence[str]

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        row = {name: values[0] for name, values in batch.items()}
        setting = self.mapper.source.setting
        try:
            pair = self.open(row)
        except BadRow as error:
            if str(error) != TIE and self.skips.path is None:
                raise ValueError(f"record {indices[0]} of {setting.path}: {error}") from None
            if str(error) != TIE:
                self.skips.add(setting.source, indices[0], str(error))
            return {"prompt": []}
        self.skips.note(setting.source, indices[0])
        return {name: [value] for name, value in (pair if self.mapper.converts else row).items()}

    def open(self, row: Mapping[str, Any]) -> dict[str, Any]:
        source = self.mapper.source
        read, pictures = self.mapper.read(row)
        pair = {**dict.fromkeys(self.drawings), **read}
        if self.shows:
            pair["images"] = [source.open(picture) for picture in pictures]
        for name in self.mapper.answers:
            if column := pair[name][0]["content"][0]["column"]:
                pair[column] = source.open(row[column if column in PICK_A_PIC else source.form.columns[name]])
        if row.get("chat_template_kwargs"):
            pair["chat_template_kwargs"] = row["chat_template_kwargs"]
        return pair


def _map_pairs(source: Source, skips: Skips, mixed: bool) -> Dataset:
    """The pairs of one data set, without bad rows. Pictures of prompts are in `images`, unopened."""
    setting, rows, form, typed = source.setting, source.rows, source.form, source.picture_columns
    assert isinstance(rows, Dataset)
    images, answers = form.columns.get("images"), _MapPair(source, True, False).answers
    drawings = {
        form.columns[name]
        for name in answers
        if form.columns.get(name) in typed or is_picture(rows[0].get(form.columns.get(name, "")))
    }
    first_prompt = form.get(rows[0], "prompt")
    embeds = images not in typed and _may_show_pictures(source)
    converts = (
        _needs_conversion(source, mixed)
        or bool(drawings)
        or embeds
        or (images is not None and (not isinstance(first_prompt, list) or _has_marks(rows, form)))
    )
    mapper = _MapPair(source, converts, embeds)
    features = {"prompt": CHAT, **dict.fromkeys(answers, CHAT)} if converts else {}
    features |= {"label": Value("bool")} if converts and "label" in form.columns else {}
    features |= {"images": List(Image(decode=False))} if embeds else {}
    checked = source.check.fingerprint if source.check else ""
    mapped = rows.map(
        mapper,
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features({**features, **ORIGIN, "reason": Value("string")}),
        new_fingerprint=Hasher.hash([rows._fingerprint, repr(setting), repr(form), source.folder, converts, checked]),
        load_from_cache_file=images is None,  # files of pictures may have changed
        desc=f"Reading {setting.title}",
    )
    reasons = mapped["reason"][:]
    good = [i for i, reason in enumerate(reasons) if not reason]
    ties = sum(reason == TIE for reason in reasons)
    if ties:
        say(f"{ties:,} rows of {setting.title} are left out, because neither answer is better.")
    for i in good:
        skips.note(setting.source, i)
    for i, reason in enumerate(reasons):
        if reason and reason != TIE:
            if skips.path is None:
                raise ValueError(f"record {i} of {setting.path}: {reason}")
            skips.add(setting.source, i, reason)
    if not good:
        raise skips.explain_none(setting.path)

    rows = rows.rename_columns(
        {column: f"{name}_picture" for name in answers if (column := form.columns.get(name)) in drawings}
    )
    kept = list_drawings(rows) if drawings or "jpg_0" in form.columns else []
    if not converts:
        kept = rows.column_names
    elif images and not embeds:
        kept = [*kept, images]
    kept += ["chat_template_kwargs"] if "chat_template_kwargs" in rows.column_names and converts else []
    mapped = mapped.remove_columns("reason")
    if embeds and not any(mapped["images"][:]):
        mapped = mapped.remove_columns("images")  # trl takes a data set with this column for one of pictures
    pairs = concatenate_datasets([mapped, rows.select_columns(kept)], axis=1) if kept else mapped
    if images and not embeds and images != "images":
        pairs = pairs.rename_column(images, "images")
    return pairs if len(good) == len(pairs) else pairs.select(good)


@dataclass(frozen=True)
class OpenPairs:
    """Opens the pictures of prompts. A row with an unreadable picture is replaced by another row."""

    rows: Dataset
    skips: Skips
    fetch_urls: bool

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "images" not in batch:  # another column was requested
            return batch
        made = [self._open(dict(zip(batch, values))) for values in zip(*batch.values())]
        return {name: [row[name] for row in made] for name in batch}

    def _open(self, row: dict[str, Any]) -> dict[str, Any]:
        processor = URL_PROCESSOR if self.fetch_urls else IMAGE_PROCESSOR
        for place in range(len(self.rows)):
            images = row["images"]
            images = [images] if is_picture(images) else images
            try:
                return {**row, "images": open_pictures({"images": images}, processor)}
            except (TypeError, ValueError, OSError) as error:
                if not place:
                    first = self._find(row)
                if self.skips.path is None or first is None:
                    raise
                bad = self.rows[(first + place) % len(self.rows)]
                self.skips.add(bad["dps_origin"], bad["dps_origin_row"], f"unreadable picture: {error}")
                other = self.rows[(first + place + 1) % len(self.rows)]
                row = {name: other[name] for name in row}
        raise ValueError(f"No row has a readable picture. {self.skips.summary()}")

    def _find(self, row: Mapping[str, Any]) -> int | None:
        """The place of a row, since `datasets` does not tell it to a transform."""
        places = self._places.get(_digest_texts(row), ())
        return next((i for i in places if self.rows[i]["images"] == row["images"]), None)

    @cached_property
    def _places(self) -> dict[bytes, list[int]]:
        places: dict[bytes, list[int]] = {}
        for i, row in enumerate(self.rows.select_columns([n for n in TEXTS if n in self.rows.column_names])):
            places.setdefault(_digest_texts(row), []).append(i)
        return places


def _digest_texts(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(repr([row[name] for name in TEXTS if name in row]).encode()).digest()[:8]
