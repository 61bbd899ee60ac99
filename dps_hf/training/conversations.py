"""Renders and tokenizes conversations, and finds the tokens that have a loss."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from dps_hf.data.record import Message, Record, get_text
from dps_hf.model.processing_dps import DPSProcessor


THINK = "<think>"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]


class Conversation(NamedTuple):
    """A conversation as text.

    learned: where in `text` the parts are that are learned, `(start, end)` each, in order.
    last: where the last message begins if it is an answer, else the length of `text`.
    """

    text: str
    learned: list[Span]
    last: int


class Tokens(NamedTuple):
    """A conversation as tokens.

    learned: for each token, in which of the learned parts it is, counted from 1; 0 if it is not learned.
    last: index of the first token of the last message if that is an answer, else the number of tokens.
    """

    ids: list[int]
    learned: list[int]
    last: int


def write_conversation(
    processor: DPSProcessor,
    record: Record,
    messages: Sequence[Message],
    assistant_only: bool = True,
    completion_only: bool | None = None,
) -> Conversation:
    """Renders messages with the chat template, or as plain text where the only message is the assistant's.

    A `<think>` at the beginning of an answer belongs to the prompt, because it is how thinking is requested.

    Args:
        record: gives `num_prompt_messages`.
        assistant_only, completion_only: as `assistant_only_loss` and `completion_only_loss` of trl.

    Raises:
        ValueError: `completion_only` is true and the record has no `num_prompt_messages`, there is nothing to learn,
            or the chat template does not let answers be found.
    """
    count = record.get("num_prompt_messages")
    if count is None and completion_only:
        raise ValueError(
            "completion_only_loss=True needs records with 'num_prompt_messages', and this one has none. Leave "
            "completion_only_loss out, or set the field."
        )
    learned_from = 0 if count is None or completion_only is False else count
    if [message["role"] for message in messages] == ["assistant"]:
        text = get_text(messages) + processor.tokenizer.eos_token
        return Conversation(text, [(0, len(text))], 0)

    roles = [message["role"] for message in messages]
    text, answers = _find_answers(processor, messages)
    last = answers[len(messages) - 1][0] if roles[-1] == "assistant" else len(text)
    if assistant_only:
        learned = [span for i, span in answers.items() if i >= learned_from]
    elif learned_from in answers:
        learned = [(answers[learned_from][0], len(text))]
    else:
        prompt = _render(processor, messages[:learned_from], False) if learned_from else ""
        _check_prefix(prompt, text, learned_from)
        learned = [(len(prompt), len(text))]
    if not learned:
        raise ValueError(
            f"none of the {len(messages)} messages is learned: there is no answer of the assistant"
            f"{f' after the first {learned_from}' if learned_from else ''}. Add one, or set assistant_only_loss to "
            "False."
        )
    return Conversation(text, learned, last)


def _render(processor: DPSProcessor, messages: Sequence[Message], opens: bool, thinks: bool = False) -> str:
    # The library takes what a template does not name for an argument of the processor.
    options = {"enable_thinking": thinks} if "enable_thinking" in processor.chat_template else {}
    return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opens, **options)


def _find_answers(processor: DPSProcessor, messages: Sequence[Message]) -> tuple[str, dict[int, Span]]:
    """The whole text, and for each message of the assistant where its answer is, up to what ends it."""
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    thinks = {i: get_text([messages[i]]).startswith(THINK) for i in indices}
    if GENERATION.search(processor.chat_template):
        (text,), (spans,) = render_jinja_template(
            [list(messages)],
            chat_template=processor.chat_template,
            return_assistant_tokens_mask=True,
            **processor.tokenizer.special_tokens_map,
        )
        if len(spans) != len(indices):
            raise ValueError(
                f"the chat template marks {len(spans)} answers with {{% generation %}}, but the conversation has "
                f"{len(indices)}. Mark what the assistant says in each of its messages."
            )
        found = dict(zip(indices, spans, strict=True))
    else:
        text, found = _render(processor, messages, False), {}
        for i in indices:
            before = _render(processor, messages[:i], True, thinks[i])
            through = _render(processor, messages[: i + 1], False)
            _check_prefix(before, through, i)
            _check_prefix(through, text, i + 1)
            found[i] = len(before), len(through)
    for i, (start, end) in found.items():
        thought = thinks[i] and text.startswith(THINK, start)
        found[i] = start + len(THINK) * thought, end
    return text, found


def _check_prefix(prefix: str, text: str, count: int) -> None:
    if not text.startswith(prefix):
        raise ValueError(
            f"the chat template renders messages[:{count}] differently when other messages follow, so it cannot be "
            "told which tokens are the answer. Mark answers in the template with {% generation %} and "
            "{% endgeneration %}, or use the template of dps_hf."
        )


def tokenize(processor: DPSProcessor, conversations: Sequence[Conversation]) -> list[Tokens]:
    """Tokenizes each text as a whole. Placeholders of pictures are repeated, and are never learned.

    Raises:
        ValueError: the tokenizer is a slow one, which does not say where its tokens are.
    """
    tokenizer, image_token = processor.tokenizer, processor.image_token
    if not tokenizer.is_fast:
        raise ValueError(f"training needs a fast tokenizer; got {type(tokenizer).__name__}. Load it with use_fast.")
    texts = [one.text.replace(image_token, image_token * processor.num_image_tokens) for one in conversations]
    # As in `apply_chat_template`: a template may write the token that begins each text.
    bos = tokenizer.bos_token
    begun = bool(texts and bos and texts[0].startswith(bos))
    encoded = tokenizer(
        texts, add_special_tokens=not begun, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    made = []
    for one, ids, offsets in zip(conversations, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        learned = np.zeros(len(ids), dtype=np.int64)
        for number, span in enumerate(one.learned, 1):
            start, end = (_shift(processor, one.text, place) for place in span)
            learned[(starts >= start) & (starts < end) & (ends > starts)] = number
        learned[np.array(ids) == processor.image_token_id] = 0
        after = np.flatnonzero((starts >= _shift(processor, one.text, one.last)) & (ends > starts))
        made.append(Tokens(ids, learned.tolist(), int(after[0]) if len(after) else len(ids)))
    return made


def _shift(processor: DPSProcessor, text: str, place: int) -> int:
    """Where a place in the text is after placeholders have been repeated."""
    more = (processor.num_image_tokens - 1) * len(processor.image_token)
    return place + text.count(processor.image_token, 0, place) * more
