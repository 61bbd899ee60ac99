"""The usual formats of rows, and how a row of each becomes a record.

[`guess_form`] finds out which form the rows have, and [`Form.to_record`] maps one row. Pictures are not opened here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dps_hf.data.record import Message, Record, get_pictures, pick


DESCRIBE, DRAW = "describe", "draw"  # tasks of the records of captioned pictures
IMAGE_MARK = "<image>"  # where LLaVA's texts have a picture

# The fields of `columns`, and the names of columns that are taken for each by default, best first.
KNOWN = {
    "messages": ("messages", "conversations", "conversation", "texts"),
    "images": (
        "images", "image", "img", "picture", "pictures", "photo", "jpg", "jpeg", "png", "webp", "image_path",
        "image_file", "img_path", "image_url", "file_name", "filename",
    ),
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input"),
    "completion": ("completion", "response", "answer", "output", "multiple_choice_answer", "answers"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
    "caption": ("caption", "captions", "description", "text", "txt", "TEXT", "alt_text", "sentences"),
    "text": ("text", "content"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "label": ("label",),
}  # fmt: skip
ALIASES = {"image": "images", "captions": "caption", "question": "prompt", "answer": "completion"}
PICK_A_PIC = ("jpg_0", "jpg_1", "label_0", "label_1")

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
# Fields of records in rows.
EXTRA_FIELDS = ("task", "hint", "steps", "more", "codes", "num_prompt_messages", "image_tokenizer")

EXAMPLES = {
    "record": 'columns: {messages: my_chats}, or columns: {prompt: my_questions, completion: my_answers}, or columns: '
    "{images: my_pictures, caption: my_captions}, or columns: {text: my_texts}",
    "picture": "columns: {images: my_pictures}",
    "preference": "columns: {prompt: my_questions, chosen: better_answers, rejected: worse_answers}, or columns: "
    "{prompt: my_questions, completion: my_answers, label: is_good}",
}  # fmt: skip


class BadRow(ValueError):
    """A row that nothing can be learned from. The message is the reason."""


@dataclass(frozen=True)
class Captions:
    """How a captioned picture becomes a record: the model learns to describe it, or to draw it from its caption.

    describe, draw: the share of the records of each kind.
    describe_prompts, draw_prompts: the prompts of each kind, of which a record gets one. Those of `draw_prompts`
        contain `{caption}`.
    """

    describe: float = 0.5
    draw: float = 0.5
    describe_prompts: tuple[str, ...] = (
        "What is in this picture?",
        "What does this picture show?",
        "Describe this picture.",
        "Write a caption for this picture.",
    )
    draw_prompts: tuple[str, ...] = ("{caption}", "Draw: {caption}", "Draw a picture of this: {caption}")

    @classmethod
    def read(cls, captions: Mapping[str, Any] | None) -> "Captions":
        """Reads the field `captions` of a recipe.

        Raises:
            ValueError: a field is unknown or of a wrong type, a share is negative or none is positive, or a prompt of
                `draw` lacks `{caption}`.
        """
        example = 'captions: {describe: {share: 0.5, prompts: ["What is it?"]}, draw: {prompts: ["Draw {caption}"]}}'
        given = captions or {}
        if not isinstance(given, Mapping) or not set(given) <= {"describe", "draw"}:
            raise ValueError(
                f"captions must have describe, draw or both; got {given!r}. Write, for example, {example}"
            )
        fields: dict[str, Any] = {}
        for direction, settings in given.items():
            if not isinstance(settings, Mapping) or not set(settings) <= {"share", "prompts"}:
                raise ValueError(
                    f"captions.{direction} must have share, prompts or both; got {settings!r}. Write, for example, "
                    f"{example}"
                )
            if "share" in settings:
                fields[direction] = settings["share"]
            if "prompts" in settings:
                prompts = settings["prompts"]
                prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts or ())
                if not prompts or (direction == "draw" and not all("{caption}" in prompt for prompt in prompts)):
                    wanted = "prompts with {caption}" if direction == "draw" else "prompts"
                    raise ValueError(f"captions.{direction}.prompts must be {wanted}; got {settings['prompts']!r}.")
                fields[f"{direction}_prompts"] = prompts
        shares = [name for name in ("describe", "draw") if name in fields]
        for name in shares:
            if isinstance(fields[name], bool) or not isinstance(fields[name], (int, float)) or fields[name] < 0:
                raise ValueError(f"captions.{name}.share must be a number of 0 or more; got {fields[name]!r}.")
        if len(shares) == 1:  # the other direction gets the rest
            if fields[shares[0]] > 1:
                raise ValueError(
                    f"captions.{shares[0]}.share must be from 0 to 1 where it is the only one; got "
                    f"{fields[shares[0]]!r}. Give the other share, too."
                )
            other = "draw" if shares[0] == "describe" else "describe"
            fields[other] = 1 - fields[shares[0]]
        captions_read = cls(**fields)
        if not captions_read.describe + captions_read.draw:
            raise ValueError("captions must give describe or draw a share above 0; got none.")
        return captions_read


@dataclass(frozen=True)
class Form:
    """What the rows of one data set are.

    kind: the name of the format to print.
    columns: the column of each field in `KNOWN` that is used.
    captions: how captioned pictures become records.
    names: the class names of each column that holds class labels.
    """

    kind: str
    columns: Mapping[str, str]
    captions: Captions = field(default_factory=Captions)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        used = ", ".join(f"{name}: {column}" for name, column in self.columns.items())
        ways = ", described and drawn" if self.num_visits > 1 else ""
        return f"{self.kind}{ways} ({used})"

    def get(self, row: Mapping[str, Any], name: str) -> Any:
        """The value of a field in a row, `None` if the row has none."""
        column = self.columns.get(name)
        value = row.get(column) if column else None
        if column and column in self.names and isinstance(value, int):
            return self.names[column][value].replace("_", " ") if value >= 0 else None
        return value

    def list_pictures(self, row: Mapping[str, Any]) -> list:
        """The pictures of a row, unopened.

        Raises:
            BadRow: one is missing.
        """
        return _list_pictures(self.get(row, "images"))

    @property
    def num_visits(self) -> int:
        """How many records a row gives in an epoch: two where pictures are both described and drawn."""
        return 2 if "caption" in self.columns and self.captions.describe and self.captions.draw else 1

    def to_record(
        self, row: Mapping[str, Any], rng: np.random.Generator, answered: bool = True, visit: int = 0
    ) -> Record:
        """Makes a record of a row. Its pictures are what the row has: paths, bytes, pictures.

        Args:
            rng: chooses among several captions or answers, and between describing and drawing. It begins at the same
                state in each visit.
            visit: how many records the row has given before.
            answered: whether the record must have an answer to learn from.

        Raises:
            BadRow: nothing can be learned from this row.
        """
        pictures = self.list_pictures(row)
        if {*self.columns} == {"images"}:
            return _make_record([], pictures)
        if "messages" in self.columns:
            example = self._map_conversation(row, pictures)
        elif "caption" in self.columns:
            example = self._map_captioned(row, pictures, rng, visit)
        elif "text" in self.columns:
            text = _read_text(self.get(row, "text"))
            if IMAGE_MARK in text:
                raise BadRow(f"the text has the token {IMAGE_MARK}, and there is no picture")
            example = _make_record([{"role": "assistant", "content": [_make_text_part(text)]}], [])
            example["num_prompt_messages"] = 0  # all of it is learned
        else:
            example = self._map_prompt_and_completion(row, pictures, rng, answered)
        for name in EXTRA_FIELDS:
            if row.get(name) is not None and name not in self.columns.values():
                example[name] = row[name]  # type: ignore[literal-required]
        if answered and example.get("num_prompt_messages") != 0:
            _check_answer(example)
        return example

    def _map_conversation(self, row: Mapping[str, Any], pictures: list) -> Record:
        turns = self.get(row, "messages")
        if not isinstance(turns, (list, tuple)) or not turns:
            raise BadRow(f"'{self.columns['messages']}' has no messages")
        example = read_messages(self.add_system(row, turns), pictures, codes=row.get("codes"))
        roles = [message["role"] for message in example["messages"]]
        if "user" in roles and "assistant" in roles[: roles.index("user")]:
            example["num_prompt_messages"] = roles.index("user")  # a greeting, or the rest of an answer that was cut
        return example

    def add_system(self, row: Mapping[str, Any], turns: Sequence) -> list:
        """The turns after the system prompt of the row, if it has one."""
        system = self.get(row, "system")
        return [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system else [*turns]

    def _map_captioned(self, row: Mapping[str, Any], pictures: list, rng: np.random.Generator, visit: int) -> Record:
        share = self.captions.describe / (self.captions.describe + self.captions.draw)
        # The second visit is half a period later. With equal shares it takes the other direction; with other shares,
        # both visits together have these shares.
        describes = (rng.random() + visit / 2) % 1 < share
        rng.random(visit)  # so that another visit has other words
        caption = _read_text(_choose(self.get(row, "caption"), rng)).strip()
        if IMAGE_MARK in caption:
            raise BadRow(f"the caption has the token {IMAGE_MARK}")
        if len(pictures) != 1:
            raise BadRow(f"wrong number of pictures: a caption belongs to one, and the row has {len(pictures)}")
        prompt = pick(rng, self.captions.describe_prompts if describes else self.captions.draw_prompts)
        prompt = prompt.replace("{caption}", caption)
        picture = {"type": "image"}
        question, answer = [picture, _make_text_part(prompt)], [_make_text_part(caption)]
        if not describes:
            question, answer = [_make_text_part(prompt)], [picture]
        messages: list[Message] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        example = _make_record(messages, pictures, DESCRIBE if describes else DRAW)
        example["num_prompt_messages"] = 1
        return example

    def _map_prompt_and_completion(
        self, row: Mapping[str, Any], pictures: list, rng: np.random.Generator, answered: bool
    ) -> Record:
        prompt, answer = self.get(row, "prompt"), self.get(row, "completion")
        question = make_turns(prompt, "user")
        if more := self.get(row, "input"):
            question = [{"role": "user", "content": f"{_read_text(prompt)}\n\n{_read_text(more)}"}]
        question = self.add_system(row, question)
        if answer is None and not answered:
            return read_messages(question, pictures)
        if is_picture(answer):
            answer = [{"role": "assistant", "content": [{"type": "image", "image": answer}]}]
        elif not _is_chat(answer):
            answer = make_turns(_choose(answer, rng), "assistant")
        # Before reading, because an empty system prompt is dropped.
        num_answers = len(answer)
        example = read_messages([*question, *answer], pictures)
        example["num_prompt_messages"] = len(example["messages"]) - num_answers
        return example


def guess_form(
    columns: Sequence[str],
    features: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
    captions: Mapping[str, Any] | None = None,
    source: str = "the data set",
    kind: str = "",
    answered: bool = True,
) -> Form:
    """Finds out which columns hold what.

    Args:
        columns: the columns that are there.
        features: the types of the columns, where `datasets` knows them.
        given: the setting `columns`: field to column. What it leaves out is guessed.
        captions: the setting `captions`, see [`Captions`].
        source: the name of the data set in errors.
        kind: the name of the form, if it is known already.
        answered: whether there must be a column of answers.

    Raises:
        ValueError: the form cannot be guessed, or `given` names columns or fields that do not exist. The error lists
            the columns.
    """
    chosen = _read_given_columns(columns, given, source, "record")
    names = {name: kind.names for name, kind in (features or {}).items() if getattr(kind, "names", None)}
    find = _Finder(columns, features, chosen)
    images = find("images")
    leading = {*chosen} - {"images", "system", "input"}  # if one of these is given, it decides

    def wants(*fields: str) -> bool:
        return bool(leading & {*fields}) if leading else all(find(name) for name in fields)

    def form(name: str, *fields: str) -> Form:
        used = find.all(*fields)
        return Form(kind or name, used, Captions.read(captions), {c: names[c] for c in used.values() if c in names})

    if wants("messages"):
        name = "messages"
        if find("messages") in ("conversations", "conversation"):
            name = "LLaVA conversations" if images else "ShareGPT conversations"
        return form(name, "messages", "images", "system")
    if wants("prompt", *(["completion"] if answered else [])) and (not answered or find("completion")):
        named = {"instruction": "instructions", "question": "questions and answers"}
        return form(
            named.get(str(find("prompt")), "prompts and completions"),
            "prompt", "completion", "images", "input", "system",
        )  # fmt: skip
    if images and not leading and not find("caption") and "prompt" in columns:
        find.chosen["caption"] = "prompt"  # of drawings
    if images and (wants("caption") or "caption" in find.chosen):
        return form("captions", "images", "caption")
    if wants("text") and (leading or not images):
        return form("text", "text")
    raise _cannot_guess(columns, source, "record")


def guess_pictures(
    columns: Sequence[str],
    features: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
    source: str = "the data set",
    kind: str = "",
) -> Form:
    """Finds the column of pictures. Without one, the rows may be conversations with pictures in them.

    Raises:
        ValueError: there is neither, or `given` names columns or fields that do not exist.
    """
    find = _Finder(columns, features, _read_given_columns(columns, given, source, "picture"))
    if images := find("images"):
        return Form(kind or "pictures", {"images": images})
    if messages := find("messages"):
        return Form("messages", {"messages": messages})
    raise _cannot_guess(columns, source, "picture")


def guess_preferences(
    columns: Sequence[str],
    features: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
    source: str = "the data set",
) -> Form:
    """Finds out which columns hold the prompt, the better and the worse answer, or one answer and its label.

    Raises:
        ValueError: as for [`guess_form`].
    """
    chosen = _read_given_columns(columns, given, source, "preference")
    find = _Finder(columns, features, chosen)
    if not chosen and {*PICK_A_PIC} <= {*columns} and (prompt := find("caption") or find("prompt")):
        return Form("Pick-a-Pic's pairs of drawings", {"prompt": prompt, **{name: name for name in PICK_A_PIC}})
    if find("chosen") and find("rejected"):
        return Form("pairs", find.all("prompt", "chosen", "rejected", "images", "system"))
    if find("prompt") and find("completion") and find("label"):
        return Form("labelled answers", find.all("prompt", "completion", "label", "images", "system"))
    raise _cannot_guess(columns, source, "preference")


class _Finder:
    """Finds the column of a field: the one that is given, one with a usual name, or the only one of pictures."""

    def __init__(self, columns: Sequence[str], features: Mapping[str, Any] | None, chosen: Mapping[str, str]):
        self.columns, self.features, self.chosen = columns, features or {}, dict(chosen)

    def __call__(self, name: str) -> str | None:
        if name in self.chosen:
            return self.chosen[name]
        free = [column for column in self.columns if column not in self.chosen.values()]
        for column in KNOWN[name]:
            if column in free:
                return column
        if name == "images":
            return _get_only([column for column in free if holds_pictures(self.features.get(column))])
        if name == "caption":  # the class of a picture, such as the name of its folder
            return _get_only([column for column in free if getattr(self.features.get(column), "names", None)])
        return None

    def all(self, *fields: str) -> dict[str, str]:
        """The columns of these fields. No column is used for two fields."""
        for name in fields:
            if column := self(name):
                self.chosen[name] = column
        return {name: self.chosen[name] for name in fields if name in self.chosen}


def _get_only(columns: Sequence[str]) -> str | None:
    return columns[0] if len(columns) == 1 else None


def holds_pictures(feature: Any) -> bool:
    """Whether a feature of `datasets` is `Image` or a list of it."""
    return "Image" in (type(feature).__name__, type(getattr(feature, "feature", None)).__name__)


def _read_given_columns(
    columns: Sequence[str], given: Mapping[str, str] | None, source: str, purpose: str
) -> dict[str, str]:
    """The setting `columns`, checked."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"columns of {source} must give fields their columns; got {given!r}. {_write_example(purpose)}"
        )
    chosen = {ALIASES.get(name, name): column for name, column in (given or {}).items()}
    for name, column in chosen.items():
        if name not in KNOWN:
            raise ValueError(
                f"columns of {source} must name fields out of {', '.join(KNOWN)}; got {name!r}. "
                + _write_example(purpose)
            )
        if column not in columns:
            raise ValueError(
                f"columns.{name} of {source} must be one of its columns, {', '.join(columns)}; got {column!r}."
            )
    return chosen


def _write_example(purpose: str) -> str:
    return f"Write, for example, {EXAMPLES[purpose]}."


def _cannot_guess(columns: Sequence[str], source: str, purpose: str) -> ValueError:
    return ValueError(
        f"What the columns of {source} hold cannot be guessed; it has {', '.join(columns)}. {_write_example(purpose)}"
    )


def read_messages(turns: Iterable[Mapping[str, Any]], pictures: Sequence, codes: Sequence | None = None) -> Record:
    """Makes a record of the turns of a conversation in the format of OpenAI, ShareGPT, LLaVA or the Cauldron.

    An image part that has its own picture keeps it. The other places of pictures, `{"type": "image"}` or `<image>` in
    a text, take `pictures` in order. If there are no such places, the pictures come before the first question.

    Args:
        codes: codes of the drawings, if the record has them. Then `pictures` are those of the other messages.

    Raises:
        BadRow: a role is unknown, a message is empty, or there are more or fewer places than pictures.
    """
    messages: list[Message] = []
    places: list[Any] = []  # a picture, or None for the next of `pictures`
    for i, turn in enumerate(turns):
        for role, content in _split_turn(i, turn):
            parts, own = _read_parts(i, content)
            if not parts:
                if role == "system":
                    continue
                raise BadRow(f"messages[{i}] has no text")
            messages.append({"role": role, "content": parts})
            places += [] if codes is not None and role == "assistant" else own
    shown = [part["type"] for message in messages if message["role"] != "assistant" for part in message["content"]]
    if pictures and "image" not in shown and None not in places:
        before, question = _find_first_question(messages)
        question["content"] = [*({"type": "image"} for _ in pictures), *question["content"]]
        places[before:before] = [None] * len(pictures)
    left = sum(place is None for place in places)
    if left != len(pictures):
        raise BadRow(f"wrong number of pictures: the messages have places for {left}, and the row has {len(pictures)}")
    remaining = iter(pictures)
    return _make_record(messages, [next(remaining) if place is None else place for place in places])


def _find_first_question(messages: Sequence[Message]) -> tuple[int, Message]:
    """The first message of the user, and how many pictures are before it."""
    before = 0
    for message in messages:
        if message["role"] == "user":
            return before, message
        before += sum(part["type"] == "image" for part in message["content"])
    raise BadRow("wrong roles: there is no message of the user")


def _split_turn(i: int, turn: Any) -> list[tuple[str, Any]]:
    """The role and content of one turn; two of each if it is a question with its answer."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"messages[{i}] must have a role and a content; got {turn!r:.80}")
    if "user" in turn and "assistant" in turn:
        return [("user", turn["user"]), ("assistant", turn["assistant"])]
    name = turn.get("role") or turn.get("from")
    role = ROLES.get(str(name).lower())
    if role is None:
        raise BadRow(f"wrong roles: messages[{i}] is of {name!r}, not of user, assistant or system")
    content = turn.get("content")
    if content is None and turn.get("tool_calls"):
        raise BadRow(f"wrong roles: messages[{i}] calls a tool, which is no text to learn")
    return [(role, turn.get("value") if content is None else content)]


def _read_parts(i: int, content: Any) -> tuple[list[dict[str, str]], list]:
    """The parts of a content, and the own picture of each image part, `None` if the part has none."""
    parts: list[dict[str, str]] = []
    own: list = []
    if isinstance(content, Mapping):
        content = [content]
    for part in content if isinstance(content, (list, tuple)) else [content]:
        if part is None or part == "":
            continue
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind in ("text", "input_text") or (kind is None and part.get("text") is not None):
            text = part.get("text") if isinstance(part, Mapping) else part
            pieces = _convert_to_text(text).split(IMAGE_MARK)
            for j, piece in enumerate(pieces):
                if j:
                    parts.append({"type": "image"})
                    own.append(None)
                piece = piece.strip() if len(pieces) > 1 else piece
                if piece:
                    parts.append(_make_text_part(piece))
        elif kind in ("image", "image_url", "input_image"):
            picture = next(
                (part[name] for name in ("image", "image_url", "url", "path", "bytes", "base64") if part.get(name)),
                None,
            )
            if isinstance(picture, Mapping) and picture.get("url"):
                picture = picture["url"]
            parts.append({"type": "image"})
            own.append(picture)
        else:
            raise BadRow(f"messages[{i}] has a part of type {kind!r}; only text and image are known")
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        return [], []
    return parts, own


def _check_answer(example: Record) -> None:
    roles = [message["role"] for message in example["messages"]]
    learned = roles[example.get("num_prompt_messages") or 0 :]
    if "user" not in roles or "assistant" not in learned:
        raise BadRow(f"wrong roles: an answer to a question is missing; the roles are {', '.join(roles) or 'none'}")


def _make_record(messages: list[Message], images: list, task: str = "") -> Record:
    return {"messages": messages, "images": images, "task": task}


def _make_text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _convert_to_text(value: Any) -> str:
    if isinstance(value, (str, int, float, bool)):
        return str(value)
    raise BadRow(f"no text: got {type(value).__name__}" if value is not None else "no text")


def _read_text(value: Any) -> str:
    text = _convert_to_text(value)
    if not text.strip():
        raise BadRow("no text")
    return text


def make_turns(value: Any, role: str) -> list:
    """Messages of a prompt or a completion, which is a text, or messages already."""
    if _is_chat(value):
        return [*value]
    if isinstance(value, (list, tuple)):  # parts
        return [{"role": role, "content": value}]
    return [{"role": role, "content": _read_text(value)}]


def _is_chat(value: Any) -> bool:
    return bool(
        isinstance(value, (list, tuple))
        and value
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


def _choose(value: Any, rng: np.random.Generator) -> Any:
    """One of several captions or answers."""
    if isinstance(value, (list, tuple)):
        usable = [one for one in value if one not in (None, "")]
        if not usable:
            raise BadRow("no text")
        if isinstance(usable[0], Mapping) and "type" in usable[0]:
            return usable  # parts of one answer
        value = pick(rng, usable)
    if isinstance(value, Mapping):
        return _choose(
            next((value[name] for name in ("answer", "caption", "raw", "text") if name in value), None), rng
        )
    return value


def is_picture(value: Any) -> bool:
    """Whether a value is a picture, opened or not. A string does not count, although it may be a path."""
    if isinstance(value, Mapping):
        return "bytes" in value and "path" in value
    return isinstance(value, bytes) or hasattr(value, "getbands")


def _list_pictures(value: Any) -> list:
    """The pictures of a row, which may have one, a list or none."""
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, (str, bytes, Mapping)) or hasattr(value, "getbands") or hasattr(value, "shape"):
        value = [value]
    try:
        return get_pictures(cast(Any, {"images": value}))
    except ValueError as error:
        raise BadRow(str(error)) from None
