"""Preference data on disk: parts, which several machines may write, and the two datasets made of all parts.

Parts can be streamed before all of them are written:
`load_dataset("parquet", data_files="preferences/parts/*.paired.parquet", streaming=True)`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, load_from_disk
from filelock import FileLock  # comes with datasets

from dps_hf.contact_sheet import Item, Section, draw_page
from dps_hf.files import write_whole
from dps_hf.judges.verdict import NO_REPLY
from dps_hf.preferences.pairs import PAIRED, UNPAIRED, Selection, make_paired_rows, make_unpaired_rows
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response


KINDS: dict[str, Features] = {"paired": PAIRED, "unpaired": UNPAIRED}
ROWS_AT_A_TIME = 1000  # rows in memory while files are copied


def is_written(folder: Path, part: int) -> bool:
    return _make_path(folder, part, "json").exists()


def is_finished(folder: Path, part: int) -> bool:
    """Whether a part is written and the judge replied to all of its cases."""
    return is_written(folder, part) and not json.loads(_make_path(folder, part, "json").read_text()).get(NO_REPLY)


def write_part(
    folder: Path,
    part: int,
    responses: Iterable[tuple[Prompt, list[Response]]],
    selection: Selection,
    lost: Mapping[str, int] | None = None,
) -> Counter[str]:
    """Writes the rows of some prompts, and returns how many there are of each kind.

    Args:
        lost: further counts, of what is in no row. With a count of `NO_REPLY` the part is not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    counts = +Counter(lost or {})
    for prompt, group in responses:
        counts["prompts"] += 1
        counts["prompts with pictures"] += bool(prompt.images)
        pairs = make_paired_rows(prompt, group, selection, counts)
        counts["prompts with pairs"] += bool(pairs)
        rows["paired"] += pairs
        rows["unpaired"] += make_unpaired_rows(prompt, group, selection, counts)
    for kind, features in KINDS.items():
        columns = {name: [row[name] for row in rows[kind]] for name in features}
        dataset = Dataset.from_dict(columns, features=features)
        write_whole(_make_path(folder, part, f"{kind}.parquet"), dataset.to_parquet)
    # Last: a part counts as written when this file is there.
    write_whole(_make_path(folder, part, "json"), json.dumps(counts))
    return counts


def join_parts(folder: Path, num_parts: int, output: Path) -> dict:
    """Makes `output/paired` and `output/unpaired` of all parts, and returns the statistics, which it also saves.

    Parts that are not written yet are left out, and counted as "missing parts". A dataset without rows is not written.
    Without pictures in any prompt there is no column `images`, since trl takes a dataset with that column for one of
    pictures. If several machines find all parts, the first one joins them and the others wait.
    """
    parts = [_make_path(folder, part, "json") for part in range(num_parts) if is_written(folder, part)]
    with FileLock(folder / "join.lock"):
        joined = output / "statistics.json"
        if not joined.exists() or joined.stat().st_mtime_ns < max(part.stat().st_mtime_ns for part in parts):
            joined.unlink(missing_ok=True)  # it is the sign that all was joined
            statistics = _join(folder, parts, output)
            if len(parts) < num_parts:
                statistics["missing parts"] = num_parts - len(parts)
            write_whole(joined, json.dumps(statistics, indent=2) + "\n")
        return json.loads(joined.read_text())


def _join(folder: Path, parts: list[Path], output: Path) -> dict:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(json.loads(part.read_text()))
    statistics: dict = {"counts": dict(counts)}
    rows = {"paired": counts["pairs"], "unpaired": counts["good"] + counts["bad"]}
    for kind in KINDS:
        shutil.rmtree(output / kind, ignore_errors=True)
        if not rows[kind]:
            continue
        files = [str(part.with_suffix(f".{kind}.parquet")) for part in parts]
        cache = folder / "cache"  # removed below: nothing is left in a home folder
        dataset = Dataset.from_parquet(files, cache_dir=str(cache), features=KINDS[kind])
        statistics[kind] = _compute_statistics(dataset)
        if not counts["prompts with pictures"]:
            dataset = dataset.remove_columns("images")
        dataset.save_to_disk(output / kind)
        del dataset  # it holds the cache open
        shutil.rmtree(cache, ignore_errors=True)
    return statistics


def _compute_statistics(dataset: Dataset) -> dict:
    """Rows of each task, and the mean of each number over all rows."""
    numbers = [name for name in dataset.column_names if name.startswith(("score", "tokens")) or name == "label"]
    sums: dict[str, float] = dict.fromkeys(numbers, 0.0)
    tasks: Counter[str] = Counter()
    for batch in dataset.select_columns([*numbers, "task"]).with_format("numpy").iter(ROWS_AT_A_TIME):
        for name in numbers:
            sums[name] += float(np.sum(batch[name]))
        tasks.update(map(str, batch["task"]))
    return {
        "rows": len(dataset),
        "rows of each task": dict(tasks),
        "means": {name: round(sums[name] / len(dataset), 4) for name in numbers},
    }


def draw_sheet(path: Path, to_picture, number: int = 24):
    """A picture of the first pairs of a dataset: each with its prompt, the chosen response and the rejected one.

    Args:
        path: folder of the dataset.
        to_picture: a function that returns the drawing in a text as a picture, or None.
        number: how many pairs.
    """
    dataset = load_from_disk(path)
    items = []
    for row in dataset.select(range(min(number, len(dataset)))):
        answers = [row[side][0]["content"] for side in ("chosen", "rejected")]
        drawings = [to_picture(answer) for answer in answers]
        pictures = [*row.get("images", ()), *(drawing for drawing in drawings if drawing)]
        lines = [row["prompt"][0]["content"]]
        for side, answer, drawing in zip(("chosen", "rejected"), answers, drawings):
            lines.append(f"{side} ({row[f'score_{side}']:.2f})")  # by itself: words in another script are left out
            lines += [] if drawing else [answer]
        items.append(Item(pictures, lines))
    return draw_page([Section("Pairs: the chosen response comes first", items, columns=4)])


def _make_path(folder: Path, part: int, kind: str) -> Path:
    return folder / f"part-{part:05}.{kind}"
