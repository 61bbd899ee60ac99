"""A model and its processor from parts that exist already."""

import os

from transformers import AutoTokenizer

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
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer could not be loaded from {tokenizer!r}: {error} Give a tokenizer, or the path of one."
            ) from error
    model = DPSForConditionalGeneration.from_components(text, vision, image_tokenizer, tokenizer, row_end)
    return model, DPSProcessor.from_components(tokenizer, model.config)
