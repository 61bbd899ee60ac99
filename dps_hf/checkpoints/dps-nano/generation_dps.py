"""Generation with DPS: text, drawings or both, with classifier-free guidance in one doubled batch."""

from functools import partial

import torch
import transformers
from torch.nn import functional as F

from .configuration_dps import DPSConfig
from .library_dps import CACHE, GenerateDecoderOnlyOutput, create_masks_for_generate, take_cache
from .windows_dps import WARPERS, can_draw_in_windows, draw_in_windows, has_growing_layers, sample_tokens


GENERATION_MODES = ("text", "image", "interleaved")


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


def drawing_sample(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    guidance: float = 1.0,
    streamer=None,
    repeats: int = 1,
    **model_kwargs,
):
    """Decoding loop for drawings, a `custom_generate` function of the library.

    Classifier-free guidance (https://huggingface.co/papers/2207.12598) doubles the batch. The second half sees nothing
    before the begin-of-image of its current drawing. Outside drawings, the first half alone decides. While all rows
    draw, only logits of image codes are computed, unless scores are collected or a logits processor needs all of them.
    With `repeats`, each prompt is read once, and continued so many times.
    """
    drawing, guided, batch = DrawingState(model.config), guidance != 1, input_ids.shape[0] * repeats
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
    compiled = None
    if cache is not None and model._valid_auto_compile_criteria(model_kwargs, generation_config):
        compiled = model.get_compiled_call(generation_config.compile_config)

    while True:
        position = drawing.position(input_ids)
        all_draw = bool(((position >= 0) & (position < drawing.num_codes)).all())
        codes_only = may_skip_text and all_draw
        mask = attention_mask
        if guided:
            columns = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = torch.cat([mask, mask * (columns >= drawing.last_begin(input_ids)[:, None])])
            # The unguided half gets no pictures: it sees nothing before its drawing.
            next_ids = torch.cat([next_ids, next_ids.masked_fill(next_ids == drawing.placeholder, drawing.begin)])
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -next_ids.shape[1] :]
        position_ids = position_ids.clone(memory_format=torch.contiguous_format)  # a graph is compiled for its strides
        if cache is not None and cache.is_compileable:
            mask = create_masks_for_generate(
                config=model.config,
                inputs_embeds=torch.empty(*next_ids.shape, 0, dtype=model.dtype, device=next_ids.device),
                attention_mask=mask,
                position_ids=position_ids,
                **{CACHE: cache},
            )
        guides = guided and bool((position >= 0).all())
        # The prompt has any length, and end-of-image needs other logits than codes: neither is worth compiling for.
        steps = next_ids.shape[1] == 1 and codes_only == may_skip_text
        forward = compiled if compiled is not None and steps else model
        outputs = forward(
            input_ids=next_ids,
            pixel_values=pixel_values,
            attention_mask=mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
            codes_only=codes_only,
            guidance_scale=guidance if guides else 1.0,
            return_dict=True,
        )
        cache = outputs[CACHE] if cache is not None else None
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)  # (batch, vocabulary or codes)
        if len(input_ids) < batch:
            cache.batch_repeat_interleave(repeats)
            input_ids, attention_mask, position, logits = (
                one.repeat_interleave(repeats, 0) for one in (input_ids, attention_mask, position, logits)
            )
        if guided and not guides:
            logits, unguided = logits.chunk(2)
            strengthened = unguided + guidance * (logits - unguided)
            logits = torch.where((position >= 0)[:, None], strengthened, logits)
        next_scores = (warpers if codes_only else logits_processor)(input_ids, logits)
        choices = next_scores[:, drawing.codes] if all_draw and not codes_only else next_scores
        tokens = sample_tokens(F.softmax(choices, dim=-1)) if generation_config.do_sample else choices.argmax(dim=-1)
        if all_draw:
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


def draw(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    guidance: float,
    window: int | None,
    repeats: int,
    streamer,
    **model_kwargs,
):
    """Draws several codes in each pass where nothing needs one at a time; a `custom_generate` function."""
    cache, synced_gpus = model_kwargs.get(CACHE), model_kwargs.pop("synced_gpus", False)
    options = {"logits_processor": logits_processor, "generation_config": generation_config, "guidance": guidance}
    warpers = [one for one in logits_processor if not isinstance(one, DrawingLogitsProcessor)]
    if window != 1 and not synced_gpus and can_draw_in_windows(model, cache, warpers, stopping_criteria):
        return draw_in_windows(model, input_ids, window=window, repeats=repeats, **options, **model_kwargs)
    if not has_growing_layers(cache):
        input_ids, model_kwargs = model._expand_inputs_for_generation(repeats, input_ids=input_ids, **model_kwargs)
        repeats = 1
    options |= {"stopping_criteria": stopping_criteria, "streamer": streamer, "repeats": repeats}
    return drawing_sample(model, input_ids, **options, **model_kwargs)


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
        window: int | None = None,
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
            window: in mode `"image"`, how many codes one forward pass looks at. The drawing is the same whatever the
                window; larger windows make fewer passes, each over more tokens. By default `generation_config.window`,
                else chosen for the batch and the device. With 1, or where a logits processor, a stopping criterion, a
                streamer, the cache or the decoder needs it, codes are drawn one at a time.

        Returns:
            Token ids with the prompt, `(batch * num_return_sequences, sequence)`, or the output class that
            `return_dict_in_generate` asks for.

        Raises:
            ValueError: an unknown mode, a window below 1, an empty prompt, `max_time` or `stop_strings` in mode
                `"image"`, or guidance with a decoding method other than greedy decoding and sampling.
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
        window = setting("window") if window is None else window
        if window is not None and window < 1:
            raise ValueError(
                f"window must be 1 or more; got {window}. Leave it out, or draw one code at a time with 1."
            )
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
        # Codes are no words. Other ways of decoding may read their logits, or pass the argument to another model.
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
        kind = setting("cache_implementation")
        plain = mode == "image" and kind in (None, "dynamic", "static") and "custom_generate" not in kwargs
        if guidance != 1 or (plain and not beyond):
            streamer = kwargs.pop("streamer", None)
            if streamer is not None:
                streamer.put(input_ids.cpu())
            repeats = 1
            # Each prompt is read once: its cache is repeated, not its tokens.
            if mode == "image" and kind != "static" and streamer is None and setting("do_sample"):
                repeats, kwargs["num_return_sequences"] = setting("num_return_sequences") or 1, 1
            options = {"guidance": guidance, "repeats": repeats}
            windows = mode == "image" and window != 1 and streamer is None
            kwargs["custom_generate"] = partial(draw, window=window if windows else 1, streamer=streamer, **options)
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
