"""Configuration of DPS: three nested parts, the geometry that joins them, and the layout of the one vocabulary."""

import math
from dataclasses import field
from typing import NamedTuple

import transformers

from .library_dps import ACT2FN, CACHE_NAMES, modeling_auto, strict


_FOR_GENERATION = "modeling_dps.DPSForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_dps.DPSConfig",
    "AutoModel": "modeling_dps.DPSModel",
    "AutoModelForCausalLM": _FOR_GENERATION,
    "AutoModelForImageTextToText": _FOR_GENERATION,
    "AutoModelForMultimodalLM": _FOR_GENERATION,
    "AutoImageProcessor": "image_processing_dps.DPSImageProcessor",
    "AutoProcessor": "processing_dps.DPSProcessor",
}
# `transformers serve`, trl and the Trainer's label smoothing look up the name of a model's class here, also for remote
# code. They look among image-text models before causal models.
for _names in (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
):
    _names.setdefault("dps", "DPSForConditionalGeneration")

# Ids that belong to the decoder's config.
TEXT_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _require(holds: bool, message: str) -> None:
    """Raises a ValueError where a rule does not hold; the message gives the field, its value and the remedy."""
    if not holds:
        raise ValueError(message)


def _near(value: int, unit: int) -> int:
    """The multiple of a unit that is nearest to a value, at least the unit itself."""
    return max(1, round(value / unit)) * unit


@strict
class DPSImageTokenizerConfig(transformers.PreTrainedConfig):
    r"""
    Geometry and size of [`DPSImageTokenizer`].

    image_size (`int`, defaults to 64): side of the square pictures, in pixels.
    num_channels (`int`, defaults to 3): colour channels.
    patch_size (`int`, defaults to 4): side of the patches that the decoder's last convolution writes.
    hidden_sizes (`list[int]`, defaults to `[96, 160]`): width of each stage; each but the first halves the grid.
    num_encoder_blocks (`int`, defaults to 3): residual blocks of the encoder, which has the last stage's width.
    num_res_blocks (`int`, defaults to 1): residual blocks in each stage of the decoder.
    levels (`list[int]`, defaults to `[8, 8, 8, 8]`): levels of each latent channel; their product is the number of
        codes.
    colour_levels (`list[int]`, *optional*): levels of a second code for each patch, for its colours. `levels` are
        then those of the first code, for its pattern. Codes of colours are numbered after those of patterns, and
        follow them in a picture.
    """

    model_type = "dps_image_tokenizer"
    base_config_key = "image_tokenizer_config"

    image_size: int = 64
    num_channels: int = 3
    patch_size: int = 4
    hidden_sizes: list[int] | tuple[int, ...] = (96, 160)
    num_encoder_blocks: int = 3
    num_res_blocks: int = 1
    levels: list[int] | tuple[int, ...] = (8, 8, 8, 8)
    colour_levels: list[int] | tuple[int, ...] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, least in (("num_encoder_blocks", 0), ("num_res_blocks", 0), ("num_channels", 1)):
            value = getattr(self, name)
            _require(value >= least, f"{name} must be at least {least}; got {value}. Set it to {least} or more.")
        _require(bool(self.hidden_sizes), "hidden_sizes must hold at least one width; got none. Try (96, 160).")
        for width in self.hidden_sizes:
            fits, near = width > 0 and width % 8 == 0, _near(width, 8)
            _require(fits, f"hidden_sizes must be positive multiples of 8 (group norm); got {width}. Try {near}.")
        unit, side = self.downsample_factor, self.image_size
        _require(unit > 0, f"patch_size * 2^(stages - 1) must be positive; got {unit}. Set patch_size to 1 or more.")
        rule = "image_size must be a positive multiple of patch_size * 2^(stages - 1)"
        _require(side > 0 and side % unit == 0, f"{rule}; got {side} and {unit}. Try {_near(side, unit)}.")
        for name, levels in zip(("levels", "colour_levels"), self.codebooks, strict=False):
            enough = bool(levels) and min(levels) >= 2
            _require(enough, f"{name} must hold numbers of at least 2; got {levels}. Try (8, 8, 8, 8).")
        given, rgb = self.num_channels, self.colour_levels is None or self.num_channels == 3
        _require(rgb, f"colour_levels needs num_channels of 3 (RGB); got {given}. Leave it out.")

    @property
    def downsample_factor(self) -> int:
        """Pixels per patch along one side."""
        return self.patch_size * 2 ** (len(self.hidden_sizes) - 1)

    @property
    def grid_size(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.downsample_factor

    @property
    def codebooks(self) -> list[list[int] | tuple[int, ...]]:
        """Levels of each code that a patch has, in the order in which they are numbered."""
        return [self.levels] if self.colour_levels is None else [self.levels, self.colour_levels]

    @property
    def codebook_size(self) -> int:
        return sum(math.prod(levels) for levels in self.codebooks)


class ImageTokenizerGeometry(NamedTuple):
    """The properties of an image tokenizer that DPS needs, the same for each kind.

    drawing_size: side of the square pictures, in pixels.
    grid_size: patches along one side of a picture.
    codebook_sizes: how many codes each codebook has; each patch has one code of each codebook.
    levels: for each codebook, the levels of each latent channel. Codes that differ by one level are neighbours. `None`
        where codes have no neighbours.
    """

    drawing_size: int
    grid_size: int
    codebook_sizes: list[int]
    levels: list[list[int] | tuple[int, ...]] | None

    @property
    def codebook_size(self) -> int:
        """Image codes in the vocabulary, those of all codebooks together."""
        return sum(self.codebook_sizes)

    @property
    def num_codes(self) -> int:
        """Codes of a drawing, row by row: those of the first codebook for all patches, then those of the next."""
        return self.grid_size**2 * len(self.codebook_sizes)


def _dps_geometry(config: DPSImageTokenizerConfig) -> ImageTokenizerGeometry:
    sizes = [math.prod(levels) for levels in config.codebooks]
    return ImageTokenizerGeometry(config.image_size, config.grid_size, sizes, config.codebooks)


def _janus_geometry(config: transformers.PreTrainedConfig) -> ImageTokenizerGeometry:
    image_size = config.num_patches * 2 ** (len(config.channel_multiplier) - 1)
    return ImageTokenizerGeometry(image_size, config.num_patches, [config.num_embeddings], None)


# How to get the geometry from the config of each kind of image tokenizer. `IMAGE_TOKENIZERS` has their classes.
GEOMETRIES = {DPSImageTokenizerConfig.model_type: _dps_geometry, "janus_vqgan": _janus_geometry}


@strict
class DPSConfig(transformers.PreTrainedConfig):
    r"""
    Configuration of [`DPSModel`] and [`DPSForConditionalGeneration`].

    The vocabulary is that of the decoder (`text_config.vocab_size`): text, a few special tokens, and a token for each
    code of the image tokenizer. By default, the special tokens and the codes are its last tokens, in this order.

    text_config (`PreTrainedConfig` or `dict`, defaults to Llama): any decoder that `AutoModel` builds.
    vision_config (`SiglipVisionConfig` or `dict`): the image encoder.
    image_tokenizer_config (`DPSImageTokenizerConfig`, `JanusVQVAEConfig` or `dict`): chosen by its `model_type`.
    projector_hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): activation between the connector's two linears.
    image_token_id (`int`): placeholder for one feature vector of a picture in the prompt.
    boi_token_id, eoi_token_id (`int`): begin and end of a drawing.
    image_code_start_id (`int`): id of the token of code 0; code `i` is token `image_code_start_id + i`.
    tie_word_embeddings (`bool`, defaults to `True`): whether `lm_head` shares the embeddings' weight.

    `drawing_size`, `grid_size`, `codebook_size` and `num_codes` are those of [`ImageTokenizerGeometry`].

    Raises:
        ValueError: a geometry or an id that cannot work.
    """

    model_type = "dps"
    sub_configs = {
        "text_config": transformers.AutoConfig,
        "vision_config": transformers.SiglipVisionConfig,
        "image_tokenizer_config": DPSImageTokenizerConfig,
    }
    # All outputs but loss and logits, so that the Trainer gives only these to `compute_metrics`.
    keys_to_ignore_at_inference = ["last_hidden_state", "hidden_states", "attentions", *CACHE_NAMES]
    keys_to_ignore_at_inference += ["image_hidden_states", "image_outputs"]

    text_config: dict | transformers.PreTrainedConfig | None = None
    vision_config: dict | transformers.PreTrainedConfig | None = None
    image_tokenizer_config: dict | transformers.PreTrainedConfig | None = None
    projector_hidden_act: str = "gelu_pytorch_tanh"
    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    image_code_start_id: int | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    auto_map: dict | None = field(default_factory=AUTO_MAP.copy)

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config(self.text_config, "llama")
        self.vision_config = _sub_config(self.vision_config, "siglip_vision_model")
        self.image_tokenizer_config = _sub_config(self.image_tokenizer_config, DPSImageTokenizerConfig.model_type)
        self.auto_map = self.auto_map or AUTO_MAP.copy()
        self.validate_geometry()
        first_id = self.text_config.vocab_size - self.codebook_size
        if self.image_code_start_id is None:
            self.image_code_start_id = first_id
        for offset, name in enumerate(("eoi_token_id", "boi_token_id", "image_token_id"), start=1):
            if getattr(self, name) is None:
                setattr(self, name, self.image_code_start_id - offset)
        kwargs.pop("row_end_token_id", None)  # older checkpoints name it, and have none
        super().__post_init__(**kwargs)
        self.validate_ids()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in the library, but also checks fields that are given beside the dict."""
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.validate_geometry()
        config.validate_ids()
        return made

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that one picture in the prompt takes."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def image_tokenizer_geometry(self) -> ImageTokenizerGeometry:
        return GEOMETRIES[self.image_tokenizer_config.model_type](self.image_tokenizer_config)

    # The library calls methods whose names begin with `validate_` before it saves.

    def validate_geometry(self) -> None:
        text, vision, codes = self.text_config, self.vision_config, self.image_tokenizer_config
        _require(
            vision.model_type == "siglip_vision_model",
            "vision_config.model_type must be 'siglip_vision_model' (a SigLIP, or a SigLIP2 of fixed resolution); "
            f"got {vision.model_type!r}. Take the vision_config of such a checkpoint.",
        )
        for name in ("image_size", "patch_size"):
            size, rule = getattr(vision, name), f"vision_config.{name} must be one number, of a square"
            _require(isinstance(size, int), f"{rule}; got {size!r}. Set it to 224 or 16.")
        # image_size need not be a multiple: published towers read 384 pixels in patches of 14, and ignore the rest.
        _require(
            0 < vision.patch_size <= vision.image_size,
            "vision_config.patch_size must be positive and at most image_size; "
            f"got {vision.patch_size} and {vision.image_size}. Set it to 14 or 16.",
        )
        _require(
            codes.model_type in GEOMETRIES,
            f"image_tokenizer_config.model_type must be {' or '.join(map(repr, GEOMETRIES))}; "
            f"got {codes.model_type!r}. Set one of the two.",
        )
        for name in ("num_patches", "num_embeddings", "channel_multiplier"):  # of Janus
            size, rule = getattr(codes, name, 1), f"image_tokenizer_config.{name} must be positive"
            _require(size > 0 if isinstance(size, int) else len(size) > 0, f"{rule}; got {size}. Take Janus-Pro's.")
        for part, config in (("vision_config", vision), ("image_tokenizer_config", codes)):
            for name in ("num_channels", "in_channels", "out_channels"):
                channels, rule = getattr(config, name, 3), f"{part}.{name} must be 3 (pictures are RGB)"
                _require(channels == 3, f"{rule}; got {channels}. Set it to 3.")
        act, rule = self.projector_hidden_act, "projector_hidden_act must be an activation that transformers knows"
        _require(act in ACT2FN, f"{rule}; got {act!r}. Set it to 'gelu_pytorch_tanh'.")
        may_encode = text.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        encoder = text.is_encoder_decoder or (may_encode and not getattr(text, "is_decoder", False))
        _require(
            not encoder and getattr(text, "vocab_size", None) is not None,
            f"text_config.model_type must be that of a decoder; got {text.model_type!r}. "
            "Take a model that AutoModelForCausalLM loads, such as 'llama'.",
        )
        for part, config, width, count in (
            ("vision_config", vision, "hidden_size", "num_attention_heads"),
            ("text_config", text, "num_attention_heads", "num_key_value_heads"),
        ):
            whole, parts = getattr(config, width, None), getattr(config, count, None)
            if isinstance(whole, int) and isinstance(parts, int):  # some decoders have a number for each layer
                unit, rule = max(1, parts), f"{part}.{width} must be a positive multiple of {count}"
                holds, remedy = whole > 0 and parts > 0 and whole % unit == 0, f"Try {_near(whole, unit)} and {unit}."
                _require(holds, f"{rule}; got {whole} and {parts}. {remedy}")

    def validate_ids(self) -> None:
        start, vocab_size = self.image_code_start_id, self.vocab_size
        end = start + self.codebook_size
        _require(
            start >= 0 and end <= vocab_size,
            "image_code_start_id + codebook size must lie within text_config.vocab_size; "
            f"got {start} + {self.codebook_size} and {vocab_size}. "
            f"Set text_config.vocab_size to at least {max(start, 3) + self.codebook_size}.",
        )
        rule = f"must lie in the vocabulary of {vocab_size} tokens and outside of the image codes [{start}, {end})"
        taken: dict[int, str] = {}
        for name in ("image_token_id", "boi_token_id", "eoi_token_id", *TEXT_TOKEN_IDS):
            values, of_text = getattr(self, name), name in TEXT_TOKEN_IDS
            for value in values if isinstance(values, list) else [values]:
                # Older Llamas say with -1 that there is no padding.
                if of_text and (value is None or (name == "pad_token_id" and value == -1)):
                    continue
                remedy = f"Choose an id {f'below {start}' if start else f'from {end}'}."
                if of_text:
                    remedy = f"Set text_config.{name} to another id."
                _require(0 <= value < vocab_size and not start <= value < end, f"{name} {rule}; got {value}. {remedy}")
                other = taken.get(value, name)
                _require(other == name, f"{name} must differ from {other}; both are {value}. Choose another id.")
                if not of_text:
                    taken[value] = name


def _part_of(part: str, name: str) -> property:
    def write(self, value):
        setattr(getattr(self, part), name, value)

    return property(lambda self: getattr(getattr(self, part), name, None), write)


# The library, peft and trl read these of the decoder's fields at the top level.
for _name in ("vocab_size", "hidden_size", *TEXT_TOKEN_IDS):
    setattr(DPSConfig, _name, _part_of("text_config", _name))
for _name in ("drawing_size", "grid_size", "codebook_size", "num_codes"):
    setattr(DPSConfig, _name, _part_of("image_tokenizer_geometry", _name))


def _sub_config(value, default_model_type: str) -> transformers.PreTrainedConfig:
    if isinstance(value, transformers.PreTrainedConfig):
        return value
    value = dict(value or {})
    model_type = value.pop("model_type", default_model_type)
    if model_type == DPSImageTokenizerConfig.model_type:
        return DPSImageTokenizerConfig(**value)
    if model_type not in transformers.CONFIG_MAPPING:
        rule = "model_type of a nested config must be one that transformers knows"
        raise ValueError(f"{rule}; got {model_type!r}. Set it to {default_model_type!r}, say.")
    return transformers.CONFIG_MAPPING[model_type](**value)
