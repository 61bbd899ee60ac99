"""Checks of records before a model learns from them."""

from collections.abc import Mapping
from typing import Any

from datasets.fingerprint import Hasher

from dps_hf.data.codes import name_image_tokenizer
from dps_hf.data.formats import BadRow
from dps_hf.data.record import Message, Record, count_drawings
from dps_hf.model.configuration_dps import DPSConfig
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.conversations import tokenize, write_conversation


TOKENS_OF_A_TURN = 64  # at most, what a chat template writes around a message


class RecordCheck:
    """Checks whether a model can learn from a record.

    Args:
        room: how many tokens the record must leave to an answer that is still to be generated.

    Raises:
        BadRow: when called, if the record has more tokens than the decoder is made for.
        ValueError: when called, if its codes are those of another image tokenizer.
    """

    def __init__(self, model: DPSForConditionalGeneration, processor: DPSProcessor, room: int = 0):
        self.processor, self.limit, self.room = processor, find_length_limit(model.config), room
        self.image_tokenizer = name_image_tokenizer(model)
        self.num_codes = model.config.num_codes + 2  # with what begins and ends a drawing

    @property
    def fingerprint(self) -> str:
        """Differs if other records may be too long."""
        tokenizer = self.processor.tokenizer
        return Hasher.hash([self.limit, type(tokenizer).__name__, len(tokenizer), self.processor.chat_template])

    def __call__(self, record: Record) -> None:
        own = record.get("image_tokenizer")
        if record.get("codes") and own and own != self.image_tokenizer:
            raise ValueError(
                f"The codes of this data set are those of the image tokenizer {own}, and the model has "
                f"{self.image_tokenizer}. Train a model with that one, or encode the pictures again with this one."
            )
        if self.limit is None or self._bound_tokens(record) + self.room <= self.limit:
            return
        try:
            length = self.count_tokens(record) + self.room
        except ValueError:  # the collator tells what is wrong
            return
        if length > self.limit:
            raise BadRow(describe_excess(length, self.limit))

    def _bound_tokens(self, record: Record) -> int:
        """At least as many tokens as the record has: none is shorter than a byte."""
        parts = [part for message in record["messages"] for part in message["content"]]
        letters = sum(len(part["text"].encode()) for part in parts if part["type"] == "text")
        drawings = count_drawings(record)
        pictures = sum(part["type"] == "image" for part in parts) - drawings
        turns = TOKENS_OF_A_TURN * (len(record["messages"]) + 1)
        return letters + pictures * self.processor.num_image_tokens + drawings * self.num_codes + turns

    def count_tokens(self, record: Record) -> int:
        """The number of tokens of a record, those of its pictures and drawings among them."""
        messages = [
            Message(role=m["role"], content=[_blank(m, part) for part in m["content"]]) for m in record["messages"]
        ]
        written = write_conversation(self.processor, record, messages, assistant_only=False)
        return len(tokenize(self.processor, [written])[0].ids) + count_drawings(record) * self.num_codes


def _blank(message: Message, part: Mapping[str, Any]) -> dict[str, str]:
    """A part of a message, without a drawing."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    return {"type": "text", "text": ""} if message["role"] == "assistant" else {"type": "image"}


def find_length_limit(config: DPSConfig) -> int | None:
    """How many tokens the decoder is made for, `None` if it does not say."""
    return getattr(config.text_config, "max_position_embeddings", None)


def describe_excess(length: int, limit: int) -> str:
    return f"too long: {length} tokens, and max_position_embeddings of the decoder is {limit}. Shorten or split it"
