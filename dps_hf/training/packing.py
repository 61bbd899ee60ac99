"""Records packed into rows of tokens without padding between them."""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from PIL import Image

from dps_hf.data.record import Message, Record
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.collator import Collator
from dps_hf.training.conversations import Tokens


ROW = 256  # tokens; attention costs little up to here
MULTIPLE = 8  # of tokens in a row, which kernels of accelerators like


class Example(NamedTuple):
    """One record as tokens: what its questions share, then each question with its answer.

    ids, labels, weights: of each token. Outside of what is learned, the label is -100 and the weight 0.
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
    """Collates records into rows of tokens. A row holds several records without padding between them.

    A token attends to the tokens before it in its own record. `more` questions about a picture share the tokens of the
    picture and do not attend to each other. The result is that of separate records, at a fraction of the cost. If the
    decoder cannot take such a mask ([`takes_masks`]), each question becomes a separate record.

    Each token of an answer of n tokens has the weight n ** -0.5. So a drawing of many tokens neither outweighs a short
    answer, nor do its single tokens count for almost nothing (InternVL 2.5,
    https://huggingface.co/papers/2412.05271, section 3.3). If all text is learned, a record counts as one answer.

    Args:
        model, processor, assistant_only_loss, completion_only_loss: as for [`~dps_hf.training.collator.Collator`].
        packed_length: the most tokens in a row. A batch with a longer record has longer rows.

    Raises:
        ValueError: `packed_length` is below 1, or records cannot be told apart in one row of this decoder.

    Shapes of a batch:
        input_ids, position_ids, labels, loss_weights: `(rows, tokens)`
        examples, branches: `(rows, tokens)`, which example of the row a token belongs to (0: none) and its branch
            there
        pixel_values: `(pictures, 3, image_size, image_size)`, or the pictures' features, if there are pictures
    """

    def __init__(
        self,
        model: DPSForConditionalGeneration,
        processor: DPSProcessor,
        assistant_only_loss: bool = True,
        completion_only_loss: bool | None = None,
        packed_length: int = ROW,
    ):
        super().__init__(model, processor, assistant_only_loss, completion_only_loss)
        if packed_length < 1:
            raise ValueError(f"packed_length must be 1 or more; got {packed_length}. Try {ROW}.")
        check_packable(model)
        self.packed_length, self.shares_prompts = packed_length, takes_masks(model)

    def __call__(self, records: list[Record]) -> dict[str, torch.Tensor]:
        examples = list(self._examples(self.encode(records)))
        rows = _pack(examples, max(self.packed_length, *(len(example.ids) for example in examples)))
        longest = max(sum(len(example.ids) for example in row) for row in rows)
        length = -(-longest // MULTIPLE) * MULTIPLE
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
            batch["pixel_values"] = self.read_pictures(pictures)
        return batch

    def _examples(self, records: list[Record]) -> Iterator[Example]:
        asked = [_list_questions(record) for record in records]
        chats = ((i, messages) for i, several in enumerate(asked) for messages in several)
        tokens = iter(self.tokenize(records, chats))
        for record, several in zip(records, asked, strict=True):
            branches = [next(tokens) for _ in several]
            if self.shares_prompts:
                yield self._example(record, branches)
            else:
                yield from (self._example(record, [branch]) for branch in branches)

    def _example(self, record: Record, asked: list[Tokens]) -> Example:
        images, first = record["images"], asked[0]
        begin = self.find_drawing(first)
        if begin is None:
            return _join(asked, images)
        seen = self.hide_codes(first.ids, begin, record)
        if record.get("drop_prompt"):
            # What the unguided half of a guided batch sees: begin-of-image and nothing before.
            drawing = Tokens(first.ids[begin:], [0, *first.learned[begin + 1 :]], 0)
            return _join([drawing], [], seen[begin:])
        return _join(asked, images, seen)


def takes_masks(model: DPSForConditionalGeneration) -> bool:
    """Whether the decoder takes a mask that says for each pair of tokens whether one attends to the other.

    Kernels such as flash attention take no such mask, and sliding windows need their own. For these decoders,
    transformers finds the records of a row by their positions, which start at 0.
    """
    config = model.config.text_config
    layers = {*(getattr(config, "layer_types", None) or ())}
    full = layers <= {"full_attention"} and getattr(config, "sliding_window", None) is None
    return full and model.model.language_model.config._attn_implementation in ("eager", "sdpa")


def check_packable(model: DPSForConditionalGeneration) -> None:
    """Checks that records of one row can be kept apart.

    Raises:
        ValueError: the decoder carries a state from token to token, or takes no positions.
    """
    decoder = model.model.language_model
    stateful = getattr(decoder, "_is_stateful", False)
    if stateful or "position_ids" not in inspect.signature(decoder.forward).parameters:
        reason = "carries a state from token to token" if stateful else "takes no position_ids"
        raise ValueError(
            f"Packing needs a decoder that sees records of one row apart; {type(decoder).__name__} {reason}. Train it "
            "without packing, with RecordCollator."
        )


def _list_questions(record: Record) -> list[Sequence[Message]]:
    """The conversation, and the conversation with each further question and its answer in place of the last ones."""
    if not record.get("more"):
        return [record["messages"]]
    *before, question, _ = record["messages"]
    pictures = [part for part in question["content"] if part["type"] == "image"]
    if question["content"][: len(pictures)] != pictures:
        raise ValueError("A record with `more` questions must begin with its pictures, which the questions share.")
    asked: list[Sequence[Message]] = [record["messages"]]
    for text, said in record["more"]:
        other = Message(role="user", content=[*pictures, {"type": "text", "text": text}])
        asked.append([*before, other, Message(role="assistant", content=[{"type": "text", "text": said}])])
    return asked


def _join(asked: list[Tokens], images: list[Image.Image], seen: list[int] | None = None) -> Example:
    """One example of conversations that share their beginning.

    `seen` is what the model sees of the first.
    """
    # All but the last token of a prompt: an answer begins right after it, in its own branch.
    columns = zip(*(tokens.ids[: tokens.last - 1] for tokens in asked), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns)) if len(asked) > 1 else 0
    ids, positions, branches = asked[0].ids[:shared], list(range(shared)), [0] * shared
    # Nothing comes before the first token, and what comes before a later branch in the row is another one.
    learned = [0, *asked[0].learned[1:shared]] if shared else []
    numbers = max(asked[0].learned)
    labels = list(ids)
    for branch, tokens in enumerate(asked, start=1):
        ids += (seen or tokens.ids)[shared:]
        labels += tokens.ids[shared:]
        first = tokens.learned[shared] if branch == 1 and shared else 0
        own = [first, *tokens.learned[shared + 1 :]]
        learned += own if branch == 1 else [number and number + numbers * (branch - 1) for number in own]
        positions += range(shared, len(tokens.ids))
        branches += [branch] * (len(tokens.ids) - shared)
    counts = Counter(learned)
    weights = [counts[number] ** -0.5 if number else 0.0 for number in learned]
    labels = [label if number else -100 for label, number in zip(labels, learned, strict=True)]
    return Example(ids, labels, weights, positions, branches, images)


def _pack(examples: list[Example], length: int) -> list[list[Example]]:
    """The examples in as few rows of at most `length` tokens as are found, and of about the same length.

    The longest come first, each into the row that has the fewest tokens.
    """
    examples = sorted(examples, key=lambda example: -len(example.ids))
    count = -(-sum(len(example.ids) for example in examples) // length)
    while True:
        rows: list[list[Example]] = [[] for _ in range(count)]
        filled = [0] * count
        for example in examples:
            index = filled.index(min(filled))
            rows[index].append(example)
            filled[index] += len(example.ids)
        if max(filled) <= length:
            return rows
        count += 1


def _pad(rows: list[list[list]], length: int, filler: float) -> torch.Tensor:
    flat = [[value for values in row for value in values] for row in rows]
    return torch.tensor([row + [filler] * (length - len(row)) for row in flat])


def make_attention_mask(
    examples: torch.Tensor, branches: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The attention mask of packed rows: a token sees itself and the earlier tokens of its branch and its shared part.

    Shapes:
        examples, branches: `(rows, tokens)`, as [`PackingCollator`] gives them
        returns: `(rows, 1, tokens, tokens)`, 0 where a token sees another, otherwise the most negative number
    """
    same = examples[:, :, None] == examples[:, None]
    same &= (branches[:, :, None] == branches[:, None]) | (branches[:, None] == 0)
    hidden = ~same.tril()
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
