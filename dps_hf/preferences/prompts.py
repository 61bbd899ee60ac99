"""What a model is asked: questions of tasks, lines of a file, or the questions of saved records."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.data.record import Message, Record, get_pictures
from dps_hf.data.rows import BUILDERS
from dps_hf.data.sources import read_unanswered
from dps_hf.judges.verdict import find_control_token
from dps_hf.model.image_processing_dps import to_rgb
from dps_hf.model.processing_dps import DPSProcessor


PATIENCE = 1000  # so many records in a row without a new question are taken for the end of a task, which has none


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    text: its words.
    images: the pictures that are shown before the words.
    answers: the right answers, where they are known.
    draw: whether a drawing is asked for.
    think: whether the model thinks or plans aloud first.
    task: the name of the task that it comes from.
    steps: the reasoning that leads to the right answer, where it is known.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    answers: tuple[str, ...] = ()
    draw: bool = False
    think: bool = False
    task: str = ""
    steps: str = ""

    @property
    def key(self) -> str:
        """Digest of everything that the model is shown, 64 hex digits."""
        pixels = b"".join(repr(image.size).encode() + to_rgb(image).tobytes() for image in self.images)
        return sha256(repr((self.text, self.draw, self.think)).encode() + pixels).hexdigest()

    @cached_property
    def encoded_images(self) -> list[dict]:
        """The pictures as `datasets` stores them, encoded once for all rows."""
        encoded = []
        for image in self.images:
            buffer = BytesIO()
            to_rgb(image).save(buffer, format="PNG")  # PNG has no CMYK
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        return encoded


def extract_prompts(
    records: Iterable[Record], think: Iterable[str] = (), task: str = "", patience: int = PATIENCE
) -> Iterator[Prompt]:
    """The last question of each record, each only once.

    Args:
        think: names of the tasks in which the model thinks aloud.
        task: the name of the task for records that have none.
        patience: after this many records in a row without a new question, the prompts end.
    """
    seen, think, known = set(), frozenset(think), 0
    for record in records:
        *before, question = record["messages"]
        answer: Message = {"role": "assistant", "content": []}  # a question alone is one whose answer is not known
        if question["role"] == "assistant":
            *before, question, answer = record["messages"]
        words = [part["text"] for part in question["content"] if part["type"] == "text"]
        texts = [part["text"] for part in answer["content"] if part["type"] == "text"]
        worked = [DPSProcessor.split_thinking(text) for text in texts]
        start, shown = _count_pictures(*before), _count_pictures(question)
        name = record.get("task") or task
        prompt = Prompt(
            text="".join(words),
            images=tuple(get_pictures(record)[start : start + shown]),
            answers=tuple(right for _, right in worked),
            draw=_count_pictures(answer) > 0,
            think=name in think,
            task=name,
            steps=record.get("steps") or next((steps for steps, _ in worked if steps), ""),
        )
        known = known + 1 if prompt.key in seen else 0
        if known == patience:
            return
        if not known:
            seen.add(prompt.key)
            yield prompt


def _count_pictures(*messages: Message) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def sample_prompts(weights: Mapping[str, float], seed: int, think: Iterable[str] = ()) -> Iterator[Prompt]:
    """Questions of tasks, each only once, in the order of a [`~dps_hf.data.mixture.Mixture`] without guidance.

    Args:
        weights: dotted path of each task to its weight.
        think: names of the tasks in which the model thinks aloud.
    """
    guidance = dict.fromkeys(map(name_of, weights), Schedule({"none": 1}))
    return extract_prompts(Mixture(weights, seed, guidance=guidance).stream(), think)


def read_prompts(path: Path | Mapping[str, Any], think: Iterable[str] = ()) -> Iterator[Prompt]:
    """Your own prompts, each only once.

    Args:
        path: a text file with a prompt for a drawing on each line; or records whose last questions are asked: a file
            or a folder in any form that [`~dps_hf.data.sources.read_records`] takes, or a mapping of its settings.
            Prompts without a task get the name of the file or folder as their task.
        think: names of the tasks in which the model thinks aloud.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file has no prompt or is not UTF-8, or the folder has several splits or no records; or a line
            or a record is wrong (for example it holds a control token), and the error gives its number.
    """
    if isinstance(path, Mapping) or path.is_dir() or (path.suffix != ".txt" and path.suffix in BUILDERS):
        yield from extract_prompts(_check_questions(path), think, patience=sys.maxsize)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts must name a file in UTF-8; {path} is not ({error}). Save it as UTF-8.") from None
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise ValueError(f"prompts must name a file with a prompt for a drawing on each line; {path} has none.")
    for i, line in enumerate(lines, 1):
        if name := find_control_token(line):
            raise ValueError(
                f"line {i} of {path} must not hold control tokens; got {name!r}. Write it in other words."
            )
    for line in dict.fromkeys(filter(None, lines)):
        yield Prompt(line, draw=True, think=path.stem in think, task=path.stem)


def _check_questions(dataset: Path | Mapping[str, Any]) -> Iterator[Record]:
    for i, one in enumerate(read_unanswered(dataset)):
        try:
            _check_question(one)
        except ValueError as error:
            raise ValueError(f"record {i} of {dataset}: {error}") from error
        yield one


def _check_question(one: Record) -> None:
    if "user" not in [message["role"] for message in one["messages"][-2:]]:
        raise ValueError("'messages' must end with a question of the user, or with one and its answer.")
    for part in one["messages"][-1 if one["messages"][-1]["role"] == "user" else -2]["content"]:
        if name := find_control_token(part.get("text") or ""):
            raise ValueError(f"a question must not hold control tokens; got {name!r}. Write it in other words.")
