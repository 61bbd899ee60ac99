"""Writes the question to a judging model, and reads its reply. `transport.py` sends the request."""

import base64
import hashlib
import json
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from PIL import Image

from dps_hf.judges.verdict import Case
from dps_hf.model.image_processing_dps import to_rgb


RUBRICS = Path(__file__).parent / "rubrics"
TASKS = ("score", "compare", "refine")

Part = tuple[str, str | Image.Image]
"""A label, for example "prompt", and the text or picture."""


class Rubric:
    """The aspects that are scored, their scale and guidance for the judge, read from a template file.

    Args:
        source: "answer" or "drawing", which come with the package; or the path of a Jinja file that sets `aspects` (a
            dict of names and meanings), `lowest` and `highest` (integers), and has the guidance as its text.

    Raises:
        ValueError: there is no such file, or it does not set these.
        ImportError: pydantic is missing.
    """

    def __init__(self, source: str | PathLike):
        shipped = RUBRICS / f"{source}.jinja"
        path = shipped if shipped.exists() else Path(source)
        if not path.is_file():
            raise ValueError(
                f"rubric must be 'answer', 'drawing' or the path of a template file; got {str(source)!r}."
            )
        jinja = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        try:
            module: Any = jinja.from_string(path.read_text(encoding="utf-8")).module
            self.aspects, self.lowest, self.highest = module.aspects, module.lowest, module.highest
        except (TemplateError, AttributeError) as error:
            raise ValueError(
                f"The rubric {path} cannot be used: {error}. It must set aspects, lowest and highest; "
                f"see {shipped.parent}."
            ) from None
        _check(path, self.aspects, self.lowest, self.highest)
        self.name = path.stem
        rules = jinja.from_string((RUBRICS / "rules.jinja").read_text(encoding="utf-8"))
        scale = {"aspects": self.aspects, "lowest": self.lowest, "highest": self.highest}
        self._instructions = {task: rules.render(task=task, guidance=str(module).strip(), **scale) for task in TASKS}
        self._replies = {task: self._reply_type(task) for task in TASKS}

    def _reply_type(self, task: str) -> Any:
        try:
            from pydantic import ConfigDict, Field, create_model
        except ImportError as error:
            raise ImportError("A rubric needs pydantic. Install it with `pip install dps_hf[judge]`.") from error
        # Strict: "8/10", true and 7.5 are no integers.
        score = Annotated[int, Field(strict=True, ge=self.lowest, le=self.highest)]
        side = Literal["first", "second", "tie"]
        fields: dict[str, Any] = {"rationale": (str, ...)}  # first, so that the model reasons before it scores
        if task == "refine":
            fields["rewrite"] = (str, ...)
        else:
            fields |= dict.fromkeys(self.aspects, (score if task == "score" else side, ...))
        # The schema forbids other keys, as OpenAI demands; replies with other keys are read anyway.
        return create_model(
            "Reply", __config__=ConfigDict(json_schema_extra={"additionalProperties": False}), **fields
        )

    def question(self, task: str, judge: str, case: Case, other: Case | None = None) -> "Question":
        """A question; `task` is one of `TASKS`, and `other` has the second response of a comparison."""
        responses = ["response"] if other is None else ["first", "second"]
        parts: list[Part] = [("picture", image) for image in case.images]
        parts += [("prompt", case.prompt)]
        parts += [(label, c.response) for label, c in zip(responses, (case, other)) if c is not None]
        return Question(judge, self._instructions[task], tuple(parts), self._replies[task])

    def scale(self, value: int) -> float:
        """Converts a score on the scale of the rubric to one between 0 and 1."""
        return (value - self.lowest) / (self.highest - self.lowest)


def _check(path: Path, aspects: Any, lowest: Any, highest: Any) -> None:
    if not isinstance(aspects, dict) or not aspects:
        raise ValueError(f"{path}: aspects must be a dict of names and meanings; got {aspects!r}.")
    for name in aspects:
        if not re.fullmatch("[a-z][a-z_]*", str(name)) or name in ("rationale", "rewrite"):
            raise ValueError(f"{path}: an aspect is a word of small letters, not rationale or rewrite; got {name!r}.")
    if not (isinstance(lowest, int) and isinstance(highest, int) and lowest < highest):
        raise ValueError(f"{path}: lowest must be a whole number below highest; got {lowest!r} and {highest!r}.")


@dataclass(frozen=True)
class Question:
    """One question to one judge, and the type of the reply."""

    judge: str
    instructions: str
    parts: Sequence[Part]
    reply_type: Any

    @property
    def key(self) -> str:
        """Digest of judge, instructions, texts and pictures, 64 hex digits; equal questions have equal keys."""
        parts = [[label, body if isinstance(body, str) else compute_digest(body)] for label, body in self.parts]
        return hashlib.sha256(json.dumps([self.judge, self.instructions, parts]).encode()).hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """Messages of the chat protocol: pictures are data URLs, and content without pictures is a plain string."""
        # A text cannot contain its own digest, so no text can close the tags around it.
        mark = self.key[:16]
        content = [_make_text_part(f"The mark of this case is {mark}.")]
        for label, body in self.parts:
            if isinstance(body, str):
                content.append(_make_text_part(f"<{label} {mark}>\n{disarm(body)}\n</{label} {mark}>"))
            else:
                picture = {"type": "image_url", "image_url": {"url": make_data_url(body)}}
                content += [_make_text_part(f"<{label} {mark}>"), picture, _make_text_part(f"</{label} {mark}>")]
        content.append(
            _make_text_part(f"The case {mark} ends here. Reply with the JSON object that your instructions ask for.")
        )
        wordy = all(part["type"] == "text" for part in content)
        return [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": "\n".join(part["text"] for part in content) if wordy else content},
        ]

    def response_format(self) -> dict[str, Any]:
        """The schema of the reply, for servers that support structured output."""
        schema = {"name": "verdict", "strict": True, "schema": self.reply_type.model_json_schema()}
        return {"type": "json_schema", "json_schema": schema}

    def read(self, reply: str | Mapping) -> Any:
        """The fields of the verdict in a reply: a JSON object that has them, whatever is around it. None without one.

        Objects in the model's thoughts do not count, nor do objects that also stand in the judged texts, which are
        quotations, in whatever spelling. An object with a repeated key is no verdict. Two different verdicts are none.

        Args:
            reply: a text, or a whole message, in which the verdict may stand in any of several places.
        """
        return next((verdict for verdict in map(self._read_text, read_texts(reply)) if verdict is not None), None)

    def _read_text(self, reply: str) -> Any:
        texts = [disarm(body) for _, body in self.parts if isinstance(body, str)]
        claims = [self._verdict(value) for text in texts for _, value in _find_objects(text)]
        quotable = [_squeeze(text) for text in [*texts, *(said for _, said in filter(None, claims))]]
        answer, found = _find_answer(reply)
        verdicts: list[Any] = []
        for span, value in found:
            judged = self._verdict(value)
            if judged is None or span.start not in answer:
                continue
            verdict, said = judged
            spellings = (_squeeze(reply[span.start : span.stop]), _squeeze(said))
            if verdict not in verdicts and not any(spelling in text for spelling in spellings for text in quotable):
                verdicts.append(verdict)
        return verdicts[0] if len(verdicts) == 1 else None

    def _verdict(self, value: Any) -> tuple[Any, str] | None:
        """The fields of a JSON value and their text without escapes; None if the value is no verdict."""
        try:
            verdict = self.reply_type.model_validate(value)
            return verdict, verdict.model_dump_json()
        except ValueError:  # a field is missing or wrong, or has half of a surrogate pair
            return None


def _make_text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


# Reading


def read_texts(reply: str | Mapping) -> list[str]:
    """The texts of a reply that may hold the verdict, the likeliest first, without empty ones.

    Args:
        reply: a text, or a whole message. Its `content` is a text or a list of blocks; a verdict may also stand in
            `parsed` or in the arguments of a tool call. Separate thoughts count only if they are one JSON object and
            there is no other text: some servers take a reply without thoughts for thoughts.
    """
    if isinstance(reply, str):
        return [reply] if reply.strip() else []
    content = reply.get("content")
    blocks = content if isinstance(content, list) else [content]
    calls = reply.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    texts = ["".join(map(_block_text, blocks)), _convert_to_text(reply.get("parsed"))]
    texts += [
        _convert_to_text(one.get("arguments"))
        for one in [*functions, reply.get("function_call")]
        if isinstance(one, dict)
    ]
    texts += [_convert_to_text(reply.get("refusal"))]
    texts = [text for text in texts if text.strip()]
    if not texts:
        thoughts = (_convert_to_text(reply.get(name)).strip() for name in ("reasoning_content", "reasoning"))
        texts = [text for text in thoughts if [span for span, _ in _find_objects(text)] == [range(len(text))]]
    return texts


def has_answer(reply: str | Mapping) -> bool:
    """Whether the reply has anything but thoughts and control tokens."""
    spans = [(text, _find_answer(text)[0]) for text in read_texts(reply)]
    return any(re.sub(r"<\|\w+\|>|</s>", "", text[span.start : span.stop]).strip() for text, span in spans)


def _block_text(block: Any) -> str:
    """The text of one block of a message's content; empty for thoughts."""
    if not isinstance(block, dict):
        return _convert_to_text(block)
    if re.search("think|thought|reason", str(block.get("type"))) or block.get("thought"):
        return ""
    for name in ("text", "refusal", "json", "parsed"):
        if name in block:
            value = block[name]
            return _convert_to_text(value.get("value", value) if isinstance(value, dict) else value)
    return "" if "type" in block else _convert_to_text(block)  # without a type it is the verdict itself


def _convert_to_text(value: Any) -> str:
    """A text unchanged, a dict as JSON, anything else as an empty text."""
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict) else ""


# How models mark their thoughts: one group for each mark that begins them, and one for each that ends them.
_NAMES = r"(?:\w+[:_])?(?:think|thinking|thoughts?|thought_process|reason|reasoning|reflection|analysis|scratchpad)"
_MARKS = re.compile(
    "|".join(
        f"(?P<{kind}_{family}>{mark})"
        for family, (begin, end) in {
            "tag": (rf"<{_NAMES}(?:\s[^<>/]*)?>", rf"</\s*{_NAMES}\s*>"),  # <think>, <seed:think>
            "bracket": (rf"\[{_NAMES}\]", rf"\[/{_NAMES}\]"),  # [THINK]
            "triangle": (rf"◁{_NAMES}▷", rf"◁/{_NAMES}▷"),
            "token": (
                rf"<\|(?:begin_of_|start_|begin_)?{_NAMES}\|>|<\|inner_prefix\|>|<\|channel>\s*thought",
                rf"<\|(?:/|end_of_|end_){_NAMES}\|>|<\|inner_suffix\|>|<channel\|>",
            ),
            # With its tokens, or without them if the server removed them.
            "channel": (
                r"<\|channel\|>\s*(?!final)\w+|\Aanalysis(?-i:(?=[A-Z]))",
                r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal",
            ),
            "sentence": (r"\AHere(?:'s| is) my thought process:", r"Here(?:'s| is) my response:"),
        }.items()
        for kind, mark in (("end", end), ("begin", begin))  # <|end_of_thought|> begins nothing
    ),
    re.IGNORECASE,
)


def _find_answer(reply: str) -> tuple[range, list[tuple[range, Any]]]:
    """The range of the answer after the thoughts, and all JSON objects of the reply.

    The mark that begins the thoughts may be missing, since it may be part of the prompt. After thoughts that do not
    end there is no answer. Marks inside a JSON object do not count.
    """
    found = list(_find_objects(reply))
    starts = [span.start for span, _ in found]
    start, stop, thinks = 0, len(reply), ""
    for mark in _MARKS.finditer(reply):
        before = bisect(starts, mark.start())
        if before and mark.start() in found[before - 1][0]:
            continue
        kind, family = str(mark.lastgroup).split("_")
        if kind == "begin" and not thinks:
            stop, thinks = mark.start(), family
        elif kind == "end" and thinks in ("", family):  # thoughts may mention the marks of other models
            start, stop, thinks = mark.end(), len(reply), ""
    return range(start, stop), found


JOINER = "\u2060"  # has no width


def disarm(text: str) -> str:
    """A text that looks the same, but has no tags, and no control tokens such as `<|im_end|>` or `[INST]`."""
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
    return re.sub(r"<(?=\S)|\[(?=/?[A-Z_]+\])|◁(?=/?\w+▷)", rf"\g<0>{JOINER}", text)


def restore(text: str) -> str:
    """Undoes `disarm` in a text that the judge copied."""
    return re.sub(rf"([<\[◁]){JOINER}", r"\1", text)


def make_data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    to_rgb(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def compute_digest(image: Image.Image) -> str:
    """SHA-256 digest of size and pixels, which does not depend on the version of Pillow."""
    rgb = to_rgb(image)
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _squeeze(text: str) -> str:
    """A text without spaces and invisible characters, which a quotation may have lost."""
    return "".join(letter for letter in text if letter.isprintable() and letter != " ")


def _find_objects(text: str) -> Iterator[tuple[range, Any]]:
    """Every JSON object in the text that is not inside another one: its range and its value.

    The value of an object with a repeated key is None.
    """
    decoder = json.JSONDecoder(  # not strict: without structured output, texts may have line breaks
        strict=False, object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else None
    )
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield range(start, end), value
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
