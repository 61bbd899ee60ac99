"""The DPS model: a SigLIP tower and text feed one decoder, whose vocabulary holds text tokens and image codes."""

import copy
import sys
from dataclasses import dataclass

import torch

# Unused here, so that a saved model brings the files of its processors, which its `auto_map` names.
import transformers
from torch import nn
from torch.nn import functional as F

from .configuration_dps import DPSConfig
from .generation_dps import DPSGenerationMixin
from .image_processing_dps import DPSImageProcessor  # noqa: F401
from .image_tokenizer_dps import IMAGE_TOKENIZERS
from .library_dps import (
    ACT2FN,
    CACHE,
    CACHE_NAMES,
    AutoQuantizationConfig,
    BaseModelOutputWithPooling,
    Cache,
    ModelOutput,
    can_return_tuple,
    find_cache_name,
    take_cache,
    torch_compilable_check,
)
from .loss_dps import SumOfNats
from .processing_dps import DPSProcessor  # noqa: F401


NUM_COMPARED = 256  # pixel values by which pictures are told apart before all are compared


# The fields are spelled out, so that no version of the library takes one away.
@dataclass
class DPSImageFeatures(BaseModelOutputWithPooling):
    """
    last_hidden_state (`torch.Tensor` of shape `(images, num_image_tokens, vision hidden_size)`): the tower's output.
    pooler_output (`torch.Tensor` of shape `(images, num_image_tokens, hidden_size)`): replaces the placeholders.
    hidden_states, attentions: those of the tower, if asked for.
    image_embeds (`torch.Tensor` of shape `(images, hidden_size)`): for retrieval, the mean of the vectors in
        `pooler_output`, each scaled to length 1.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_embeds: torch.Tensor | None = None


@dataclass
class DPSOutputWithPast(ModelOutput):
    """
    loss (`torch.Tensor` of shape `(1,)`): next-token loss over the labels that are not -100.
    logits (`torch.Tensor` of shape `(batch, sequence, vocab_size)`): over text and image codes; None with labels
        in training mode.
    last_hidden_state (`torch.Tensor` of shape `(batch, sequence, hidden_size)`): of [`DPSModel`] only.
    cache (`Cache`): `past_key_values` up to transformers 5.23.
    hidden_states, attentions: those of the decoder, if asked for.
    image_hidden_states (`torch.Tensor` of shape `(images, num_image_tokens, hidden_size)`): the connector's output.
    image_outputs ([`DPSImageFeatures`]): all outputs of the tower and the connector.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    image_outputs: DPSImageFeatures | None = None


def _touch(hidden_states: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states unchanged, and makes backward give `unused` a gradient of zeros."""
    nowhere = torch.zeros_like(hidden_states, dtype=torch.bool)
    return hidden_states.masked_scatter(nowhere, unused.to(hidden_states.device, hidden_states.dtype))


def _find_repeated(pixel_values: torch.Tensor) -> torch.Tensor | None:
    """For each picture the first one that is equal to it, `(images,)`; `None` if no two are equal.

    A few pixels tell most pictures apart, so pictures without an equal cost next to nothing.
    """
    pixels = pixel_values.flatten(1)
    stride = pixels.shape[1] // NUM_COMPARED | 1  # odd, so that the columns of the pictures vary
    first: dict[tuple, int] = {}
    originals = []
    for i, some in enumerate(pixels[:, ::stride].tolist()):
        original = first.setdefault(tuple(some), i)
        originals.append(original if original == i or torch.equal(pixels[original], pixels[i]) else i)
    if originals == list(range(len(originals))):
        return None
    return torch.tensor(originals, device=pixel_values.device)


def _take_rows(outputs: DPSImageFeatures, rows: torch.Tensor) -> DPSImageFeatures:
    def take(value):
        return tuple(map(take, value)) if isinstance(value, tuple) else value[rows.to(value.device)]

    return DPSImageFeatures(**{name: take(value) for name, value in outputs.items()})


class DPSConnector(nn.Module):
    """Projects the tower's features to the decoder's width: linear, GELU, linear, as in Janus (arXiv 2410.13848)."""

    def __init__(self, config: DPSConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


class DPSPreTrainedModel(transformers.PreTrainedModel):
    config_class = DPSConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiglipEncoderLayer", "DPSConnector", "DPSImageTokenizer", "JanusVQVAE"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Codes are rounded numbers. In half precision, at most one picture in three gets the codes that training saw.
    _keep_in_fp32_modules_strict = {"image_tokenizer"}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in the library, but freezes the image tokenizer, and `quantization_config` quantises only the decoder."""
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _quantise_only_the_decoder(kwargs["quantization_config"])
        # The library makes every loaded weight trainable.
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.base_model.image_tokenizer.requires_grad_(False)
        return loaded

    def save_pretrained(self, *args, **kwargs):
        """As in the library, but saves the name of a class that the saved code defines.

        FSDP2 replaces a model's class with one that it makes at run time, which no other process could load.
        """
        made = type(self)
        for cls in made.__mro__:
            if issubclass(cls, DPSPreTrainedModel) and getattr(sys.modules[cls.__module__], cls.__name__, None) is cls:
                self.__class__ = cls
                break
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = made

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple | DPSImageFeatures:
        """Encodes `pixel_values` of shape `(images, 3, image_size, image_size)` in [-1, 1].

        Pictures that are equal, as those of several questions about one picture, are encoded once. They may also be
        given as what the tower has made of them, `(images, num_image_tokens, vision hidden_size)`.
        """
        kwargs["return_dict"] = True
        model, originals = self.base_model, None
        if pixel_values.dim() == 3 and pixel_values.shape[-1] == self.config.vision_config.hidden_size:
            dtype = model.connector.linear_1.weight.dtype
            outputs = BaseModelOutputWithPooling(last_hidden_state=pixel_values.to(dtype))
        else:
            if model._may_share_features(pixel_values):
                originals = _find_repeated(pixel_values)
            if originals is not None:
                distinct, originals = originals.unique(return_inverse=True)
                pixel_values = pixel_values[distinct]
            # A frozen tower keeps no activations, even where gradient checkpointing has embeddings ask for gradients.
            frozen = not (pixel_values.requires_grad or any(w.requires_grad for w in model.vision_tower.parameters()))
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                outputs = model.vision_tower(pixel_values.to(model.vision_tower.dtype), **kwargs)
        features = model.connector(outputs.last_hidden_state)  # (images, num_image_tokens, hidden_size)
        if outputs.pooler_output is not None and model._all_processes_need_pictures():
            features = _touch(features, outputs.pooler_output)  # nothing else uses the tower's pooling head
        encoded = DPSImageFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=features,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_embeds=F.normalize(features, dim=-1).mean(dim=1),
        )
        return encoded if originals is None else _take_rows(encoded, originals)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutputWithPooling:
        """Embeds texts: `pooler_output` of shape `(batch, hidden_size)` is the mean over the tokens of each text."""
        kwargs["return_dict"] = True
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        # Positions count from the first token that is not padding.
        kwargs.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
        outputs = self.base_model.language_model(input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
        weights = mask.unsqueeze(-1).to(outputs.last_hidden_state)  # (batch, sequence, 1)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=(outputs.last_hidden_state * weights).sum(1) / weights.sum(1).clamp(min=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels to codes.

        Shapes:
            pixel_values: `(images, 3, height, width)` in [-1, 1]; other sizes than `config.drawing_size` are resized
            returns: `(images, num_codes)`, int64 in `[0, codebook_size)`; add `image_code_start_id` to get token ids
        """
        tokenizer, size = self.base_model.image_tokenizer, (self.config.drawing_size,) * 2
        if pixel_values.shape[-2:] != size:
            pixel_values = F.interpolate(pixel_values.float(), size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        return tokenizer.encode(pixel_values.to(tokenizer.dtype)).image_tokens.view(len(pixel_values), -1)

    @torch.no_grad()
    def decode_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Codes to pixels.

        Shapes:
            image_tokens: either codes `(batch, num_codes)` as `encode_image` returns them, or token ids
                `(batch, sequence)` as `generate` returns them; the last complete drawing of each row is decoded
            returns: `(batch, 3, drawing_size, drawing_size)` in [-1, 1]

        Raises:
            ValueError: another shape, negative numbers, or a row without a complete drawing.
        """
        config, shape = self.config, tuple(image_tokens.shape)
        if len(shape) != 2:
            raise ValueError(f"image_tokens must be (batch, sequence); got the shape {shape}. Try image_tokens[None].")
        if bool((image_tokens < 0).any()):
            low = int(image_tokens.min())
            raise ValueError(f"image_tokens must be 0 or more; got {low}. Remove label padding such as -100.")
        # Where numbers may be either codes or token ids, as in a small vocabulary, they count as codes.
        if shape[1] != config.num_codes or bool((image_tokens >= config.codebook_size).any()):
            image_tokens = torch.stack([self._last_drawing(row) for row in image_tokens]) - config.image_code_start_id
        return self.base_model.image_tokenizer.decode(image_tokens).clamp(-1, 1)

    def _last_drawing(self, row: torch.Tensor) -> torch.Tensor:
        """The token ids of the last complete drawing in a row, without codes that a prompt spells."""
        count, start = self.config.num_codes, self.config.image_code_start_id
        is_code = (row >= start) & (row < start + self.config.codebook_size)
        after = (row == self.config.boi_token_id).cumsum(0)  # how many begin-of-image there are up to each token
        # Codes before the first one count only where it was cut off together with the prompt.
        found = [row[is_code & (after == i)] for i in range(int(after[-1]) + 1)]
        drawings = [codes[:count] for codes in found if len(codes) >= count]
        if not drawings:
            raise ValueError(
                f"image_tokens must hold a whole drawing of {count} image codes in each row; one row holds "
                f"{max(map(len, found))}. Call generate(generation_mode='image') without your own stopping criteria, "
                "which may have cut it off."
            )
        return drawings[-1]


def _quantise_only_the_decoder(quantization_config):
    """A copy of a quantization config that also skips every module but the decoder."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.copy(quantization_config)
    # Names are matched from their start, and those of `DPSForConditionalGeneration` begin with `model.`. The list
    # replaces the library's default, which skips the head.
    parts = ("image_tokenizer", "vision_tower", "connector")
    whole = [*parts, *(f"model.{part}" for part in parts), "lm_head"]
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantization_config, field):
            given = getattr(quantization_config, field) or []
            setattr(quantization_config, field, list(dict.fromkeys([*given, *whole])))
    return quantization_config


class DPSModel(DPSPreTrainedModel):
    """The tower, the connector, the decoder without its head, and the frozen image tokenizer."""

    _auto_class = "AutoModel"

    def __init__(self, config: DPSConfig):
        super().__init__(config)
        self.vision_tower = transformers.SiglipVisionModel._from_config(config.vision_config)
        self.connector = DPSConnector(config)
        self.language_model = transformers.AutoModel.from_config(config.text_config)
        self.decoder_cache = find_cache_name(self.language_model.forward) or CACHE
        tokenizer_class = IMAGE_TOKENIZERS[config.image_tokenizer_config.model_type]
        # float32 whatever the rest is in: half precision would round to other codes.
        self.image_tokenizer = tokenizer_class._from_config(config.image_tokenizer_config, dtype=torch.float32)
        # Its codes are tokens of the decoder, so training it would change what these tokens mean.
        self.image_tokenizer.requires_grad_(False)
        self.post_init()

    def _apply(self, fn, recurse=True):
        """As in torch, but `.to(torch.bfloat16)` and the like leave the image tokenizer in float32."""
        kept = {id(tensor) for tensor in (*self.image_tokenizer.parameters(), *self.image_tokenizer.buffers())}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        return super()._apply(move, recurse)

    def _all_processes_need_pictures(self) -> bool:
        """Whether the tower and the connector must run in every process, even on a batch without pictures.

        In DDP, FSDP and ZeRO all processes wait for each other's gradients. Where weights are sharded, all processes
        must gather them together, in inference too.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return False
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        parameters = [*self.vision_tower.parameters(), *self.connector.parameters()]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return True
        modules = [*self.vision_tower.modules(), *self.connector.modules()]
        # Those that gather their weights themselves, not together with those of a parent module.
        sharded = any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in modules)
        return sharded or any(hasattr(parameter, "ds_id") for parameter in parameters)  # ZeRO-3

    def _may_share_features(self, pixel_values: torch.Tensor) -> bool:
        """Whether equal pictures have equal features and gradients, and may be looked for."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(pixel_values) is not torch.Tensor:
            return False  # the number of pictures would depend on their pixels
        random = self.training and self.config.vision_config.attention_dropout > 0
        return not (random or len(pixel_values) < 2 or pixel_values.requires_grad or pixel_values.is_meta)

    def find_placeholders(self, input_ids, inputs_embeds) -> torch.Tensor:
        """A mask of the placeholders, `(batch, sequence)`; without `input_ids`, found by their embedding."""
        if input_ids is None:
            placeholder = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)
        return input_ids == self.config.image_token_id

    def get_placeholder_mask(self, input_ids, inputs_embeds, image_features) -> torch.Tensor:
        """A mask of the placeholders, `(batch, sequence, hidden_size)`; there must be one for each feature vector."""
        mask = self.find_placeholders(input_ids, inputs_embeds).unsqueeze(-1).expand_as(inputs_embeds)
        given = image_features.numel() // image_features.shape[-1]
        torch_compilable_check(
            mask.sum() == image_features.numel(),
            lambda: (
                f"pixel_values give {given} feature vectors, input_ids hold {mask[..., 0].sum()} placeholders; "
                "truncation may have cut some. Let the processor make both, without max_length."
            ),
        )
        return mask

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | DPSOutputWithPast:
        """
        input_ids: `(batch, sequence)`. pixel_values: `(images, 3, image_size, image_size)`, in the order of their
        placeholders. cache: called `past_key_values` up to transformers 5.23; either name works. positions_to_keep:
        `(batch, sequence)`, bool; the last hidden states are then `(1, positions, hidden_size)`, of these alone.
        """
        cache = take_cache(cache, past_key_values, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_outputs = image_features = None
        if pixel_values is not None and len(pixel_values):  # trl splits batches, and a part may have no pictures
            recorded = {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}
            image_outputs = self.get_image_features(pixel_values, return_dict=True, **recorded)
            image_features = image_outputs.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)
        elif self._all_processes_need_pictures():
            vision = self.config.vision_config
            blank = inputs_embeds.new_zeros(1, vision.num_channels, vision.image_size, vision.image_size)
            inputs_embeds = _touch(inputs_embeds, self.get_image_features(blank, return_dict=True).pooler_output)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{self.decoder_cache: cache},
            **kwargs,
        )
        last_hidden_state = outputs.last_hidden_state
        if positions_to_keep is not None:
            last_hidden_state = last_hidden_state[positions_to_keep.to(last_hidden_state.device)][None]
        return DPSOutputWithPast(
            last_hidden_state=last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            image_outputs=image_outputs,
            **{CACHE: outputs.get(CACHE)},
        )


class DPSForConditionalGeneration(DPSPreTrainedModel, DPSGenerationMixin):
    """DPS with its head over text tokens and image codes."""

    _auto_class = "AutoModelForMultimodalLM"
    output_modalities = ("image", "text")
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: DPSConfig):
        super().__init__(config)
        self.model = DPSModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Decoders name their embeddings differently (`embed_tokens`, `wte`, ...).
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        codes_only: bool = False,
        guidance_scale: float = 1.0,
        text_only: bool = False,
        skip_logits: bool | None = None,
        loss_weights: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple | DPSOutputWithPast:
        """
        As [`DPSModel.forward`]. labels: `(batch, sequence)`, -100 for tokens without a loss. logits_to_keep: how many
        of the last positions, or which positions, get logits and a loss. codes_only: gives logits of the image codes
        alone, `(batch, sequence, codebook_size)`, and no loss; inside a drawing no other token may follow.
        guidance_scale: if not 1, gives the logits of the first half of the batch, guided away from the second half.
        text_only: gives the codes logits of -inf without computing them, and no loss.
        skip_logits: gives a loss without logits, which is faster and takes less memory; by default in training mode
        with labels. loss_weights: `(batch, sequence)`, of each label in the mean; by default 1. use_cache: by default
        false in training mode with labels, since nothing follows and gradient checkpointing would warn of it.
        """
        learns = self.training and labels is not None
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and learns else use_cache,
            past_key_values=past_key_values,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        if guidance_scale != 1:  # the head is linear, so that guided hidden states give guided logits
            guided, unguided = hidden_states.float().chunk(2)
            hidden_states = (unguided + guidance_scale * (guided - unguided)).to(hidden_states.dtype)
        # A loss function of the user's own needs logits, and a compiled graph cannot select positions by their labels.
        simple = not hasattr(self, "_loss_function") and not torch.compiler.is_compiling()
        if skip_logits is None:
            skip_logits = learns
        logits = loss = None
        if codes_only:
            logits = self._code_logits(hidden_states)
        elif text_only:
            logits = self._text_logits(hidden_states)
        elif not (skip_logits and simple):
            logits = self.lm_head(hidden_states)
        if labels is not None and not (codes_only or text_only):
            labels = labels[:, kept]
            if simple or loss_weights is not None:
                weights = None if loss_weights is None else loss_weights[:, kept]
                loss = self._compute_loss(hidden_states, logits, labels, weights, **kwargs)
            else:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return DPSOutputWithPast(loss=loss, logits=logits, **others)

    def _has_plain_head(self) -> bool:
        """Whether the head is its weight alone: not quantised, adapted, sharded, offloaded or biased."""
        head = self.lm_head
        hooked = head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook")
        plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter and getattr(head, "bias", None) is None
        return plain and not hooked

    def _code_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        start = self.config.image_code_start_id
        codes = slice(start, start + self.config.codebook_size)
        if self._has_plain_head():
            return F.linear(hidden_states, self.lm_head.weight[codes])
        return self.lm_head(hidden_states)[..., codes]

    def _text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        start, head = self.config.image_code_start_id, self.lm_head
        stop = start + self.config.codebook_size
        if not self._has_plain_head():
            logits = head(hidden_states).clone()
            logits[..., start:stop] = float("-inf")
            return logits
        logits = hidden_states.new_full((*hidden_states.shape[:-1], len(head.weight)), float("-inf"))
        for text in (slice(start), slice(stop, None)):
            logits[..., text] = F.linear(hidden_states, head.weight[text])
        return logits

    def _compute_loss(self, hidden_states, logits, labels, weights, **kwargs) -> torch.Tensor:
        """The library's next-token loss, where labels are not -100. It takes `logits` if there are any."""
        targets = kwargs.get("shift_labels")
        targets = F.pad(labels, (0, 1), value=-100)[:, 1:] if targets is None else targets
        due = (targets := targets.to(hidden_states.device)) != -100
        weights = due.float() if weights is None else F.pad(weights, (0, 1))[:, 1:].to(due.device, torch.float32)
        targets, weight = targets[due], weights[due]
        if logits is None and self._has_plain_head():
            # Without gradients, the head would still ask for its own.
            rows = self.lm_head.weight if torch.is_grad_enabled() else self.lm_head.weight.detach()
            total = SumOfNats.apply(hidden_states[due], rows, targets, weight)
        else:
            logits = self.lm_head(hidden_states[due]) if logits is None else logits[due]
            total = (F.cross_entropy(logits.float(), targets, reduction="none") * weight).sum()
        count = kwargs.get("num_items_in_batch")
        return total / (weights.sum().clamp(min=1e-6) if count is None else torch.as_tensor(count).to(total.device))
