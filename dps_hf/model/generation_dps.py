"""Generation with DPS: text, drawings or both, with classifier-free guidance in one doubled batch."""

from functools import partial

import torch
import transformers
from torch.nn import functional as F

from .configuration_dps import DPSConfig
from .library_dps import CACHE, GenerateDecoderOnlyOutput, take_cache


GENERATION_MODES = ("text", "image", "interleaved")
# Logits processors that do not ask which token a score belongs to, so that they also work on the codes' scores alone.
WARPERS = (
    transformers.TemperatureLogitsWarper,
    transformers.TopKLogitsWarper,
    transformers.TopPLogitsWarper,
    transformers.MinPLogitsWarper,
)


class DrawingState:
    """Tells from the tokens of each row whether it is inside a drawing, and how far.

    It copies what it needs from the config, whose attributes are too slow for every decoding step.
    """

    def __init__(self, config: DPSConfig):
        self.begin, self.end, self.num_codes = config.boi_token_id, config.eoi_token_id, config.num_codes
        self.placeholder = config.image_token_id
        self.codes = slice(config.image_code_start_id, config.image_code_start_id + config.codebook_size)

    def last_begin(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The column of the last begin-of-image of each row, `(batch,)`; -1 where there is none."""
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        return torch.where(input_ids == self.begin, columns, -1).amax(dim=1)

    def position(self, input_ids: torch.Tensor) -> torch.Tensor:
        """How many codes of the current drawing each row has, `(batch,)`; -1 outside a drawing."""
        last_begin = self.last_begin(input_ids)
        position = input_ids.shape[1] - 1 - last_begin
        # A begin-of-image that words follow begins no drawing.
        drawn = (input_ids >= self.codes.start) & (input_ids < self.codes.stop)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        whole = (drawn | (columns <= last_begin[:, None])).all(dim=1)
        return torch.where((last_begin >= 0) & (position <= self.num_codes) & whole, position, -1)


class DrawingLogitsProcessor(transformers.LogitsProcessor):
    """Allows only tokens that may follow: text outside a drawing; inside it, its codes and then end-of-image.

    Args:
        may_draw: whether begin-of-image is allowed in text.
        max_length: begin-of-image is allowed only where the complete drawing fits within this length.
    """

    def __init__(self, config: DPSConfig, may_draw: bool, max_length: int | None = None):
        self.drawing, self.may_draw, self.max_length = DrawingState(config), may_draw, max_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawing = self.drawing
        if not self.may_draw:
            scores = scores.clone()
            for tokens in (drawing.codes, drawing.placeholder, drawing.begin, drawing.end):
                scores[:, tokens] = float("-inf")
            return scores
        ids = torch.arange(scores.shape[-1], device=scores.device)
        is_code = (ids >= drawing.codes.start) & (ids < drawing.codes.stop)
        fits = self.max_length is None or input_ids.shape[1] + 1 + drawing.num_codes + 1 <= self.max_length
        not_text = is_code | (ids == drawing.placeholder) | (ids == drawing.end)
        if not fits:
            not_text |= ids == drawing.begin
        position = drawing.position(input_ids)[:, None]
        whole = position == drawing.num_codes
        banned = torch.where(position < 0, not_text, torch.where(whole, ids != drawing.end, ~is_code))
        scores = scores.masked_fill(banned, float("-inf"))
        # End-of-image is the only choice here, even if another processor, as for no_repeat_ngram_size, bans it.
        return torch.where(whole & ~banned & scores.isneginf(), 0.0, scores)


def sample_tokens(probabilities: torch.Tensor) -> torch.Tensor:
    """Samples one index from each row of `probabilities`, `(rows, choices)`; never one whose probability is 0.

    It looks one random number up in the cumulative sum. `torch.multinomial` makes a random number for each choice,
    which takes a quarter of the time of a drawing on two CPU cores.
    """
    sums = probabilities.to(torch.float32 if probabilities.device.type == "mps" else torch.float64).cumsum(-1)
    if not sums[:, -1].isfinite().all():
        raise RuntimeError("Probabilities are not numbers: logits overflowed. Load the model in float32.")
    # Greater than 0 and at most the last sum, so that no choice of probability 0 is found.
    numbers = (1 - torch.rand_like(sums[:, :1])) * sums[:, -1:]
    return torch.searchsorted(sums, numbers).squeeze(1)


def drawing_sample(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    guidance: float = 1.0,
    streamer=None,
    **model_kwargs,
):
    """Decoding loop for drawings, a `custom_generate` function of the library.

    Classifier-free guidance (https://huggingface.co/papers/2207.12598) doubles the batch. The second half sees nothing
    before the begin-of-image of its current drawing. Outside drawings, the first half alone decides. While all rows
    draw, only logits of image codes are computed, unless scores are collected or a logits processor needs all of them.
    """
    drawing, guided, batch = DrawingState(model.config), guidance != 1, input_ids.shape[0]
    collect = generation_config.return_dict_in_generate
    collected: dict[str, tuple[torch.Tensor, ...]] = {"scores": (), "logits": ()}
    unfinished = torch.ones(batch, dtype=torch.long, device=input_ids.device)
    stops_at_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad_token_id = generation_config.pad_token_id
    if pad_token_id is None and stops_at_eos:  # as in the library
        ends = generation_config.eos_token_id
        pad_token_id = ends[0] if isinstance(ends, list) else ends

    attention_mask = model_kwargs.pop("attention_mask", None)
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    cache, pixel_values, next_ids = model_kwargs.get(CACHE), model_kwargs.get("pixel_values"), input_ids
    # Among codes alone there is nothing to mask.
    warpers = [one for one in logits_processor if not isinstance(one, DrawingLogitsProcessor)]
    may_skip_text = not collect and all(isinstance(processor, WARPERS) for processor in warpers)
    warpers = transformers.LogitsProcessorList(warpers)

    while True:
        position = drawing.position(input_ids)
        codes_only = may_skip_text and bool(((position >= 0) & (position < drawing.num_codes)).all())
        mask = attention_mask
        if guided:
            columns = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = torch.cat([mask, mask * (columns >= drawing.last_begin(input_ids)[:, None])])
            # The unguided half gets no pictures: it sees nothing before its drawing.
            next_ids = torch.cat([next_ids, next_ids.masked_fill(next_ids == drawing.placeholder, drawing.begin)])
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -next_ids.shape[1] :]
        outputs = model(
            input_ids=next_ids,
            pixel_values=pixel_values,
            attention_mask=mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
            codes_only=codes_only,
            return_dict=True,
        )
        cache = outputs[CACHE] if cache is not None else None
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)  # (batch, vocabulary or codes)
        if guided:
            logits, unguided = logits.chunk(2)
            strengthened = unguided + guidance * (logits - unguided)
            logits = torch.where((position >= 0)[:, None], strengthened, logits)
        next_scores = (warpers if codes_only else logits_processor)(input_ids, logits)
        if generation_config.do_sample:
            tokens = sample_tokens(F.softmax(next_scores, dim=-1))
        else:
            tokens = next_scores.argmax(dim=-1)
        if codes_only:
            tokens = tokens + drawing.codes.start
        if stops_at_eos:
            tokens = torch.where(unfinished.bool(), tokens, pad_token_id)
        for name, values in (("scores", next_scores), ("logits", logits)):
            if collect and getattr(generation_config, f"output_{name}"):
                collected[name] += (values,)
        if streamer is not None:
            streamer.put(tokens.cpu())

        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, 1)], dim=1)
        unfinished = unfinished & ~stopping_criteria(input_ids, collected["scores"])
        if unfinished.max() == 0:
            break
        # Without a cache, all tokens and pictures are computed again.
        next_ids, pixel_values = (input_ids, pixel_values) if cache is None else (tokens[:, None], None)

    if streamer is not None:
        streamer.end()
    if not collect:
        return input_ids
    asked = {name: values or None for name, values in collected.items()}
    return GenerateDecoderOnlyOutput(sequences=input_ids, **asked, **{CACHE: cache})


class DPSGenerationMixin(transformers.GenerationMixin):
    """`generate` in three modes."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        logits_processor: transformers.LogitsProcessorList | None = None,
        generation_mode: str | None = None,
        guidance_scale: float | None = None,
        **kwargs,
    ):
        """
        Generates text, a drawing, or both, from text and pictures. All other arguments work as in
        [`~transformers.GenerationMixin.generate`].

        Args:
            inputs: or `input_ids`, token ids `(batch, sequence)`, padded on the left.
            generation_mode: `"text"` emits text only. `"image"` appends begin-of-image where it is missing, then emits
                one complete drawing and end-of-image; `max_new_tokens` is ignored. `"interleaved"` emits text, and a
                complete drawing after each begin-of-image. By default `generation_config.generation_mode`, else
                `"text"`.
            guidance_scale: strength of classifier-free guidance inside drawings; 1 is none. By default
                `generation_config.guidance_scale`, else 1.

        Returns:
            Token ids with the prompt, `(batch * num_return_sequences, sequence)`, or the output class that
            `return_dict_in_generate` asks for.

        Raises:
            ValueError: an unknown mode, an empty prompt, `max_time` or `stop_strings` in mode `"image"`, or guidance
                with a decoding method other than greedy decoding and sampling.
        """
        # The library's own `generate` knows only one of the names.
        cache = take_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None), kwargs)
        if cache is not None:
            kwargs[CACHE] = cache

        def setting(name):
            """In the library's order: arguments, then the given config, then the model's own."""
            configs = (generation_config, self.generation_config)
            values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in values if value is not None), None)

        mode = generation_mode or setting("generation_mode") or "text"
        if mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode must be one of {', '.join(GENERATION_MODES)}; got {mode!r}.")
        if guidance_scale is None:
            guidance_scale = setting("guidance_scale")
        input_ids = kwargs.pop("input_ids", None)
        input_ids = inputs if input_ids is None else input_ids

        if mode == "image":
            for name in ("max_time", "stop_strings"):
                if (value := setting(name)) is not None:
                    remedy = f"Leave {name} out with generation_mode='image'."
                    raise ValueError(f"{name} could cut the drawing off; got {value!r}. {remedy}")
            input_ids = self._begin_drawing(input_ids, kwargs, setting)
        has_tokens = input_ids is not None and input_ids.shape[1] > 0
        if input_ids is not None and not has_tokens and kwargs.get("inputs_embeds") is None:
            raise ValueError("input_ids are empty. Give a prompt, or the chat template of an empty message.")
        # Picture features may also come as embeddings or in a cache.
        unseen = all(setting(name) is None for name in ("pixel_values", "inputs_embeds", CACHE))
        if unseen and has_tokens and (input_ids == self.config.image_token_id).any():
            raise ValueError("input_ids hold placeholders of pictures, but pixel_values are None. Pass both.")
        max_length = None
        if mode == "interleaved" and has_tokens:
            if setting("max_new_tokens") is None and setting("max_length") is None:
                kwargs["max_new_tokens"] = self.config.num_codes + 256
            max_new_tokens, length = setting("max_new_tokens"), input_ids.shape[1]
            max_length = setting("max_length") if max_new_tokens is None else length + max_new_tokens
            drawing = DrawingState(self.config)
            position = drawing.position(input_ids)
            due = int(torch.where(position >= 0, drawing.num_codes + 1 - position, 0).max())  # end-of-image included
            if max_length - length < due:
                raise ValueError(
                    f"max_new_tokens must be at least {due}, for the drawing that the prompt has begun; "
                    f"got {max_length - length}. Set it higher."
                )
        # Codes are no words. Other ways of decoding may read their logits, or give them to a model without the argument.
        alone = not logits_processor and "custom_generate" not in kwargs and setting("num_beams") in (None, 1)
        if mode == "text" and alone and setting("assistant_model") is None and not setting("output_logits"):
            kwargs["text_only"] = True
        logits_processor = transformers.LogitsProcessorList(logits_processor or [])
        logits_processor.append(DrawingLogitsProcessor(self.config, mode != "text", max_length))

        guidance = 1.0 if mode == "text" or guidance_scale is None else guidance_scale
        names = ("assistant_model", "prompt_lookup_num_tokens", "inputs_embeds", CACHE)
        beyond = [name for name in names if setting(name) is not None]
        beyond += [name for name in ("output_attentions", "output_hidden_states") if setting(name)]
        beyond += ["num_beams > 1"] if setting("num_beams") not in (None, 1) else []
        if guidance != 1 and beyond:
            raise ValueError(
                "guidance_scale needs greedy decoding or sampling from input_ids, and gives scores and logits only; "
                f"got {' and '.join(beyond)}. Leave it out, or set guidance_scale=1."
            )
        # Without guidance, too, this loop is faster than the library's, so it is used where it can be.
        plain = mode == "image" and setting("cache_implementation") is None and "custom_generate" not in kwargs
        if guidance != 1 or (plain and not beyond):
            streamer = kwargs.pop("streamer", None)
            if streamer is not None:
                streamer.put(input_ids.cpu())
            kwargs["custom_generate"] = partial(drawing_sample, guidance=guidance, streamer=streamer)
        # The library's own guidance would run the model twice, in text too.
        kwargs["guidance_scale"] = None if guidance_scale is None else 1.0
        return super().generate(
            input_ids, generation_config=generation_config, logits_processor=logits_processor, **kwargs
        )

    def _begin_drawing(self, input_ids: torch.Tensor | None, kwargs: dict, setting) -> torch.Tensor:
        """Returns the prompt with begin-of-image at its end, and sets what belongs to one drawing in `kwargs`."""
        if input_ids is None:
            raise ValueError("generation_mode='image' needs input_ids; got None. Give them, not inputs_embeds.")
        input_ids, mask, pad = input_ids.long(), kwargs.get("attention_mask"), setting("pad_token_id")
        if mask is None:  # as in the library: padding is found by its token, unless that token also ends texts
            ends = setting("eos_token_id")
            told = pad is not None and pad not in (ends if isinstance(ends, list) else [ends])
            mask = (input_ids != pad).long() if told else torch.ones_like(input_ids)
        begin = input_ids.new_full((len(input_ids), 1), self.config.boi_token_id)
        begun = input_ids[:, -1:] == begin if input_ids.shape[1] else torch.zeros_like(begin, dtype=torch.bool)
        if not begun.all():
            # Rows that end in it already get a masked token at their left.
            seen = torch.ones_like(begin).to(mask)
            input_ids = torch.where(begun, torch.cat([begin, input_ids], 1), torch.cat([input_ids, begin], 1))
            mask = torch.where(begun, torch.cat([0 * seen, mask], 1), torch.cat([mask, seen], 1))
        end = self.config.eoi_token_id
        # None overrides values in the model's own generation config.
        kwargs.update(max_length=None, min_length=None, min_new_tokens=None, max_new_tokens=self.config.num_codes + 1)
        kwargs.update(attention_mask=mask, eos_token_id=end, pad_token_id=end if pad is None else pad)
        return input_ids

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """As in the library, but repeats the pictures of each row together with the row."""
        pixel_values = model_kwargs.get("pixel_values")
        rows: tuple[torch.Tensor, ...] = ()
        if expand_size > 1 and pixel_values is not None and input_ids is not None:
            ids = input_ids if input_ids.shape[1] else None  # no columns where inputs_embeds are the prompt
            placeholders = self.model.find_placeholders(ids, model_kwargs.get("inputs_embeds"))
            counts = placeholders.sum(1) // self.config.num_image_tokens
            if counts.sum() == len(pixel_values):  # else the forward pass says what is wrong
                rows, model_kwargs["pixel_values"] = pixel_values.split(counts.tolist()), None
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if rows:
            model_kwargs["pixel_values"] = torch.cat([row for row in rows for _ in range(expand_size)])
        return input_ids, model_kwargs
