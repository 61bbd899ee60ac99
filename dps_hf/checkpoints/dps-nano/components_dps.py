"""Assembles DPS from a decoder, an image encoder and an image tokenizer that exist already."""

import copy
import os
from typing import TypeAlias

import torch
from torch import nn

from .configuration_dps import DPSConfig, DPSImageTokenizerConfig
from .image_tokenizer_dps import DPSImageTokenizer, FiniteScalarQuantizer
from .library_dps import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    HFValidationError,
    JanusVQVAE,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
    has_file,
)
from .processing_dps import DPSProcessor, add_tokens


Component: TypeAlias = "str | os.PathLike | PreTrainedModel | PreTrainedConfig"

# `AutoModel` loads every part but these.
IMAGE_TOKENIZERS = {DPSImageTokenizerConfig.model_type: DPSImageTokenizer, "janus_vqgan": JanusVQVAE}


def assemble(
    model_class, text: Component, vision: Component, image_tokenizer: Component, tokenizer=None, row_end: bool = False
) -> PreTrainedModel:
    """See `DPSForConditionalGeneration.from_components`."""
    text = _load(text_source := text, AutoModelForCausalLM)
    vision = _find("vision", vision, ("siglip_vision_model", "siglip"), SiglipVisionModel)
    image_tokenizer = find_image_tokenizer(image_tokenizer)
    decoder, head = text.base_model, text.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"text must have a head without bias; {type(text).__name__} has one. Choose another decoder.")

    text_config = decoder.config
    codes = image_tokenizer.config
    codebook_size = codes.num_embeddings if codes.model_type == "janus_vqgan" else codes.codebook_size
    if tokenizer is None and not isinstance(text_source, PreTrainedConfig):
        tokenizer = _tokenizer_beside(getattr(text_source, "name_or_path", text_source))
    if tokenizer is None:  # the config's own layout: what is new comes last
        num_known = text_config.vocab_size
        ids = {"row_end_token_id": num_known if row_end else None}
        text_config.vocab_size += row_end + len(("<image>", "<begin_of_image>", "<end_of_image>")) + codebook_size
    else:
        is_path = isinstance(tokenizer, (str, os.PathLike))
        tokenizer = AutoTokenizer.from_pretrained(tokenizer) if is_path else copy.deepcopy(tokenizer)
        num_known = add_tokens(tokenizer, codebook_size, row_end)
        names = {
            "image_token_id": DPSProcessor.image_token,
            "boi_token_id": DPSProcessor.boi_token,
            "eoi_token_id": DPSProcessor.eoi_token,
            "image_code_start_id": DPSProcessor.code_token.format(0),
        }
        names |= {"row_end_token_id": DPSProcessor.row_end_token} if row_end else {}
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
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
    with torch.device("meta"):
        model = model_class(config)
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
    # In float32 whatever the rest is in, as `from_pretrained` keeps it too: its codes are roundings.
    model.model.image_tokenizer = image_tokenizer.to(device=text.device, dtype=torch.float32).requires_grad_(False)
    model.model.connector = type(model.model.connector)(config).apply(model._init_weights).to(**place)
    if not tied:
        model.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False).apply(model._init_weights).to(**place)
        if head is not None:
            model.lm_head.weight = _grow(head.weight, num_known, vocab_size)
        if new_codes:
            liken(model.lm_head.weight, config.image_code_start_id, image_tokenizer)
    model.tie_weights()
    return model.eval()


def _tokenizer_beside(checkpoint: str | os.PathLike) -> str | os.PathLike | None:
    """The checkpoint, if it was saved with a tokenizer."""
    files = ("tokenizer_config.json", "tokenizer.json")
    try:
        return checkpoint if checkpoint and any(has_file(checkpoint, name) for name in files) else None
    except HFValidationError:  # a folder that has gone since
        return None


def _grow(weight: torch.Tensor, num_known: int, size: int) -> nn.Parameter:
    """The first `num_known` rows of a table, and new ones after them: `(size, hidden_size)`."""
    known = weight.detach()[:num_known]
    # Each dimension has the mean and the spread that it has over the known rows: such vectors are what the layers above
    # were trained on, and no new token starts likelier than the old ones. The library's own way has next to no spread,
    # so that all codes would start as one.
    values = known.float()
    new = torch.randn(size - len(known), known.shape[1], device=weight.device) * values.std(0) + values.mean(0)
    return nn.Parameter(torch.cat([known, new.to(known.dtype)]))


@torch.no_grad()
def liken(weight: nn.Parameter, start: int, image_tokenizer: PreTrainedModel) -> None:
    """Gives codes that stand for like patches like rows: what is learned of one then holds for its neighbours.

    The rows become random Fourier features of the codes' latents (Rahimi and Recht 2007, section 3): their similarity
    is a Gaussian kernel, one standard deviation of the latents wide.
    """
    if isinstance(image_tokenizer, JanusVQVAE):
        tables = [image_tokenizer.quantize.embedding.weight.float()]
    else:
        quantizers = [module for module in image_tokenizer.modules() if isinstance(module, FiniteScalarQuantizer)]
        tables = [quantizer.dequantize(torch.arange(quantizer.num_codes)) for quantizer in quantizers]
    known = weight[:start].float()
    for latents in tables:
        latents = (latents - latents.mean(0)) / latents.std(0).clamp(min=1e-6)  # (codes, latent channels)
        directions, phases = torch.randn(latents.shape[1], weight.shape[1]), torch.rand(weight.shape[1]) * 2 * torch.pi
        features = (latents.to(directions.device) @ directions + phases).cos()
        features = (features - features.mean(0)) / features.std(0)
        weight[start : start + len(features)] = (features.to(known) * known.std(0) + known.mean(0)).to(weight)
        start += len(features)


def find_image_tokenizer(component: Component) -> PreTrainedModel:
    """
    Raises:
        ValueError: it is none.
    """
    types = (*IMAGE_TOKENIZERS, "janus")
    return _find("image_tokenizer", component, types, (DPSImageTokenizer, JanusVQVAE))


def _find(name: str, component: Component, model_types: tuple[str, ...], wanted) -> PreTrainedModel:
    """The module of a wanted class in a component."""
    config = getattr(component, "config", component)
    if not isinstance(config, PreTrainedConfig):
        model_type = PreTrainedConfig.get_config_dict(component)[0].get("model_type")
    else:
        model_type = config.model_type
    if model_type not in model_types:
        raise ValueError(
            f"{name} must be of a model type out of {', '.join(model_types)}; got {model_type!r}. Choose another checkpoint"
            + (", of one fixed resolution (not naflex)." if name == "vision" else ".")
        )
    model = _load(component, IMAGE_TOKENIZERS.get(model_type, AutoModel))
    return next(module for module in model.modules() if isinstance(module, wanted))


def _load(component: Component, model_class) -> PreTrainedModel:
    """A component as a model: a copy of itself, fresh where it is a config, else its checkpoint."""
    if isinstance(component, PreTrainedModel):
        return copy.deepcopy(component)
    if isinstance(component, PreTrainedConfig):
        make = getattr(model_class, "from_config", None) or model_class._from_config
        return make(copy.deepcopy(component))
    return model_class.from_pretrained(component, dtype="auto")


__all__ = ["assemble", "find_image_tokenizer", "liken"]
