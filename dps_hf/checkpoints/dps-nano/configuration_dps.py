"""Configuration of DPS: three nested parts, the geometry that joins them, and the layout of the one vocabulary."""

import math
from dataclasses import field

from .library_dps import (
    ACT2FN,
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
    modeling_auto,
    strict,
)


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
# `transformers serve`, trl and the Trainer's label smoothing look the name of a model's class up here, that of remote code
# too. Who has a choice looks among the models of pictures and text before the causal ones.
for _names in (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
):
    _names.setdefault("dps", "DPSForConditionalGeneration")


def _divides(owner: str, image_size: int, unit_name: str, unit: int) -> None:
    if unit <= 0:
        raise ValueError(
            f"{owner}.{unit_name} must be positive; got {unit}. Set patch_size to a divisor of image_size."
        )
    if image_size <= 0 or image_size % unit:
        remedy = max(unit, round(image_size / unit) * unit)
        raise ValueError(
            f"{owner}.image_size must be a positive multiple of {unit_name}; got {image_size} and {unit}. Try {remedy}."
        )


@strict
class DPSImageTokenizerConfig(PreTrainedConfig):
    r"""
    Geometry and size of [`DPSImageTokenizer`].

    image_size (`int`, defaults to 64): side of the square pictures, in pixels.
    num_channels (`int`, defaults to 3): colour channels.
    patch_size (`int`, defaults to 4): side of the patches that the decoder's last convolution writes.
    hidden_sizes (`list[int]`, defaults to `[96, 160]`): width of each stage; each stage after the first halves the grid.
    num_encoder_blocks (`int`, defaults to 3): residual blocks of the encoder, which has the last stage's width.
    num_res_blocks (`int`, defaults to 1): residual blocks in each stage of the decoder.
    levels (`list[int]`, defaults to `[8, 8, 8, 8]`): levels of each latent channel; their product is the number of codes.
    colour_levels (`list[int]`, *optional*): gives each patch a second code, for its colours, with these levels; `levels` are
        those of the first one then, for its pattern. The codes of colours are numbered after those of patterns, and a picture
        has all of its patterns first.
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
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}; got {getattr(self, name)}. Set it to {least} or more."
                )
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes must hold at least one width; got none. Try (96, 160).")
        for width in self.hidden_sizes:
            if width <= 0 or width % 8:
                raise ValueError(
                    f"hidden_sizes must be positive multiples of 8 (group norm); got {width}. Try {max(width, 0) // 8 * 8 + 8}."
                )
        _divides("DPSImageTokenizerConfig", self.image_size, "patch_size * 2^(stages - 1)", self.downsample_factor)
        for name, levels in zip(("levels", "colour_levels"), self.codebooks, strict=False):
            if not levels or min(levels) < 2:
                raise ValueError(f"{name} must hold numbers of at least 2; got {levels}. Try (8, 8, 8, 8).")
        if self.colour_levels is not None and self.num_channels != 3:
            raise ValueError(
                f"colour_levels needs num_channels of 3 (pictures are RGB); got {self.num_channels}. Leave it out."
            )

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
    def num_codes(self) -> int:
        """Codes of a picture."""
        return self.grid_size**2 * len(self.codebooks)

    @property
    def codebook_size(self) -> int:
        return sum(math.prod(levels) for levels in self.codebooks)


@strict
class DPSConfig(PreTrainedConfig):
    r"""
    Configuration of [`DPSModel`] and [`DPSForConditionalGeneration`].

    The vocabulary belongs to the decoder (`text_config.vocab_size`): text first, then a few special tokens, then one
    token for each code of the image tokenizer. Ids that are left out lie at the very end of it, in that order.

    text_config (`PreTrainedConfig` or `dict`, defaults to Llama): any decoder that `AutoModel` builds.
    vision_config (`SiglipVisionConfig` or `dict`): the image encoder.
    image_tokenizer_config (`DPSImageTokenizerConfig`, `JanusVQVAEConfig` or `dict`): chosen by its `model_type`.
    projector_hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): activation between the connector's two linears.
    image_token_id (`int`): placeholder that one feature vector of a picture in the prompt replaces.
    boi_token_id, eoi_token_id (`int`): begin and end of a drawing.
    row_end_token_id (`int`, *optional*): ends each row of codes in a drawing; `None` leaves the rows unmarked.
    image_code_start_id (`int`): id of the token of code 0; code `i` is token `image_code_start_id + i`.
    tie_word_embeddings (`bool`, defaults to `True`): whether `lm_head` shares the embeddings' weight.

    Raises:
        ValueError: a geometry or an id that cannot work, with the field, the value and the remedy.
    """

    model_type = "dps"
    sub_configs = {
        "text_config": AutoConfig,
        "vision_config": SiglipVisionConfig,
        "image_tokenizer_config": DPSImageTokenizerConfig,
    }
    # All outputs but loss and logits: what is left is what the Trainer gives to `compute_metrics`. The cache has two names.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        "hidden_states",
        "attentions",
        "image_hidden_states",
        "image_outputs",
    ]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_tokenizer_config: dict | PreTrainedConfig | None = None
    projector_hidden_act: str = "gelu_pytorch_tanh"
    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    row_end_token_id: int | None = None
    image_code_start_id: int | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    auto_map: dict | None = field(default_factory=AUTO_MAP.copy)

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config(self.text_config, "llama")
        self.vision_config = _sub_config(self.vision_config, "siglip_vision_model")
        self.image_tokenizer_config = _sub_config(self.image_tokenizer_config, DPSImageTokenizerConfig.model_type)
        if self.auto_map is None:
            self.auto_map = AUTO_MAP.copy()
        self.validate_geometry()
        first_id = self.text_config.vocab_size - self.codebook_size
        if self.image_code_start_id is None:
            self.image_code_start_id = first_id
        for offset, name in enumerate(("eoi_token_id", "boi_token_id", "image_token_id"), start=1):
            if getattr(self, name) is None:
                setattr(self, name, self.image_code_start_id - offset)
        super().__post_init__(**kwargs)
        self.validate_ids()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in the library, but fields that are given beside the dict are looked at, too."""
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.validate_geometry()
        config.validate_ids()
        return made

    @property
    def vocab_size(self) -> int:
        """Text, special tokens and image codes together."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.text_config.vocab_size = value

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def num_image_tokens(self) -> int:
        """Placeholders that one picture in the prompt takes."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def codebook_size(self) -> int:
        tokenizer = self.image_tokenizer_config
        return tokenizer.num_embeddings if tokenizer.model_type == "janus_vqgan" else tokenizer.codebook_size

    @property
    def grid_size(self) -> int:
        """Patches along one side of a drawing."""
        tokenizer = self.image_tokenizer_config
        return tokenizer.num_patches if tokenizer.model_type == "janus_vqgan" else tokenizer.grid_size

    @property
    def num_codes(self) -> int:
        """Codes of a drawing, row by row: one for each patch, or two, the second ones after all of the first."""
        tokenizer = self.image_tokenizer_config
        return self.grid_size**2 if tokenizer.model_type == "janus_vqgan" else tokenizer.num_codes

    @property
    def drawing_size(self) -> int:
        """Side of a drawing, in pixels."""
        tokenizer = self.image_tokenizer_config
        if tokenizer.model_type == "janus_vqgan":
            return tokenizer.num_patches * 2 ** (len(tokenizer.channel_multiplier) - 1)
        return tokenizer.image_size

    @property
    def num_drawing_tokens(self) -> int:
        """Tokens between begin and end of a drawing: its codes, and its row ends where it has them."""
        return self.num_codes + self.num_codes // self.grid_size * (self.row_end_token_id is not None)

    # The library calls what is named `validate_` before it saves.

    def validate_geometry(self) -> None:
        if self.vision_config.model_type != "siglip_vision_model":
            raise ValueError(
                f"vision_config.model_type must be 'siglip_vision_model' (a SigLIP, or a SigLIP2 of fixed resolution); "
                f"got {self.vision_config.model_type!r}. Take the vision_config of such a checkpoint."
            )
        # A rest is fine, and left out by the tower's strided convolution: published towers have 384 pixels in patches of 14.
        image_size, patch_size = self.vision_config.image_size, self.vision_config.patch_size
        for name, value in (("image_size", image_size), ("patch_size", patch_size)):
            if not isinstance(value, int):
                raise ValueError(
                    f"vision_config.{name} must be one number, of a square; got {value!r}. Set it to 224 or 16, say."
                )
        if not 0 < patch_size <= image_size:
            raise ValueError(
                f"vision_config.patch_size must be positive and at most image_size; got {patch_size} and {image_size}. "
                "Set it to 14 or 16, say."
            )
        if self.image_tokenizer_config.model_type not in ("janus_vqgan", DPSImageTokenizerConfig.model_type):
            raise ValueError(
                "image_tokenizer_config.model_type must be 'dps_image_tokenizer' or 'janus_vqgan'; got "
                f"{self.image_tokenizer_config.model_type!r}. Set one of the two."
            )
        if self.image_tokenizer_config.model_type == "janus_vqgan":
            self._check_janus()
        if self.projector_hidden_act not in ACT2FN:
            raise ValueError(
                f"projector_hidden_act must be an activation that transformers knows; got {self.projector_hidden_act!r}. "
                "Set it to 'gelu_pytorch_tanh', say."
            )
        may_encode = self.text_config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        encoder = may_encode and not getattr(self.text_config, "is_decoder", False)
        if encoder or getattr(self.text_config, "vocab_size", None) is None or self.text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config.model_type must be that of a decoder; got {self.text_config.model_type!r}. Take a model that "
                "AutoModelForCausalLM loads, such as 'llama'."
            )
        for part, width, count in (
            ("vision_config", "hidden_size", "num_attention_heads"),
            ("text_config", "num_attention_heads", "num_key_value_heads"),
        ):
            whole, parts = (getattr(getattr(self, part), name, None) for name in (width, count))
            if not (isinstance(whole, int) and isinstance(parts, int)):  # some decoders have a number for each layer
                continue
            if whole < 1 or parts < 1 or whole % parts:
                raise ValueError(
                    f"{part}.{width} must be a positive multiple of {count}; got {whole} and {parts}. "
                    f"Try {max(1, round(whole / max(1, parts))) * max(1, parts)} and {max(1, parts)}."
                )
        for part in ("vision_config", "image_tokenizer_config"):
            channels = getattr(getattr(self, part), "num_channels", 3)
            if channels != 3:
                raise ValueError(f"{part}.num_channels must be 3 (pictures are RGB); got {channels}. Set it to 3.")

    def _check_janus(self) -> None:
        tokenizer = self.image_tokenizer_config
        for name in ("num_patches", "num_embeddings"):
            if getattr(tokenizer, name) < 1:
                raise ValueError(
                    f"image_tokenizer_config.{name} must be positive; got {getattr(tokenizer, name)}. Take that of Janus-Pro."
                )
        for name in ("in_channels", "out_channels"):
            if getattr(tokenizer, name) != 3:
                raise ValueError(
                    f"image_tokenizer_config.{name} must be 3 (pictures are RGB); got {getattr(tokenizer, name)}. Set it to 3."
                )
        if not tokenizer.channel_multiplier:
            raise ValueError(
                "image_tokenizer_config.channel_multiplier must hold at least one number; got none. Try [1, 1, 2, 2, 4]."
            )

    def validate_ids(self) -> None:
        start, end, vocab_size = (
            self.image_code_start_id,
            self.image_code_start_id + self.codebook_size,
            self.vocab_size,
        )
        if start < 0 or end > vocab_size:
            raise ValueError(
                f"image_code_start_id + codebook size must lie within text_config.vocab_size; got {start} + "
                f"{self.codebook_size} and {vocab_size}. Set text_config.vocab_size to at least "
                f"{max(start, 3) + self.codebook_size}, which leaves room for text."
            )
        taken: dict[int, str] = {}
        for name in ("image_token_id", "boi_token_id", "eoi_token_id", "row_end_token_id"):
            value = getattr(self, name)
            if value is None and name == "row_end_token_id":
                continue
            if not 0 <= value < vocab_size or start <= value < end:
                raise ValueError(
                    f"{name} must lie in the vocabulary of {vocab_size} tokens and outside of the image codes "
                    f"[{start}, {end}); got {value}. Choose an id {f'below {start}' if start else f'from {end}'}."
                )
            if value in taken:
                raise ValueError(
                    f"{name} must differ from {taken[value]}; both are {value}. Choose another id for one."
                )
            taken[value] = name
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                # -1 is how older Llamas say that there is no padding.
                if value is None or (name == "pad_token_id" and value == -1):
                    continue
                if not 0 <= value < vocab_size or start <= value < end:
                    raise ValueError(
                        f"{name} must lie in the vocabulary of {vocab_size} tokens and outside of the image codes "
                        f"[{start}, {end}), which no text can end with; got {value}. Set text_config.{name}."
                    )
                if value in taken:
                    raise ValueError(
                        f"{name} must differ from {taken[value]}; both are {value}. Set text_config.{name} to another id."
                    )


def _text_token_id(name: str) -> property:
    """An id that peft and trl read at the top level, and that belongs to the decoder."""

    def getter(self):
        return getattr(self.text_config, name, None)

    def setter(self, value):
        setattr(self.text_config, name, value)

    return property(getter, setter)


for _name in ("bos_token_id", "eos_token_id", "pad_token_id"):
    setattr(DPSConfig, _name, _text_token_id(_name))


def _sub_config(value: dict | PreTrainedConfig | None, default_model_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(value or {})
    model_type = value.pop("model_type", default_model_type)
    if model_type == DPSImageTokenizerConfig.model_type:
        return DPSImageTokenizerConfig(**value)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model_type of a nested config must be one that transformers knows; got {model_type!r}. "
            f"Set it to {default_model_type!r}, say."
        )
    return CONFIG_MAPPING[model_type](**value)


__all__ = ["DPSConfig", "DPSImageTokenizerConfig"]
