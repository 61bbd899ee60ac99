"""A model and its processor from parts that exist already, or with another part."""

import copy
import os
from typing import cast

from transformers import AutoTokenizer, PreTrainedModel

from dps_hf.model.components_dps import Component, find_image_tokenizer, liken
from dps_hf.model.image_tokenizer_dps import FiniteScalarQuantizer
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


def replace_image_tokenizer(
    model: DPSForConditionalGeneration, processor: DPSProcessor, image_tokenizer: Component
) -> DPSProcessor:
    """Gives a model another image tokenizer, whose codes it has yet to learn; all else that it knows is left as it was.

    An image tokenizer that is the model's own changes nothing.

    Returns:
        The processor that belongs to the model now; the same one if nothing changed.

    Raises:
        ValueError: an image tokenizer of another kind, or one with more or fewer codes, which the vocabulary would not hold.
    """
    found, old = find_image_tokenizer(image_tokenizer), model.model.image_tokenizer
    if same_image_tokenizer(found, old):
        return processor
    codes, config = model.config.codebook_size, copy.deepcopy(model.config)
    config.image_tokenizer_config = found.config
    if config.codebook_size != codes:
        raise ValueError(
            f"image_tokenizer must have as many codes as the one that it replaces, {codes}; got {config.codebook_size}. "
            "Choose levels and colour_levels whose products add up to that."
        )
    model.config.image_tokenizer_config = found.config
    model.model.image_tokenizer = found.to(device=old.device, dtype=old.dtype).requires_grad_(False)
    # One table where the two are tied.
    for weight in dict.fromkeys([model.get_input_embeddings().weight, model.get_output_embeddings().weight]):
        liken(weight, cast(int, model.config.image_code_start_id), found)
    changed = DPSProcessor.from_components(processor.tokenizer, model.config)
    changed.image_processor, changed.chat_template = processor.image_processor, processor.chat_template
    return changed


def same_image_tokenizer(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two image tokenizers give the same codes, in whatever precision they were saved."""
    weights, others = one.state_dict(), other.state_dict()
    levels, other_levels = (
        [part.levels for part in model.modules() if isinstance(part, FiniteScalarQuantizer)] for model in (one, other)
    )
    return (
        levels == other_levels
        and weights.keys() == others.keys()
        and all(weight.to(others[key]).equal(others[key]) for key, weight in weights.items())
    )
