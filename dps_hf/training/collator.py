"""Records to padded batches for the library's and trl's trainers."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
from PIL import Image
from transformers.integrations import is_deepspeed_zero3_enabled

from dps_hf.data.record import Message, Record, words_of
from dps_hf.data.sources import open_pictures
from dps_hf.inference import encode
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


def encode_drawings(
    records: list[Record], model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor
) -> list[Record]:
    """The records with each picture in an answer replaced by the text of its codes.

    trl's trainers accept pictures in prompts only, so drawings reach them as text. Pictures are opened, whether they
    are given as pictures, arrays, bytes or paths.

    Raises:
        ValueError: a picture is missing or cannot be opened. The error names the record's place in the batch.
    """
    records = _with_pictures(records, processor)
    targets = [image for record in records for image, role in _pictures(record) if role == "assistant"]
    if not targets:
        return records
    codes = iter(encode(model, processor, targets).cpu())
    encoded = []
    for record in records:
        messages: list = []
        for message in record["messages"]:
            parts = message["content"]
            if message["role"] == "assistant":
                parts = [
                    {"type": "text", "text": processor.drawing_text(next(codes))} if part["type"] == "image" else part
                    for part in parts
                ]
            messages.append({"role": message["role"], "content": parts})
        images = [image for image, role in _pictures(record) if role != "assistant"]
        encoded.append(cast(Record, {**record, "messages": messages, "images": images}))
    return encoded


def _with_pictures(records: list[Record], processor: DPSProcessor) -> list[Record]:
    opened = []
    for i, record in enumerate(records):
        try:
            opened.append(cast(Record, {**record, "images": open_pictures(record, processor.image_processor)}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"record {i} of the batch: {error}") from error
    return opened


def copy_image_tokenizer(model: DPSForConditionalGeneration) -> DPSModel:
    """A copy of the image tokenizer on the CPU, because a loader's workers must not touch the model's accelerator."""
    others = {id(part): None for name, part in model.model.named_children() if name != "image_tokenizer"}
    whole: AbstractContextManager = nullcontext()
    if is_deepspeed_zero3_enabled():  # which shards all weights as soon as they are loaded
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([*model.model.image_tokenizer.parameters()])
    with whole:
        return copy.deepcopy(model.model, others).cpu().requires_grad_(False)


def _pictures(record: Record) -> list[tuple[Image.Image, str]]:
    """The pictures of a record and the role of the message that each stands in."""
    roles = [m["role"] for m in record["messages"] for part in m["content"] if part["type"] == "image"]
    return list(zip(record["images"], roles, strict=True))


def write_prompt_and_text(processor: DPSProcessor, question: list[Message], answer: Message) -> tuple[str, str]:
    """The messages before an answer as the text that the model sees, and the same text with the answer."""
    thinks = words_of([answer]).startswith("<think>")
    chat = {"tokenize": False, "enable_thinking": thinks}
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, **chat)
    return prompt, processor.apply_chat_template([*question, answer], **chat)


class Collator:
    """What collators share: how records become text, and what a record loses.

    `drop_prompt` and `hidden_codes` of a record, which [`~dps_hf.data.dropouts.Dropouts`] sets, decide what is lost.

    Args:
        model: gives its config, and a copy of its image tokenizer.
    """

    def __init__(self, model: DPSForConditionalGeneration, processor: DPSProcessor):
        self.config, self.processor = model.config, processor
        self.encoder = copy_image_tokenizer(model)

    def encode(self, records: list[Record]) -> list[Record]:
        return encode_drawings(records, self.encoder, self.processor)

    def hide_codes(self, ids: list[int], begin: int, record: Record) -> list[int]:
        """The tokens with some codes replaced by padding, in the drawing whose begin-of-image token is at `begin`."""
        share = record.get("hidden_codes")
        if not share:
            return ids
        codes = np.array(ids[begin + 1 : begin + 1 + self.config.num_codes])
        codes[np.random.default_rng(record["hidden_codes_seed"]).random(len(codes)) < share] = self.config.pad_token_id
        return [*ids[: begin + 1], *codes.tolist(), *ids[begin + 1 + len(codes) :]]


class RecordCollator(Collator):
    """Records to a padded batch; the loss is on the last answer alone.

    A `<think>` at the beginning of an answer belongs to the prompt, because it is how thinking is requested. An answer
    may be text, a drawing, or a plan followed by a drawing.
    """

    def __call__(self, records: list[Record]) -> dict:
        records = self.encode(records)
        prompts, texts = [], []
        for record in records:
            *question, answer = record["messages"]
            prompt, text = write_prompt_and_text(self.processor, question, answer)
            prompts.append(prompt)
            texts.append(text)

        pictures = [image for record in records for image in record["images"]]
        batch = self.processor(
            text=texts, images=pictures or None, padding=True, padding_side="left", return_tensors="pt"
        )
        # Without pictures: the answer holds none, so its length is the same.
        lengths = [[len(ids) for ids in self.processor.tokenizer(side)["input_ids"]] for side in (texts, prompts)]
        labels = batch["input_ids"].clone()
        for row, (record, length, prompt_length) in enumerate(zip(records, *lengths, strict=True)):
            answer_length = length - prompt_length
            labels[row, :-answer_length] = -100
            drawings = (labels[row] == self.config.boi_token_id).nonzero()
            if not len(drawings):
                continue
            begin = int(drawings[0])
            if record.get("drop_prompt"):
                # What the unguided half of a guided batch sees: begin-of-image and nothing before.
                batch["attention_mask"][row, :begin] = 0
                labels[row, : begin + 1] = -100
            ids = batch["input_ids"][row]
            batch["input_ids"][row] = ids.new_tensor(self.hide_codes(ids.tolist(), begin, record))
        return {**batch, "labels": labels}
