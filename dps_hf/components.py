"""A model and its processor from parts that exist already."""

import os
from typing import cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dps_hf.model.components_dps import Component
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


def from_components(
    text: Component, vision: Component, image_tokenizer: Component, tokenizer=None, row_end: bool = False
) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """Joins a decoder, an image encoder and an image tokenizer; the connector between them and the new tokens are fresh.

    The arguments are those of [`DPSForConditionalGeneration.from_components`]; a tokenizer that is left out is that of
    the checkpoint which `text` is or was loaded from.

    Raises:
        ValueError: a component of another kind, or no tokenizer to be found.
    """
    tokenizer = tokenizer or getattr(text, "name_or_path", text)
    if not tokenizer:
        raise ValueError(
            "tokenizer is needed where text was not loaded from a checkpoint. Give a tokenizer or its path."
        )
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    model = DPSForConditionalGeneration.from_components(text, vision, image_tokenizer, tokenizer, row_end)
    return model, DPSProcessor.from_components(tokenizer, model.config)


@torch.no_grad()
def change_text_tokenizer(
    model: DPSForConditionalGeneration, processor: DPSProcessor, tokenizer: PreTrainedTokenizerFast
) -> DPSProcessor:
    """Gives a trained model another text tokenizer, one of more languages for example, and returns its new processor.

    A token that both know keeps its row in the embeddings and the head; a new one starts as the mean of the tokens that
    it was written with before. Drawings are not touched.

    Raises:
        ValueError: the tokenizers differ in size, or in where special tokens and image codes stand.
    """
    old = processor.tokenizer
    if len(tokenizer) != len(old) or tokenizer.get_added_vocab() != old.get_added_vocab():
        raise ValueError(
            f"tokenizer must have {len(old)} tokens with special tokens and image codes where they stand now; it has "
            f"{len(tokenizer)}. Train it with the vocab_size and codebook_size of the one that it replaces."
        )
    known, write = old.get_vocab(), old.backend_tokenizer.model.tokenize
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = [[known[token]] if token in known else [piece.id for piece in write(token)] for token, _ in vocab]
    tables = [cast(nn.Parameter, model.get_input_embeddings().weight), model.lm_head.weight]
    for weight in tables[:1] if tables[0] is tables[1] else tables:  # one where they are tied
        weight[: len(vocab)] = torch.stack([weight[rows].mean(0) for rows in pieces])
    return DPSProcessor.from_components(tokenizer, model.config)
