"""Collates records into padded batches for the trainers of transformers and trl."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch

from dps_hf.data.codes import copy_image_tokenizer, encode_drawings
from dps_hf.data.record import Message, Record, get_text, is_features
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.checks import describe_excess, find_length_limit
from dps_hf.training.conversations import Conversation, Tokens, tokenize, write_conversation


class Collator:
    """The base class of collators: tokenizes records, chooses which tokens have a loss, and applies dropouts.

    The fields `drop_prompt` and `hidden_codes` of a record say what is dropped; [`~dps_hf.data.dropouts.Dropouts`]
    sets them. Drawings without `codes` are encoded here.

    A `<think>` at the beginning of an answer belongs to the prompt, because it is how thinking is requested. An answer
    may be text, a drawing, or a plan followed by a drawing.

    Args:
        model: gives its config, and a copy of its image tokenizer.
        assistant_only_loss: whether only messages of the assistant are learned. Otherwise all text is. Placeholders of
            pictures never are.
        completion_only_loss: whether the first `num_prompt_messages` messages of a record are left out of the loss. By
            default they are in the records that have this field.
    """

    def __init__(
        self,
        model: DPSForConditionalGeneration,
        processor: DPSProcessor,
        assistant_only_loss: bool = True,
        completion_only_loss: bool | None = None,
    ):
        self.config, self.processor = model.config, processor
        self.assistant_only_loss, self.completion_only_loss = assistant_only_loss, completion_only_loss
        self.encoder = copy_image_tokenizer(model)

    def encode(self, records: list[Record]) -> list[Record]:
        return encode_drawings(records, self.encoder, self.processor)

    def tokenize(self, records: Sequence[Record], chats: Iterable[tuple[int, Sequence[Message]]]) -> list[Tokens]:
        """Tokenizes chats, each given with the index of the record that it belongs to.

        Raises:
            ValueError: a chat has nothing to learn, more tokens than the decoder is made for, or another number of
                placeholders than pictures. The error names the record.
        """
        texts, owners = [], []
        for index, messages in chats:
            try:
                texts.append(self._write(records[index], messages))
            except ValueError as error:
                raise ValueError(f"{_name(records[index], index)}: {error}") from error
            owners.append(index)
        tokens = tokenize(self.processor, texts)
        for index, one in zip(owners, tokens, strict=True):
            limit = find_length_limit(self.config)
            if limit and len(one.ids) > limit:
                raise ValueError(f"{_name(records[index], index)} is {describe_excess(len(one.ids), limit)}.")
        return tokens

    def _write(self, record: Record, messages: Sequence[Message]) -> Conversation:
        chat = write_conversation(
            self.processor, record, messages, self.assistant_only_loss, self.completion_only_loss
        )
        found = chat.text.count(self.processor.image_token)
        if found != len(record["images"]):
            raise ValueError(
                f"its text has {found} {self.processor.image_token}, and there are {len(record['images'])} pictures "
                "in its prompts. Write that name in no text, and one image part for each picture."
            )
        return chat

    def read_pictures(self, pictures: list) -> torch.Tensor:
        """The `pixel_values` of pictures, or of their features ([`~dps_hf.data.features.FeaturedRecords`])."""
        if all(is_features(picture) for picture in pictures):
            return torch.stack(pictures)
        return self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]

    def find_drawing(self, tokens: Tokens) -> int | None:
        """The index of the begin-of-image token in the last answer, None if that has no drawing."""
        try:
            return tokens.ids.index(cast(int, self.config.boi_token_id), tokens.last)
        except ValueError:
            return None

    def hide_codes(self, ids: list[int], begin: int, record: Record) -> list[int]:
        """The tokens with some codes replaced by padding, in the drawing whose begin-of-image token is at `begin`."""
        share = record.get("hidden_codes")
        if not share:
            return ids
        codes = np.array(ids[begin + 1 : begin + 1 + self.config.num_codes])
        codes[np.random.default_rng(record["hidden_codes_seed"]).random(len(codes)) < share] = self.config.pad_token_id
        return [*ids[: begin + 1], *codes.tolist(), *ids[begin + 1 + len(codes) :]]


def _name(record: Record, index: int) -> str:
    """The place of a record in the batch, and how it begins."""
    return f"record {index} of the batch ({get_text(record['messages'][:1])[:40]!r})"


class RecordCollator(Collator):
    """Collates records into a padded batch. By default, the loss is on all answers of each record.

    `more` questions are learned by [`~dps_hf.training.packing.PackingCollator`] alone.
    """

    def __call__(self, records: list[Record]) -> dict:
        records = self.encode(records)
        tokens = self.tokenize(records, ((i, record["messages"]) for i, record in enumerate(records)))
        batch = self.processor.tokenizer.pad(
            {"input_ids": [one.ids for one in tokens]}, padding=True, padding_side="left", return_tensors="pt"
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]  # each (batch, sequence)
        labels = ids.new_full(ids.shape, -100)
        for row, (record, one) in enumerate(zip(records, tokens, strict=True)):
            start = ids.shape[1] - len(one.ids)
            learned = ids.new_tensor(one.learned) > 0
            labels[row, start:][learned] = ids[row, start:][learned]
            begin = self.find_drawing(one)
            if begin is None:
                continue
            if record.get("drop_prompt"):
                # What the unguided half of a guided batch sees: begin-of-image and nothing before.
                mask[row, : start + begin] = 0
                labels[row, : start + begin + 1] = -100
            ids[row, start:] = ids.new_tensor(self.hide_codes(one.ids, begin, record))
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if pictures := [image for record in records for image in record["images"]]:
            batch["pixel_values"] = self.read_pictures(pictures)
        return batch
