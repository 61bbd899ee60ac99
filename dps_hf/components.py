"""Builds a model and its processor from published parts, and replaces the image tokenizer of a model."""

import copy
import os
import warnings
from collections.abc import Collection
from typing import TypeAlias

import torch
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import (
    AddedToken,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    JanusVQVAE,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils import has_file

from dps_hf.model.configuration_dps import GEOMETRIES, TEXT_TOKEN_IDS, DPSConfig
from dps_hf.model.image_processing_dps import DPSImageProcessor
from dps_hf.model.image_tokenizer_dps import IMAGE_TOKENIZERS, DPSImageTokenizer, FiniteScalarQuantizer
from dps_hf.model.library_dps import find_cache_name
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor, name_tokens


Component: TypeAlias = "str | os.PathLike | PreTrainedModel | PreTrainedConfig"

# Renders the text of each message, and a placeholder for each picture in it. A content may be a plain string.
# `enable_thinking=True` begins the answer with <think>. There is no newline after the last answer, because generation
# stops before it, and trainers would train on it.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}
{%- if part.type == "text" -%}{{ part.text }}{%- elif part.type in ("image", "image_url") -%}<image>
{%- else -%}{{ raise_exception("A part of a message must be of type text or image; got " + part.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\\n" -}}
{%- if message.role == "assistant" -%}
{%- generation -%}{{- render(message.content) + "<|im_end|>" -}}{%- endgeneration -%}
{%- else -%}
{{- render(message.content) + "<|im_end|>" -}}
{%- endif -%}
{%- if add_generation_prompt or not (loop.last and message.role == "assistant") -%}{{- "\\n" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|im_start|>assistant\\n" + ("<think>" if enable_thinking else "") -}}
{%- endif -%}
"""

SHORT_PROMPT = 32  # tokens of a prompt and of the chat template around it, which must fit in beside a drawing

# The ids of a config, and the tokens that they belong to.
TOKEN_OF_ID = {
    "image_code_start_id": DPSProcessor.code_token.format(0),
    "image_token_id": DPSProcessor.image_token,
    "boi_token_id": DPSProcessor.boi_token,
    "eoi_token_id": DPSProcessor.eoi_token,
}


def from_components(
    text: Component, vision: Component, image_tokenizer: Component, tokenizer=None
) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """Joins a decoder, an image encoder and an image tokenizer, and makes the processor that belongs to them.

    The connector and the embeddings of new tokens are fresh, and `config.untrained_parts` names them until they are
    trained. Each part may be a checkpoint (its weights are taken as they are), a loaded model (which is copied and
    stays as it is) or a config (fresh weights). All parts but the image tokenizer take the decoder's dtype.

    Args:
        text: any decoder that `AutoModelForCausalLM` loads, with its head or without.
        vision: a SigLIP vision model of fixed resolution, a whole SigLIP, or a DPS that has one.
        image_tokenizer: a [`DPSImageTokenizer`], a [`~transformers.JanusVQVAE`], a whole Janus, or a DPS.
        tokenizer (*optional*): a tokenizer or its checkpoint; it decides which ids the new tokens get. By default the
            one that was saved with the checkpoint of `text`.

    Raises:
        ValueError: a part cannot be loaded or is of the wrong kind, there is no tokenizer, or the decoder has learned
            positions, of which a drawing needs more.
    """
    if isinstance(text, (str, os.PathLike)):
        _read_config("text", text)
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
    model = assemble_model(text, vision, image_tokenizer, tokenizer)
    return model, make_processor(tokenizer, model.config)


def assemble_model(
    text: Component, vision: Component, image_tokenizer: Component, tokenizer=None
) -> DPSForConditionalGeneration:
    """As [`from_components`], for the model alone.

    Without a tokenizer, given or saved with `text`, the new tokens follow after all rows of the decoder's embeddings.
    """
    text = _load(text_source := text, AutoModelForCausalLM)
    vision = _find("vision", vision, ("siglip_vision_model", "siglip", "dps"), SiglipVisionModel)
    image_tokenizer = find_image_tokenizer(image_tokenizer)
    decoder, head = text.base_model, text.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"text must have a head without bias; {type(text).__name__} has one. Choose another decoder.")

    text_config = decoder.config
    _check_decoder(decoder)
    geometry = GEOMETRIES[image_tokenizer.config.model_type](image_tokenizer.config)
    codebook_size = sum(geometry.codebook_sizes)
    if tokenizer is None and not isinstance(text_source, PreTrainedConfig):
        tokenizer = _find_tokenizer(getattr(text_source, "name_or_path", text_source))
    if tokenizer is None:  # the config's own layout: new tokens come last
        num_known, ids = text_config.vocab_size, {}
        text_config.vocab_size += len(("<image>", "<begin_of_image>", "<end_of_image>")) + codebook_size
    else:
        is_path = isinstance(tokenizer, (str, os.PathLike))
        tokenizer = AutoTokenizer.from_pretrained(tokenizer) if is_path else copy.deepcopy(tokenizer)
        num_known = add_tokens(tokenizer, codebook_size)
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKEN_OF_ID.items()}
        for name in TEXT_TOKEN_IDS:
            setattr(text_config, name, getattr(tokenizer, name))
        # Some decoders have more rows than their tokenizer has tokens.
        text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))

    for part in (text_config, vision.config, image_tokenizer.config):
        part.dtype = text.dtype
    tied = getattr(text_config, "tie_word_embeddings", False)
    config = DPSConfig(
        text_config=text_config,
        vision_config=vision.config,
        image_tokenizer_config=image_tokenizer.config,
        tie_word_embeddings=tied,
        dtype=text.dtype,
        **ids,
    )
    _check_length(decoder, config)
    with torch.device("meta"):
        model = DPSForConditionalGeneration(config)
    if type(model.model.language_model) is not type(decoder):
        raise ValueError(
            f"text must be a decoder that AutoModel builds; got {type(decoder).__name__}. Choose another."
        )

    place = {"device": text.device, "dtype": text.dtype}
    embeddings = copy.deepcopy(decoder.get_input_embeddings())
    old_weight, vocab_size = embeddings.weight, text_config.vocab_size
    embeddings.weight = _grow(old_weight, num_known, vocab_size)
    new_codes = config.image_code_start_id >= num_known or isinstance(text_source, PreTrainedConfig)
    if new_codes:
        liken(embeddings.weight, config.image_code_start_id, image_tokenizer)
    embeddings.num_embeddings, embeddings.padding_idx = vocab_size, text_config.pad_token_id
    decoder.set_input_embeddings(embeddings)
    model.model.language_model = decoder
    model.model.vision_tower = vision.to(**place)
    # In float32 whatever the rest is in, as `from_pretrained` keeps it too: its codes are rounded numbers.
    model.model.image_tokenizer = image_tokenizer.to(device=text.device, dtype=torch.float32).requires_grad_(False)
    model.model.connector = type(model.model.connector)(config).apply(model._init_weights).to(**place)
    if not tied:
        model.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False).apply(model._init_weights).to(**place)
        if head is not None:
            model.lm_head.weight = _grow(head.weight, num_known, vocab_size)
        if new_codes:
            liken(model.lm_head.weight, config.image_code_start_id, image_tokenizer)
    model.tie_weights()
    config.untrained_parts = ["connector", *(["new_tokens"] if new_codes else [])]
    if new_codes and not isinstance(text_source, PreTrainedConfig):  # whose rows are all new
        config.first_new_token_id = num_known
    return model.eval()


def _check_decoder(decoder: PreTrainedModel) -> None:
    """Raises a ValueError if a decoder caches no keys and values, or its embeddings are not as wide as its layers."""
    config = decoder.config
    # A decoder without attention may have a cache of recurrent states.
    if find_cache_name(decoder.forward) is None or not hasattr(config, "num_attention_heads"):
        raise ValueError(
            "text_config.model_type must be that of a decoder which caches keys and values; "
            f"got {config.model_type!r}. Take another, such as 'llama'."
        )
    width = decoder.get_input_embeddings().embedding_dim
    if width != config.hidden_size:
        raise ValueError(
            f"text_config.hidden_size must be the width of the embeddings, too; got {config.hidden_size}, and those "
            f"of {config.model_type!r} have {width}. Take a decoder without a projection between the two."
        )


def _check_length(decoder: PreTrainedModel, config: DPSConfig) -> None:
    """Raises a ValueError if a drawing needs more positions than the decoder has learned, or warns of other limits."""
    limit = getattr(config.text_config, "max_position_embeddings", None)
    needed = config.num_codes + SHORT_PROMPT
    if limit is None or needed <= limit:
        return
    excess = (
        f"text_config.max_position_embeddings must be at least {needed}, for a drawing of {config.num_codes} codes "
        f"and a prompt of {SHORT_PROMPT} tokens; got {limit}. Take a decoder with more, or an image tokenizer with "
        "fewer codes."
    )
    tables = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
    if any(table is not decoder.get_input_embeddings() and table.num_embeddings >= limit for table in tables):
        raise ValueError(excess)
    warnings.warn(f"{excess} This decoder computes its positions, and was not trained on later ones.", stacklevel=3)


def make_processor(tokenizer, config: DPSConfig) -> DPSProcessor:
    """The processor of a config, around a copy of a tokenizer; [`add_tokens`] adds the tokens that it lacks.

    Raises:
        ValueError: the codes or the special tokens have other ids in the tokenizer than in the config.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = config.text_config.max_position_embeddings  # it warns of longer texts
    add_tokens(tokenizer, config.codebook_size)
    for name, token in TOKEN_OF_ID.items():
        given, known = getattr(config, name), tokenizer.convert_tokens_to_ids(token)
        if given != known:
            raise ValueError(
                f"{name} must be the id of {token}; got {given}, and the tokenizer has {known}. "
                "Give the tokenizer that the model was assembled with."
            )
    image_size = config.vision_config.image_size
    return DPSProcessor(
        DPSImageProcessor(size={"height": image_size, "width": image_size}),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        grid_size=config.grid_size,
        num_codes=config.num_codes,
    )


def add_tokens(tokenizer, codebook_size: int) -> int:
    """Adds the tokens of DPS that a tokenizer lacks, in place, and sets its end, padding and chat template.

    Returns:
        How many tokens it had before; the ids of new tokens begin there.

    Raises:
        ValueError: it has some tokens of codes already, and their ids are not consecutive.
    """
    known = tokenizer.get_vocab()
    pad_tokens = (tokenizer.pad_token, "<|endoftext|>", tokenizer.eos_token)
    specials = [DPSProcessor.image_token, DPSProcessor.boi_token, DPSProcessor.eoi_token]
    codes = [DPSProcessor.code_token.format(code) for code in range(codebook_size)]
    # `skip_special_tokens` must drop placeholders, but not thoughts and drawings.
    plain = ("<think>", "</think>", *codes)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token not in plain, normalized=False)
            for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", *specials, *codes)
            if token not in known
        ]
    )
    if (surplus := DPSProcessor.code_token.format(codebook_size)) in known:
        raise ValueError(
            f"The tokenizer has the codes of another image tokenizer: it has {surplus}, and this one has "
            f"{codebook_size} codes. Take the tokenizer that was made for this image tokenizer."
        )
    ids = tokenizer.convert_tokens_to_ids(codes)
    if ids != list(range(ids[0], ids[0] + codebook_size)):
        raise ValueError(
            f"The tokens {codes[0]} to {codes[-1]} must have ids in a row. Take a tokenizer without these tokens."
        )

    tokenizer.eos_token = "<|im_end|>"
    # Loss and masks ignore padding, so it should not be the token that ends an answer.
    pads = [token for token in pad_tokens if token in known and token != tokenizer.eos_token]
    tokenizer.pad_token = pads[0] if pads else tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    name_tokens(tokenizer)
    return len(known)


def replace_image_tokenizer(
    model: DPSForConditionalGeneration, processor: DPSProcessor, image_tokenizer: Component
) -> DPSProcessor:
    """Replaces the image tokenizer of a model in place; the model has to learn the new codes, and keeps all else.

    If the new image tokenizer equals the old one, nothing changes.

    Returns:
        The processor for the changed model; `processor` itself if nothing changed.

    Raises:
        ValueError: not an image tokenizer, or one with another number of codes, for which the vocabulary has no room.
    """
    found, old = find_image_tokenizer(image_tokenizer), model.model.image_tokenizer
    if compare_image_tokenizers(found, old):
        return processor
    codes, config = model.config.codebook_size, copy.deepcopy(model.config)
    config.image_tokenizer_config = found.config
    if config.codebook_size != codes:
        raise ValueError(
            f"image_tokenizer must have as many codes as the one that it replaces, {codes}; "
            f"got {config.codebook_size}. Choose levels and colour_levels whose products add up to {codes}."
        )
    model.config.image_tokenizer_config = found.config
    model.model.image_tokenizer = found.to(device=old.device, dtype=old.dtype).requires_grad_(False)
    # One table where the two are tied.
    for weight in dict.fromkeys([model.get_input_embeddings().weight, model.get_output_embeddings().weight]):
        liken(weight, model.config.image_code_start_id, found)
    model.config.untrained_parts = sorted({*getattr(model.config, "untrained_parts", ()), "new_tokens"})
    changed = make_processor(processor.tokenizer, model.config)
    changed.image_processor, changed.chat_template = processor.image_processor, processor.chat_template
    return changed


def find_untrained_parts(config: DPSConfig) -> list[str]:
    """The parts whose weights have been random since the model was put together, and were not trained yet."""
    return list(getattr(config, "untrained_parts", None) or [])


def mark_trained(config: DPSConfig, parts: Collection[str]) -> None:
    """Notes in a model's config that these parts are not random any more."""
    if left := [part for part in find_untrained_parts(config) if part not in parts]:
        config.untrained_parts = left
    elif hasattr(config, "untrained_parts"):
        del config.untrained_parts


def find_new_tokens(config: DPSConfig) -> list[int]:
    """The ids of the image codes, and of the other tokens that DPS has added to the decoder's vocabulary."""
    start = config.image_code_start_id
    ids = {
        config.image_token_id,
        config.boi_token_id,
        config.eoi_token_id,
        *range(start, start + config.codebook_size),
    }
    # Such as <think>. They come right before the codes; `from_components` notes where they begin.
    ids |= {*range(getattr(config, "first_new_token_id", start), start)}
    return sorted(ids)


def compare_image_tokenizers(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two image tokenizers give the same codes, even if one was saved in lower precision."""
    weights, others = one.state_dict(), other.state_dict()
    levels, other_levels = (
        [part.levels for part in model.modules() if isinstance(part, FiniteScalarQuantizer)] for model in (one, other)
    )
    return (
        levels == other_levels
        and weights.keys() == others.keys()
        and all(weight.to(others[key]).equal(others[key]) for key, weight in weights.items())
    )


@torch.no_grad()
def liken(weight: torch.Tensor, start: int, image_tokenizer: PreTrainedModel) -> None:
    """Gives codes of similar patches similar rows, so that what is learned of one code holds for its neighbours.

    The rows become random Fourier features of the codes' latents (Rahimi and Recht 2007, section 3): their similarity
    is a Gaussian kernel, one standard deviation of the latents wide.
    """
    known = weight[:start].float()
    for latents in compute_code_latents(image_tokenizer):
        latents = (latents - latents.mean(0)) / latents.std(0).clamp(min=1e-6)
        directions, phases = torch.randn(latents.shape[1], weight.shape[1]), torch.rand(weight.shape[1]) * 2 * torch.pi
        features = (latents.to(directions.device) @ directions + phases).cos()
        features = (features - features.mean(0)) / features.std(0)
        weight[start : start + len(features)] = (features.to(known) * known.std(0) + known.mean(0)).to(weight)
        start += len(features)


def compute_code_latents(image_tokenizer: PreTrainedModel) -> list[torch.Tensor]:
    """The latents of the codes of each codebook, `(codes, latent channels)`, float32; close for similar patches."""
    if isinstance(image_tokenizer, JanusVQVAE):
        return [image_tokenizer.quantize.embedding.weight.float()]
    quantizers = [module for module in image_tokenizer.modules() if isinstance(module, FiniteScalarQuantizer)]
    return [quantizer.dequantize(torch.arange(quantizer.num_codes)) for quantizer in quantizers]


def _find_tokenizer(checkpoint: str | os.PathLike) -> str | os.PathLike | None:
    """The checkpoint, if a tokenizer was saved with it."""
    files = ("tokenizer_config.json", "tokenizer.json")
    try:
        return checkpoint if checkpoint and any(has_file(checkpoint, name) for name in files) else None
    except HFValidationError:  # a folder that no longer exists
        return None


def _grow(weight: torch.Tensor, num_known: int, size: int) -> nn.Parameter:
    """A table of `(size, hidden_size)`: the first `num_known` rows of `weight`, then new ones."""
    known = weight.detach()[:num_known]
    # Each dimension keeps the mean and the standard deviation of the known rows, which the layers above were trained
    # on, so that no new token starts likelier than old ones. The library's own way makes all new rows nearly equal.
    values = known.float()
    new = torch.randn(size - len(known), known.shape[1], device=weight.device) * values.std(0) + values.mean(0)
    return nn.Parameter(torch.cat([known, new.to(known.dtype)]))


def find_image_tokenizer(component: Component) -> PreTrainedModel:
    """Loads the image tokenizer of a component.

    Raises:
        ValueError: the component is or contains no image tokenizer.
    """
    types = (*IMAGE_TOKENIZERS, "janus", "dps")
    return _find("image_tokenizer", component, types, (DPSImageTokenizer, JanusVQVAE))


def _find(name: str, component: Component, model_types: tuple[str, ...], wanted) -> PreTrainedModel:
    """Loads the module of a wanted class from a component."""
    config = getattr(component, "config", component)
    if not isinstance(config, PreTrainedConfig):
        model_type = _read_config(name, component).get("model_type")
    else:
        model_type = config.model_type
    if model_type not in model_types:
        raise ValueError(
            f"{name} must be of model type {' or '.join(model_types)}; got {model_type!r}. Choose another checkpoint"
            + (", of one fixed resolution (not naflex)." if name == "vision" else ".")
        )
    model = _load(component, IMAGE_TOKENIZERS.get(model_type, AutoModel))
    return next(module for module in model.modules() if isinstance(module, wanted))


def _read_config(name: str, checkpoint: str | os.PathLike) -> dict:
    """The config of a checkpoint.

    Raises:
        ValueError: there is none; the error names the part that the checkpoint was given for.
    """
    try:
        if config := PreTrainedConfig.get_config_dict(checkpoint)[0]:
            return config
        raise OSError("It is empty.")
    except (OSError, ValueError) as error:
        where = (
            "has no config.json" if os.path.isdir(checkpoint) else "is no folder here, and cannot be had from the Hub"
        )
        raise ValueError(
            f"{name} must be a folder or a name on the Hub; {os.fspath(checkpoint)!r} {where}. Correct it."
        ) from error


def _load(component: Component, model_class) -> PreTrainedModel:
    """Returns a copy of a model, a fresh model of a config, or the model of a checkpoint."""
    if isinstance(component, PreTrainedModel):
        return copy.deepcopy(component)
    if isinstance(component, PreTrainedConfig):
        make = getattr(model_class, "from_config", None) or model_class._from_config
        return make(copy.deepcopy(component))
    return model_class.from_pretrained(component, dtype="auto")
