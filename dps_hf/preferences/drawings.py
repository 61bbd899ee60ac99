"""Answers that are pictures, as text of their codes, because trl's trainers take pictures in prompts only."""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, IterableDataset, Value
from datasets.fingerprint import Hasher
from torch.utils.data import get_worker_info

from dps_hf.data.codes import copy_image_tokenizer, digest_image_tokenizer
from dps_hf.data.preferences import ANSWERS, ORIGIN, OpenPairs, list_drawings
from dps_hf.data.rows import IMAGE_PROCESSOR, open_pictures
from dps_hf.data.sources import Skips
from dps_hf.inference import encode
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


def write_drawings(
    preferences: Dataset | IterableDataset,
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    batch_size: int = 32,
    skipped: str | Path | None = None,
    max_skipped: float = 0.1,
) -> Dataset | IterableDataset:
    """Replaces answers that are pictures by the text of their codes. Preferences without any are returned as they are.

    Drawings are encoded on the accelerator, once: `datasets` keeps the result for these rows and this image tokenizer.
    Those of streamed preferences are encoded when they are requested.

    Args:
        preferences: what [`~dps_hf.data.preferences.read_preferences`] returns.
        skipped, max_skipped: as for `read_preferences`: rows whose drawings cannot be opened are listed and left out.

    Raises:
        ValueError: too many drawings cannot be opened; without `skipped`, one cannot.
    """
    columns = list_drawings(preferences)
    if not columns:
        return preferences
    state, encoder = PartialState(), copy_image_tokenizer(model).eval()
    write = _Write(encoder, processor)
    if isinstance(preferences, IterableDataset):
        written = preferences.map(write, batched=True, batch_size=batch_size, remove_columns=columns)
        return written.remove_columns("reason")
    opener = preferences.format["format_kwargs"].get("transform")
    rows = preferences.with_format(None)
    with state.main_process_first():
        written = rows.map(
            write,
            batched=True,
            batch_size=batch_size,
            remove_columns=columns,
            features=_without(rows, columns),
            new_fingerprint=Hasher.hash([rows._fingerprint, digest_image_tokenizer(encoder, processor)]),
            desc="Encoding drawings",
        )
    skips, reasons = Skips(skipped, max_skipped), written["reason"][:]
    origins = list(zip(*(written[name][:] for name in ORIGIN), strict=True))
    for origin, reason in zip(origins, reasons, strict=True):
        if not reason:
            skips.note(*origin)
    for (source, row), reason in zip(origins, reasons, strict=True):
        if reason and skipped is None:
            raise ValueError(f"record {row} of {source}: {reason}")
        if reason:
            skips.add(source, row, reason)
    written = written.remove_columns("reason").select([i for i, reason in enumerate(reasons) if not reason])
    pairs = written.remove_columns([*ORIGIN])
    return pairs.with_transform(replace(opener, rows=written)) if isinstance(opener, OpenPairs) else pairs


@dataclass(frozen=True)
class _Write:
    """Writes the drawings of a batch of pairs as text, and gives the reason where one cannot be opened."""

    encoder: DPSModel
    processor: DPSProcessor

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        answers = [name for name in ANSWERS if name in batch]
        # A loader's worker must not touch the accelerator.
        self.encoder.to(PartialState().device if get_worker_info() is None else "cpu")
        pictures: list = []
        places: list[tuple[int, str]] = []
        reasons = [""] * len(batch[answers[0]])
        for i in range(len(reasons)):
            wanted = {part["column"] for name in answers for message in batch[name][i] for part in message["content"]}
            try:
                opened = {
                    column: open_pictures({"images": [batch[column][i]]}, IMAGE_PROCESSOR)[0]
                    for column in sorted(wanted - {None})
                }
            except (TypeError, ValueError, OSError) as error:
                reasons[i] = f"unreadable picture: {error}"
                continue
            pictures += opened.values()
            places += [(i, column) for column in opened]
        codes = encode(self.encoder, self.processor, pictures).tolist() if pictures else []
        texts = {place: self.processor.drawing_text(one) for place, one in zip(places, codes, strict=True)}
        made = {
            name: [
                [{**message, "content": [_write(part, i, texts) for part in message["content"]]} for message in chat]
                for i, chat in enumerate(batch[name])
            ]
            for name in answers
        }
        return {**made, "reason": reasons}


def _write(part: dict, i: int, texts: dict[tuple[int, str], str]) -> dict:
    if part["column"] is None:
        return part
    return {"type": "text", "text": texts.get((i, part["column"])), "column": None}


def _without(rows: Dataset, columns: list[str]):
    features = rows.features.copy()
    for column in columns:
        del features[column]
    features["reason"] = Value("string")
    return features
