"""Records packed into rows of tokens without padding between them."""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from PIL import Image

from dps_hf.data.record import Message, Record
from dps_hf.training.collator import Collator, write_prompt_and_text


ROW = 256  # tokens; attention costs little up to here


class Example(NamedTuple):
    """One record as tokens: what its questions share, then each question with its answer.

    ids, labels, weights: of each token. Outside of answers the label is -100 and the weight 0.
    positions: within the record. Each question begins where the shared part ends.
    branches: 0 in the shared part, then the number of the question.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    positions: list[int]
    branches: list[int]
    images: list[Image.Image]


class PackingCollator(Collator):
    """Records to rows of tokens. A row holds several records with no token between them and few after them.

    A token sees the tokens before it in its own record. `more` questions about a picture share the picture's tokens
    and cannot see each other. To the model they are separate records, at a fraction of the cost.

    An answer of n tokens has the weight of n ** 0.5 tokens. So the many tokens of a drawing neither outweigh a short
    name nor count for almost nothing each (InternVL 2.5, https://huggingface.co/papers/2412.05271, section 3.3).

    A `<think>` at the beginning of an answer belongs to the prompt, because it is how thinking is requested. An answer
    may be text, a drawing, or a plan followed by a drawing.

    Shapes of a batch:
        input_ids, position_ids, labels, loss_weights: `(rows, tokens)`
        examples, branches: `(rows, tokens)`, which example of the row a token belongs to (0: none) and its branch
            there
        pixel_values: `(pictures, 3, image_size, image_size)`, if there are pictures
    """

    def __call__(self, records: list[Record]) -> dict[str, torch.Tensor]:
        examples = list(self._examples(self.encode(records)))
        length = max(ROW, *(len(example.ids) for example in examples))
        rows = _pack(examples, length)
        pictures = [image for row in rows for example in row for image in example.images]
        batch = {
            "input_ids": _pad([[e.ids for e in row] for row in rows], length, self.config.pad_token_id),
            "position_ids": _pad([[e.positions for e in row] for row in rows], length, 0),
            "labels": _pad([[e.labels for e in row] for row in rows], length, -100),
            "loss_weights": _pad([[e.weights for e in row] for row in rows], length, 0.0),
            "examples": _pad([[[i] * len(e.ids) for i, e in enumerate(row, 1)] for row in rows], length, 0),
            "branches": _pad([[e.branches for e in row] for row in rows], length, 0),
        }
        if pictures:
            batch["pixel_values"] = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return batch

    def _examples(self, records: list[Record]) -> Iterator[Example]:
        prompts, texts = [], []
        placeholder = self.processor.image_token
        for record in records:
            for question, answer in _list_questions(record):
                prompt, text = write_prompt_and_text(self.processor, question, answer)
                several = placeholder * self.processor.num_image_tokens
                prompts.append(prompt.replace(placeholder, several))
                texts.append(text.replace(placeholder, several))
        tokenized = zip(*(self.processor.tokenizer(side)["input_ids"] for side in (prompts, texts)), strict=True)
        for record in records:
            yield self._example(record, [next(tokenized) for _ in _list_questions(record)])

    def _example(self, record: Record, asked: list[tuple[list[int], list[int]]]) -> Example:
        images = record["images"]
        (prompt, ids), *_ = asked
        boi = self.config.boi_token_id
        if boi not in ids[len(prompt) :]:  # earlier turns may hold drawings, too
            return _join(asked, images)
        begin = ids.index(boi, len(prompt))
        seen = self.hide_codes(ids, begin, record)
        if record.get("drop_prompt"):
            # What the unguided half of a guided batch sees: begin-of-image and nothing before.
            return _join([([boi], ids[begin:])], [], seen[begin:])
        return _join(asked, images, seen)


def _list_questions(record: Record) -> list[tuple[list[Message], Message]]:
    """Each question with its answer; further questions come after the same pictures."""
    *before, question, answer = record["messages"]
    pictures = [part for part in question["content"] if part["type"] == "image"]
    if record.get("more") and question["content"][: len(pictures)] != pictures:
        raise ValueError("A record with `more` questions must begin with its pictures, which the questions share.")
    asked = [([*before, question], answer)]
    for text, said in record.get("more", ()):
        other = Message(role="user", content=[*pictures, {"type": "text", "text": text}])
        asked.append(([*before, other], Message(role="assistant", content=[{"type": "text", "text": said}])))
    return asked


def _join(
    asked: list[tuple[list[int], list[int]]], images: list[Image.Image], seen: list[int] | None = None
) -> Example:
    """One example of the tokens of prompts, and of prompts with answers.

    `seen` is what the model sees of the first.
    """
    # All but the last token of a prompt: an answer begins right after it, in its own branch.
    columns = zip(*(prompt[:-1] for prompt, _ in asked), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns)) if len(asked) > 1 else 0
    ids, positions, branches = asked[0][1][:shared], list(range(shared)), [0] * shared
    labels, weights = [-100] * shared, [0.0] * shared
    for branch, (prompt, text) in enumerate(asked, start=1):
        answer = len(text) - len(prompt)
        ids += (seen or text)[shared:]
        labels += [-100] * (len(prompt) - shared) + text[len(prompt) :]
        weights += [0.0] * (len(prompt) - shared) + [answer**-0.5] * answer
        positions += range(shared, len(text))
        branches += [branch] * (len(text) - shared)
    return Example(ids, labels, weights, positions, branches, images)


def _pack(examples: list[Example], length: int) -> list[list[Example]]:
    """The examples in rows of at most `length` tokens, each in the first row that has room, the longest first."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        size = len(example.ids)
        index = next((i for i, left in enumerate(room) if left >= size), None)
        if index is None:
            rows.append([])
            room.append(length)
            index = len(rows) - 1
        rows[index].append(example)
        room[index] -= size
    return rows


def _pad(rows: list[list[list]], length: int, filler: float) -> torch.Tensor:
    flat = [[value for values in row for value in values] for row in rows]
    return torch.tensor([row + [filler] * (length - len(row)) for row in flat])


def make_attention_mask(examples: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """The attention mask of packed rows: a token sees itself and the earlier tokens of its branch and its shared part.

    Shapes:
        examples, branches: `(rows, tokens)`, as [`PackingCollator`] gives them
        returns: `(rows, 1, tokens, tokens)`, 0 where a token sees another, otherwise the most negative float32
    """
    same = examples[:, :, None] == examples[:, None]
    same &= (branches[:, :, None] == branches[:, None]) | (branches[:, None] == 0)
    hidden = ~same.tril()
    mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, torch.finfo(torch.float32).min)
    return mask[:, None]
