"""Drawing several codes in each forward pass, with the same result as one code at a time.

Jacobi decoding (https://huggingface.co/papers/2410.01699): the codes of the next places are guessed, one forward pass
checks all of them, and those up to the first wrong one are kept, together with the code that the model chooses there.
What it chooses for the later places is the next guess.

The drawings are the same, code for code. The random numbers that sample the code of a place are made once for each
place. So each code is a function of the codes before it, whether these were guessed or drawn one at a time, and the
distribution is exactly the same too.
"""

import inspect
import math

import torch
import transformers
from torch.nn import functional as F

from .library_dps import CACHE, Cache, GenerateDecoderOnlyOutput


# Logits processors that do not ask which token a score belongs to, so that they also work on the codes' scores alone.
WARPERS = (
    transformers.TemperatureLogitsWarper,
    transformers.TopKLogitsWarper,
    transformers.TopPLogitsWarper,
    transformers.MinPLogitsWarper,
    transformers.TypicalLogitsWarper,
    transformers.EpsilonLogitsWarper,
    transformers.EtaLogitsWarper,
    transformers.LogitNormalization,
)


def make_noise(rows: int, choices: int, device: torch.device) -> torch.Tensor:
    """The random numbers that choose one of `choices` for each row, `(rows, 2, blocks)`, exponentially distributed."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.empty(rows, 2, math.isqrt(choices - 1) + 1, dtype=dtype, device=device).exponential_()


def sample_tokens(probabilities: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Samples one index from each row of `probabilities`, `(rows, choices)`; never one whose probability is 0.

    Args:
        noise: of [`make_noise`], which is called by default.

    Returns:
        The indices, `(rows,)`.

    Raises:
        RuntimeError: a probability that is not a number.
    """
    if noise is None:
        noise = make_noise(len(probabilities), probabilities.shape[-1], probabilities.device)
    require_numbers(probabilities)
    return choose_tokens(probabilities, noise)


def require_numbers(probabilities: torch.Tensor) -> None:
    if not probabilities.sum(-1).isfinite().all():
        raise RuntimeError("Probabilities are not numbers: logits overflowed. Load the model in float32.")


def choose_tokens(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As [`sample_tokens`], a function of probabilities and noise that small changes of probabilities seldom change.

    The largest of probabilities divided by exponential noise is a sample (the Gumbel-max trick,
    https://arxiv.org/abs/1411.0030). It chooses a block of about the square root of all choices, then one of it. So it
    needs few random numbers; one for each choice would take a quarter of the time of a drawing on two CPU cores.
    """
    side = noise.shape[-1]
    blocks = F.pad(probabilities, (0, side * side - probabilities.shape[-1])).view(-1, side, side)
    block = (blocks.sum(-1) / noise[:, 0]).argmax(-1)
    chosen = blocks[torch.arange(len(blocks), device=blocks.device), block]  # (rows, side)
    return block * side + (chosen / noise[:, 1]).argmax(-1)


LONGEST = 16  # the largest window by default


def choose_window(num_rows: int, device: torch.device) -> int:
    """How many places a pass looks at by default. On a CPU, a pass over more tokens takes more time.

    Args:
        num_rows: of the batch, doubled by guidance.
    """
    return LONGEST if device.type != "cpu" else max(4, min(LONGEST, 128 // num_rows))


def can_draw_in_windows(model, cache: Cache | None, logits_processor, stopping_criteria) -> bool:
    """Whether nothing needs one code at a time.

    That is a logits processor or criterion that looks at tokens, a cache other than one of plain growing layers, a
    decoder or attention that does not take any position and mask, and processes that must make equally many passes.
    """
    decoder = model.base_model.language_model
    return (
        has_growing_layers(cache)
        and model.config.text_config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(decoder.forward).parameters
        and not getattr(decoder.config, "alibi", False)
        # Their frequencies depend on the last position of a pass.
        and not any(kind in str(getattr(decoder.config, "rope_parameters", "")) for kind in ("dynamic", "longrope"))
        and not decoder._is_stateful
        and all(isinstance(processor, WARPERS) for processor in logits_processor)
        and all(
            isinstance(one, (transformers.MaxLengthCriteria, transformers.EosTokenCriteria))
            for one in stopping_criteria
        )
        and not model.base_model._all_processes_need_pictures()
    )


def has_growing_layers(cache: Cache | None) -> bool:
    """Whether a cache has, or will make, plain growing layers and no others."""
    if type(cache) is not transformers.DynamicCache or cache.offloading:
        return False
    return all(type(layer) is transformers.DynamicLayer for layer in cache.layers) and (
        bool(cache.layers) or cache.layer_class_to_replicate is transformers.DynamicLayer
    )


@torch.no_grad()
def draw_in_windows(
    model,
    input_ids: torch.Tensor,
    logits_processor,
    generation_config,
    window: int | None = None,
    guidance: float = 1.0,
    repeats: int = 1,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    **model_kwargs,
):
    """Draws after prompts that end with begin-of-image. Each row advances at its own pace.

    Args:
        input_ids: `(batch, sequence)`, padded on the left.
        window: number of places that a pass looks at; see [`choose_window`].
        repeats: number of drawings of each prompt. The prompt is read once.

    Returns:
        Token ids `(batch * repeats, sequence + num_codes + 1)`, or the output that `return_dict_in_generate` asks for.
    """
    config, cache, device = model.config, model_kwargs[CACHE], input_ids.device
    copies, collects = 1 if guidance == 1 else 2, generation_config.return_dict_in_generate
    asked = [name for name in ("scores", "logits") if collects and getattr(generation_config, f"output_{name}")]
    total, first, last = (
        config.num_codes,
        config.image_code_start_id,
        config.image_code_start_id + config.codebook_size,
    )
    codes_only = "logits" not in asked
    warpers = [processor for processor in logits_processor if isinstance(processor, WARPERS)]

    def run(fed, mask, positions, size: int, codes_only: bool = codes_only, **inputs) -> torch.Tensor:
        """The guided logits after the last `size` columns, `(batch, size, vocabulary or codes)`."""
        outputs = model(
            input_ids=fed,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=size,
            codes_only=codes_only,
            guidance_scale=guidance,
            return_dict=True,
            **inputs,
        )
        return outputs.logits.float()

    fed, mask = input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if copies == 2:  # the second half sees begin-of-image and nothing before it
        fed = torch.cat([fed, fed.masked_fill(fed == config.image_token_id, config.boi_token_id)])
        mask = torch.cat([mask, F.pad(torch.ones_like(mask[:, :1]), (mask.shape[1] - 1, 0))])
    logits = run(fed, mask, (mask.cumsum(1) - 1).clamp(min=0), 1, pixel_values=pixel_values)
    if repeats > 1:
        cache.batch_repeat_interleave(repeats)
        input_ids, mask, logits = (one.repeat_interleave(repeats, 0) for one in (input_ids, mask, logits))
    batch, prompt = input_ids.shape
    progress = Progress(mask, total, window or LONGEST, model.dtype)
    cache.layers[:] = [WindowLayer(layer, progress) for layer in cache.layers]

    noise = None
    if generation_config.do_sample:  # (batch, places, ...), made as one place at a time does it
        noise = torch.stack([make_noise(batch, last - first, device) for _ in range(total)], 1)
    sequences = torch.cat([input_ids, input_ids.new_full((batch, total + 1), config.eoi_token_id)], 1)
    collected = {name: logits.new_full((batch, total + 1, config.vocab_size), float("-inf")) for name in asked}
    rows = torch.arange(batch, device=device)  # those whose drawing is not complete
    done, guesses = input_ids.new_zeros(batch), input_ids.new_zeros(batch, 0)  # done: the certain codes of each row

    while True:
        size = logits.shape[1]
        places = torch.arange(size, device=device)
        values = logits if codes_only else logits[..., first:last]  # (rows, size, codes)
        scores = values.flatten(0, 1)
        for warper in warpers:
            scores = warper(None, scores)
        probabilities = None
        if noise is not None:
            probabilities = F.softmax(scores, -1)
            at = (done[:, None] + places).clamp(max=total - 1)
            choices = choose_tokens(probabilities, noise[rows[:, None], at].flatten(0, 1)).view(-1, size)
        else:
            choices = scores.argmax(-1).view(-1, size)
        choices = choices + first
        # The first choice is certain, and so is each that follows right guesses.
        agreed = 1 + (choices[:, :-1] == guesses).long().cumprod(1).sum(1)
        agreed = torch.minimum(agreed, total - done)
        certain = places < agreed[:, None]  # (rows, size)
        if probabilities is not None:
            require_numbers(probabilities[certain.flatten()])
        row, place = certain.nonzero(as_tuple=True)
        sequences[rows[row], prompt + done[row] + place] = choices[row, place]
        if "scores" in collected:
            collected["scores"][rows[row], done[row] + place, first:last] = scores.view_as(values)[row, place]
        if "logits" in collected:
            collected["logits"][rows[row], done[row] + place] = logits[row, place]
        done = done + agreed
        left = total - done
        most = int(left.max())
        if not most:
            break
        # Complete rows are left out, unless the caller wants the cache of all.
        if not (collects or left.all()):
            going = left.nonzero()[:, 0]
            progress.select(going, copies, cache)
            rows, done, agreed, choices = rows[going], done[going], agreed[going], choices[going]
        size = min(window or choose_window(len(rows) * copies, device), most)
        places = torch.arange(size, device=device)
        # A place that no pass has looked at yet gets the code before it.
        guesses = choices.gather(1, (agreed[:, None] + places[:-1]).clamp(max=choices.shape[1] - 1))
        fed = torch.cat([sequences[rows, prompt + done - 1, None], guesses], 1)
        logits = run(fed.repeat(copies, 1), *progress.advance(done - 1, size, copies), size)

    if not collects:
        return sequences
    # The cache holds the last code too. End-of-image is the only choice, but its logits may be asked for.
    fed = sequences[:, -2:-1].repeat(copies, 1)
    logits = run(fed, *progress.advance(done - 1, 1, copies), 1, codes_only=False)[:, 0]
    ends = {"scores": logits_processor(sequences[:, :-1], logits.clone()), "logits": logits}
    for name, values in collected.items():
        values[:, -1] = ends[name]
    for layer in cache.layers:
        layer.keys, layer.values = (states[:, :, : prompt + total] for states in (layer.keys, layer.values))
        layer.__class__ = transformers.DynamicLayer
    outputs = {name: values.unbind(1) for name, values in collected.items()}
    return GenerateDecoderOnlyOutput(sequences=sequences, **outputs, **{CACHE: cache})


class Progress:
    """Where the rows of a batch are. Layers of one cache share it.

    Args:
        mask: of the prompts, `(rows, prompt)`.
        num_codes: of a drawing.
        window: number of places that a pass looks at, at most.
        dtype: of the mask that attention gets.
    """

    columns: torch.Tensor  # (rows, size), to which a pass writes
    length: int  # number of columns there are after the pass
    together: bool  # whether all rows write to the last columns

    def __init__(self, mask: torch.Tensor, num_codes: int, window: int, dtype: torch.dtype):
        self.last_code, self.room = num_codes - 1, num_codes + window - 1
        self.prompt, self.hidden = mask.shape[1], torch.finfo(dtype).min
        self.begin = mask.sum(1, keepdim=True)  # the position of the first code
        # What is added to attention scores, (rows, 1, columns); later codes are hidden too.
        self.mask = F.pad((1 - mask.to(dtype)) * self.hidden, (0, self.room))[:, None]
        self.index = torch.arange(self.mask.shape[-1], device=mask.device)

    def advance(self, codes: torch.Tensor, size: int, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sets where the next pass writes: `size` columns of each row from its number of a code, `(rows,)`.

        Returns:
            The mask `(rows * copies, 1, size, columns)` and the positions `(rows * copies, size)`.
        """
        codes = codes[:, None] + self.index[:size]
        self.columns = (self.prompt + codes).repeat(copies, 1)
        lowest, highest = int(codes[:, -1].min()), int(codes[:, -1].max())
        self.together, self.length = lowest == highest, self.prompt + highest + 1
        later = self.index[: self.length] > self.columns[..., None]  # (rows, size, columns)
        mask = self.mask[..., : self.length].expand(-1, size, -1).masked_fill(later, self.hidden)
        # No position is beyond the last code, for decoders that have a vector for each.
        return mask[:, None], self.begin + codes.clamp(max=self.last_code).repeat(copies, 1)

    def select(self, rows: torch.Tensor, copies: int, cache: Cache) -> None:
        """Leaves out the other rows."""
        both = torch.cat([rows + i * (len(self.mask) // copies) for i in range(copies)])
        self.mask, self.begin = self.mask[both], self.begin[both]
        cache.batch_select_indices(both)


class WindowLayer(transformers.DynamicLayer):
    """Keys and values with room for a drawing, where each row writes to its own columns.

    The next pass overwrites those of wrong guesses.
    """

    def __init__(self, layer: transformers.DynamicLayer, progress: Progress):
        super().__init__()
        self.progress, self.device, self.dtype = progress, layer.keys.device, layer.keys.dtype
        self.keys, self.values = (F.pad(states, (0, 0, 0, progress.room)) for states in (layer.keys, layer.values))
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        length, size = self.progress.length, key_states.shape[2]
        if self.progress.together:
            self.keys[:, :, length - size : length] = key_states
            self.values[:, :, length - size : length] = value_states
        else:
            rows = torch.arange(len(key_states), device=key_states.device)[:, None]
            columns = self.progress.columns.to(key_states.device)
            self.keys[rows, :, columns] = key_states.transpose(1, 2)
            self.values[rows, :, columns] = value_states.transpose(1, 2)
        return self.keys[:, :, :length], self.values[:, :, :length]

    def get_seq_length(self) -> int:
        return self.progress.length


__all__ = ["can_draw_in_windows", "choose_window", "draw_in_windows", "sample_tokens"]
