"""The record: the format of all training examples."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np
from PIL import Image


ROLES = ("system", "user", "assistant")

T = TypeVar("T")


def is_features(image: object) -> bool:
    """Whether a picture of a record is given by its features, `(num_image_tokens, hidden_size)` in float16.

    [`~dps_hf.data.features.FeaturedRecords`] has them. No picture has two dimensions and this type.
    """
    return getattr(image, "ndim", 0) == 2 and str(getattr(image, "dtype", "")) == "torch.float16"


class Message(TypedDict):
    """One turn: `content` is a list of `{"type": "text", "text": str}` and `{"type": "image"}`."""

    role: str
    content: list[dict[str, str]]


class _Conversation(TypedDict):
    messages: list[Message]
    images: list[Image.Image]
    task: str


class Record(_Conversation, total=False):
    """One conversation.

    The i-th `{"type": "image"}` of the conversation, in any role, is `images[i]`. A drawing is an image part of an
    assistant message. Reasoning is part of the assistant's text, as `<think>steps</think>answer`.

    A record whose only message is the assistant's is plain text: it is learned whole, without the chat template, and
    the end token follows.

    Optional fields; `None` counts as absent:
        num_prompt_messages: the first so many messages are the prompt and are not learned. Without it, every message
            of the assistant is learned.
        codes: the codes of each drawing, in order, `num_codes` integers each. `images` then holds only the pictures of
            the other messages. [`~dps_hf.data.codes.encode_ahead`] sets it.
        image_tokenizer: the name of the image tokenizer that made the codes, see
            [`~dps_hf.data.codes.name_image_tokenizer`].
        hint, steps: help, which `guidance.guide` adds to the messages.
        more: further questions about the pictures at the beginning of the last question, with their answers. The
            questions are independent of each other, and `steps` lead to all answers.
        drop_prompt, hidden_codes, hidden_codes_seed: whether a drawing is learned without its prompt, the share of its
            codes that is hidden from later codes, and the seed that chooses these codes.
            [`~dps_hf.data.dropouts.Dropouts`] sets them.
    """

    num_prompt_messages: int
    codes: list[list[int]]
    image_tokenizer: str
    hint: str
    steps: str
    more: list[tuple[str, str]]
    drop_prompt: bool
    hidden_codes: float
    hidden_codes_seed: int


def record(
    task: str,
    prompt: Sequence[str | Image.Image],
    answer: Sequence[str | Image.Image],
    hint: str = "",
    steps: str = "",
) -> Record:
    """Makes a record of one question and one answer, each a sequence of texts and pictures in reading order."""
    return {
        "messages": [
            {"role": "user", "content": [_part(part) for part in prompt]},
            {"role": "assistant", "content": [_part(part) for part in answer]},
        ],
        "images": [part for part in (*prompt, *answer) if not isinstance(part, str)],
        "task": task,
        "hint": hint,
        "steps": steps,
    }


def _part(part: str | Image.Image) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def validate(example: Mapping[str, Any]) -> None:
    """Checks a record, for example one that a user wrote.

    Raises:
        ValueError: a field is wrong. The error names the field, its value and the remedy.
    """
    if "image" in example:
        raise ValueError("A record has no field 'image'. Rename it to 'images' and make it a list of pictures.")
    for field in ("messages", "images"):
        if field not in example:
            raise ValueError(f"The record lacks '{field}'; it has {sorted(example)}. Add '{field}' as a list.")
    if not isinstance(example["messages"], (list, tuple)):
        raise ValueError(f"'messages' must be a list; got {type(example['messages']).__name__}.")
    pictures = get_pictures(example)
    if not example["messages"]:
        raise ValueError("'messages' is empty. Give at least one user and one assistant message.")

    image_parts = drawings = 0
    for i, message in enumerate(example["messages"]):
        count = _validate_message(f"messages[{i}]", message)
        image_parts += count
        drawings += count if message["role"] == "assistant" else 0
    _validate_prompt(example)
    if example.get("codes") is not None:
        _validate_codes(example["codes"], drawings)
        if image_parts - drawings != len(pictures):
            raise ValueError(
                f"'messages' mention {image_parts - drawings} image(s) outside of the assistant's but 'images' holds "
                f"{len(pictures)}. In a record with 'codes', leave the pictures of drawings out of 'images'."
            )
    elif image_parts != len(pictures):
        raise ValueError(
            f"'messages' mention {image_parts} image(s) but 'images' holds {len(pictures)}. "
            'Put one {"type": "image"} part where each picture belongs.'
        )


def get_pictures(example: Mapping[str, Any]) -> list:
    """The pictures of a record, opened or not. A record whose list is `None` has none.

    Raises:
        ValueError: 'images' is not a list, or a picture is `None` or a dict with neither bytes nor a path.
    """
    images = example.get("images")
    if images is None:
        return []
    if isinstance(images, (str, bytes, Mapping)) or not hasattr(images, "__len__"):
        raise ValueError(f"'images' must be a list; got {type(images).__name__}.")
    for i, image in enumerate(images):
        if image is None or (isinstance(image, Mapping) and image.get("bytes") is image.get("path") is None):
            raise ValueError(
                f"'images'[{i}] holds no picture; got {image!r}. Add the picture, or remove it and its part of "
                "the messages."
            )
    return list(images)


def get_text(answer: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of an answer of trl: a string, or messages whose content is a string or a list of parts."""
    if answer is None or isinstance(answer, str):
        return answer or ""
    contents = [message.get("content") or "" for message in answer]
    return "".join(
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
        for content in contents
    )


def _validate_prompt(example: Mapping[str, Any]) -> None:
    count, messages = example.get("num_prompt_messages"), example["messages"]
    if count is None:
        return
    if (type(count) is not int and not isinstance(count, np.integer)) or not 0 <= count < len(messages):
        raise ValueError(
            f"'num_prompt_messages' must be an integer from 0 to {len(messages) - 1}, so that of the {len(messages)} "
            f"messages at least one is learned; got {count!r}. Lower it, or leave it out."
        )
    if not any(message["role"] == "assistant" for message in messages[count:]):
        raise ValueError(
            f"'num_prompt_messages' must leave an assistant message to learn; got {count!r} of {len(messages)} "
            "messages. Lower it, or add the answer."
        )


def _validate_codes(codes: Any, drawings: int) -> None:
    remedy = "Give the codes of each drawing in order, or leave 'codes' out and put the drawings into 'images'."
    if isinstance(codes, (str, bytes, Mapping)) or not hasattr(codes, "__len__"):
        raise ValueError(f"'codes' must be a list of lists of integers; got {codes!r}. {remedy}")
    if len(codes) != drawings:
        raise ValueError(f"'messages' mention {drawings} drawing(s) but 'codes' holds {len(codes)}. {remedy}")
    for i, drawing in enumerate(codes):
        if isinstance(drawing, (str, bytes, Mapping)) or not hasattr(drawing, "__len__") or not len(drawing):
            raise ValueError(f"'codes'[{i}] must be a list of integers; got {drawing!r}. {remedy}")
        array = np.asarray(drawing)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
            raise ValueError(f"'codes'[{i}] must be integers of 0 or more; got {drawing!r}. {remedy}")


def _validate_message(where: str, message: Mapping[str, Any]) -> int:
    """Checks one message and returns its number of image parts."""
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} must be {{"role": ..., "content": [...]}}; got {message!r}.')
    if message.get("role") not in ROLES:
        raise ValueError(f"{where}['role'] must be one of {', '.join(ROLES)}; got {message.get('role')!r}.")
    content = message.get("content")
    if not isinstance(content, (list, tuple)) or not content:
        raise ValueError(
            f'{where}[\'content\'] must be a list with at least one part such as {{"type": "text", "text": "Hello"}}; '
            f"got {content!r}."
        )
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image"):
            raise ValueError(f"{where}['content'][{j}]['type'] must be 'text' or 'image'; got {part!r}.")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise ValueError(f"{where}['content'][{j}]['text'] must be a string; got {part.get('text')!r}.")
    return sum(part["type"] == "image" for part in content)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Picks one of `options`. It is faster than `rng.choice` and returns the object itself, not a NumPy scalar."""
    return options[int(rng.integers(len(options)))]


def list_picture_roles(record: Mapping[str, Any]) -> list[str]:
    """The role of the message of each image part."""
    return [m["role"] for m in record["messages"] for part in m["content"] if part["type"] == "image"]


def count_drawings(record: Mapping[str, Any]) -> int:
    return list_picture_roles(record).count("assistant")


def split_pictures(record: Record) -> tuple[list, list]:
    """The pictures of a record without `codes`: those of prompts, and the drawings."""
    roles = list_picture_roles(record)
    if not roles:
        return [], []
    if len(roles) != len(record["images"]):
        raise ValueError(
            f"'messages' mention {len(roles)} image(s) but 'images' holds {len(record['images'])}. "
            'Put one {"type": "image"} part where each picture belongs.'
        )
    pairs = list(zip(record["images"], roles, strict=True))
    drawings = [image for image, role in pairs if role == "assistant"]
    return [image for image, role in pairs if role != "assistant"], drawings
