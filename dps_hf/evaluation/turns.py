"""The answers in held-out records as single turns, and the responses of a model to the same prompts."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.utils.logging import tqdm

from dps_hf.data.formats import DESCRIBE
from dps_hf.data.record import get_text
from dps_hf.data.sources import open_pictures
from dps_hf.inference import complete, encode_drawing
from dps_hf.model.image_processing_dps import DPSImageProcessor
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


CAPTIONS, QUESTIONS, DRAWINGS = KINDS = ("captions", "questions", "drawings")


@dataclass(frozen=True)
class Turn:
    """One answer of a record, and the conversation before it.

    messages: the conversation before the answer, as `apply_chat_template` takes it, with its pictures.
    wanted: the text of the answer without its thinking, or the drawing: a picture, or its codes.
    thinks: whether the answer begins with thinking.
    task: that of the record.
    """

    messages: tuple[dict[str, Any], ...]
    wanted: str | Image.Image | list[int]
    thinks: bool = False
    task: str = ""

    @property
    def prompt(self) -> str:
        """The text of the last question."""
        return get_text(self.messages[-1:]) if self.messages else ""

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The pictures that the user shows, in order."""
        shown = (part for message in self.messages if message["role"] != "assistant" for part in message["content"])
        return tuple(part["image"] for part in shown if part["type"] == "image")

    @property
    def draws(self) -> bool:
        """Whether the answer is a drawing."""
        return not isinstance(self.wanted, str)


def split_turns(record: Mapping[str, Any]) -> list[Turn]:
    """The answers of a record that are learned, each with the conversation before it.

    Raises:
        TypeError, ValueError: a picture is missing or cannot be opened.
    """
    pictures = iter(open_pictures(record, DPSImageProcessor()) if record.get("images") else [])
    codes = iter(record["codes"]) if record.get("codes") else None
    turns: list[Turn] = []
    before: list[dict[str, Any]] = []
    for index, message in enumerate(record["messages"]):
        assistant, content = message["role"] == "assistant", []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            else:
                content.append({"type": "image", "image": next(codes if assistant and codes else pictures)})
        if assistant and before and index >= (record.get("num_prompt_messages") or 0):
            words = get_text([{"content": content}])
            drawings = [part["image"] for part in content if part["type"] == "image"]
            wanted = drawings[-1] if drawings else DPSProcessor.split_thinking(words)[1]
            if wanted != "":
                turns.append(Turn(tuple(before), wanted, words.startswith("<think>"), record.get("task") or ""))
        before.append({"role": message["role"], "content": content})
    return turns


def sort_turns(turns: Iterable[Turn], answers: str | None = None) -> dict[str, list[Turn]]:
    """Turns by kind: those whose answer is a drawing, captions of pictures, and answers to questions.

    Args:
        answers: what answers about pictures are, "captions" or "questions". By default they are captions if most of
            them differ although most of their prompts repeat, or are wordings that were chosen for captioned pictures.

    Raises:
        ValueError: `answers` is something else.
    """
    if answers not in (None, CAPTIONS, QUESTIONS):
        raise ValueError(
            f"answers must be {CAPTIONS} or {QUESTIONS}; got {answers!r}. Leave it out to have it guessed."
        )
    turns = list(turns)
    about = [turn for turn in turns if not turn.draws and len(turn.pictures) == 1]
    if answers is None:
        texts, pictures = {turn.wanted for turn in about}, {digest(turn.pictures[0]) for turn in about}
        repeat = 2 * len({turn.prompt for turn in about}) <= max(2, len(about))
        repeat |= all(turn.task == DESCRIBE for turn in about)
        answers = CAPTIONS if repeat and 2 * len(texts) > len(pictures) else QUESTIONS
    kinds: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    for turn in turns:
        kinds[DRAWINGS if turn.draws else answers if len(turn.pictures) == 1 else QUESTIONS].append(turn)
    return {kind: found for kind, found in kinds.items() if found}


def digest(picture: Image.Image | Sequence[int]) -> str:
    """A text that is the same for equal pictures, and for equal codes."""
    if not isinstance(picture, Image.Image):
        return str(list(picture))
    rgb = picture.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def respond(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    turns: Sequence[Turn],
    batch_size: int = 32,
    progress: str | None = None,
    **sampling: Any,
) -> list[str | Image.Image]:
    """The responses of a model to the prompts of turns, each a text without thinking or a drawing.

    Texts are decoded greedily. If the model does not finish a drawing, the response is a white picture.

    Args:
        progress: name of a progress bar; without it, none is shown.
        sampling: how drawings are sampled: any argument of `model.generate`.
    """
    groups = defaultdict(list)
    for index, turn in enumerate(turns):
        groups[turn.draws, turn.thinks].append(index)
    batches = [
        (draws, thinks, members[start : start + batch_size])
        for (draws, thinks), members in sorted(groups.items())
        for start in range(0, len(members), batch_size)
    ]
    responses: list[Any] = [None] * len(turns)
    for draws, thinks, members in tqdm(batches, desc=progress, unit="batch", disable=progress is None):
        conversations = [write_messages(model, processor, turns[index]) for index in members]
        options = sampling if draws else {"do_sample": False}
        completions = complete(model, processor, conversations, drawing=draws, think=thinks, **options)
        for index, completion in zip(members, completions, strict=True):
            white = Image.new("RGB", (model.config.drawing_size,) * 2, "white")
            said = processor.split_thinking(completion.text)[1]
            responses[index] = (completion.drawing or white) if draws else said
    return responses


def write_messages(model: DPSForConditionalGeneration, processor: DPSProcessor, turn: Turn) -> list[dict[str, Any]]:
    """The conversation before the answer, with earlier drawings as the text of their codes."""
    messages = []
    for message in turn.messages:
        content = message["content"]
        if message["role"] == "assistant":
            content = [
                {"type": "text", "text": write_drawing(model, processor, part["image"])}
                if part["type"] == "image"
                else part
                for part in content
            ]
        messages.append({"role": message["role"], "content": content})
    return messages


def write_drawing(
    model: DPSForConditionalGeneration, processor: DPSProcessor, drawing: Image.Image | Sequence[int]
) -> str:
    """A drawing, given as a picture or as codes, as the text of its codes."""
    if isinstance(drawing, Image.Image):
        return encode_drawing(model, processor, drawing)
    return processor.drawing_text(drawing)


def show_wanted(model: DPSForConditionalGeneration, processor: DPSProcessor, turn: Turn) -> Image.Image:
    """The wanted drawing as a picture."""
    if isinstance(turn.wanted, Image.Image):
        return turn.wanted
    pixels = model.decode_image_tokens(torch.tensor([turn.wanted], device=model.device))
    return processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
