"""Records to padded batches for the library's and trl's trainers."""

import copy
import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from PIL import Image
from transformers import TrainerCallback
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

    So a drawing reaches trl's trainers, which know pictures in prompts only: its tokens are text like all others. Pictures
    are opened, whether they are given as such, as arrays, or as bytes or paths.

    Raises:
        ValueError: a picture is missing or cannot be opened; the record's place in the batch is named.
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


def drawing_encoder(model: DPSForConditionalGeneration) -> DPSModel:
    """A copy of what turns drawings into codes, on the CPU: a loader's workers must not touch the accelerator of the model."""
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


def prompt_and_text(processor: DPSProcessor, question: list[Message], answer: Message) -> tuple[str, str]:
    """The messages before an answer as the model is given them, and the same with the answer."""
    thinks = words_of([answer]).startswith("<think>")
    chat = {"tokenize": False, "enable_thinking": thinks}
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, **chat)
    return prompt, processor.apply_chat_template([*question, answer], **chat)


class KeepTraining(TrainerCallback):
    """Puts the model back into training right after an evaluation.

    The library does so at the next step, by when a batch has been fetched: a collator that drops or distorts while its
    model is in training would leave that one as it is, and a run that is resumed there would not.
    """

    def on_evaluate(self, args, state, control, model: torch.nn.Module, **kwargs):
        model.train()


class RecordCollator:
    """Records to a padded batch; the loss is on the last answer alone.

    A `<think>` that begins an answer belongs to the prompt: it is how thinking is asked for. An answer may be text, a
    drawing, or a plan and then its drawing.

    Args:
        prompt_dropout: share of the drawings that are learned without all that comes before them, pictures and plan
            included, for classifier-free guidance.
    """

    def __init__(self, model: DPSForConditionalGeneration, processor: DPSProcessor, prompt_dropout: float = 0.0):
        self.model, self.processor, self.prompt_dropout = model, processor, prompt_dropout
        self.encoder = drawing_encoder(model)

    def __call__(self, records: list[Record]) -> dict:
        config = self.model.config
        records = encode_drawings(records, self.encoder, self.processor)
        prompts, texts = [], []
        for record in records:
            *question, answer = record["messages"]
            prompt, text = prompt_and_text(self.processor, question, answer)
            prompts.append(prompt)
            texts.append(text)

        pictures = [image for record in records for image in record["images"]]
        batch = self.processor(
            text=texts, images=pictures or None, padding=True, padding_side="left", return_tensors="pt"
        )
        # Without pictures: the answer holds none, so that its length is the same.
        lengths = [[len(ids) for ids in self.processor.tokenizer(side)["input_ids"]] for side in (texts, prompts)]
        labels = batch["input_ids"].clone()
        # What is dropped depends on the batch alone: a run that is resumed, where torch's own generator stands
        # elsewhere, drops the same.
        chance = torch.Generator().manual_seed(zlib.crc32("".join(texts).encode()))
        for row, (length, prompt_length) in enumerate(zip(*lengths, strict=True)):
            answer_length = length - prompt_length
            labels[row, :-answer_length] = -100
            drawings = (labels[row] == config.boi_token_id).nonzero()
            if self.model.training and len(drawings) and torch.rand((), generator=chance) < self.prompt_dropout:
                # What the unguided half of a guided batch sees: begin-of-image and nothing before.
                begin = int(drawings[0])
                batch["attention_mask"][row, :begin] = 0
                labels[row, : begin + 1] = -100
        return {**batch, "labels": labels}
