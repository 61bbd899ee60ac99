"""The loss of packed rows."""

import math

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.training.packing import make_attention_mask, takes_masks


BLOCK = 256  # answers whose logits are computed at a time on a CPU, to stay in its cache
LARGE_BLOCK = 16_384  # the same on other devices


def packed_loss(
    model: torch.nn.Module,
    bare: DPSForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    codes_alone: bool,
    code_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of a [`~dps_hf.training.packing.PackingCollator`]'s batch. Logits are computed only for answers.

    It is the mean over the labels, each with its weight in `loss_weights`.

    Args:
        model: as the trainer wraps it.
        bare: the same model, unwrapped.
        codes_alone: whether image codes compete only with image codes, and text tokens only with text tokens.
        code_smoothing: share of the target that goes from each digit of a code to each of its two neighbours. This is
            label smoothing (https://huggingface.co/papers/1512.00567, section 7) along the lattice of finite scalar
            quantisation. Codes that look alike are learned together, so a code can be drawn where training never
            showed it.

    Raises:
        ValueError: the head is sharded over several processes.
    """
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "position_ids", "pixel_values")}
    if takes_masks(bare):
        inputs["attention_mask"] = make_attention_mask(batch["examples"], batch["branches"], bare.dtype)
    elif "flash" in bare.model.language_model.config._attn_implementation:
        # Its kernels find records by their positions in one row only.
        batch = {name: value.view(1, -1) if value.dim() == 2 else value for name, value in batch.items()}
        inputs = {name: batch[name] for name in inputs}
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    outputs = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
    hidden, rows = outputs.hidden_states[-1][:, :-1], bare.get_output_embeddings().weight
    if isinstance(rows, DTensor) or hasattr(rows, "ds_id"):
        raise ValueError(
            "The packed loss needs the whole head on each process, and FSDP or ZeRO-3 shards it. Set packing to "
            "false, or train with DDP or ZeRO-2."
        )
    if not torch.is_grad_enabled():
        rows = rows.detach()  # a parameter always asks for its gradient
    first, end = bare.config.image_code_start_id, bare.config.image_code_start_id + bare.config.codebook_size
    is_code = (labels >= first) & (labels < end)
    due = labels != -100
    if not codes_alone:
        total = _NatsOfAnswers.apply(hidden[due], rows, labels[due], weights[due])
    else:
        is_text = due & ~is_code
        text = torch.where(
            labels >= end, labels - bare.config.codebook_size, labels
        )  # tokens may have been added after the codes
        others = torch.cat([rows[:first], rows[end:]])
        total = _NatsOfAnswers.apply(hidden[is_code], rows[first:end], labels[is_code] - first, weights[is_code])
        total = total + _NatsOfAnswers.apply(hidden[is_text], others, text[is_text], weights[is_text])
    if code_smoothing:
        # The cross-entropy above has the code's own row as its target. This adds the difference to the smoothed
        # target.
        codebooks = bare.config.image_tokenizer_geometry.levels
        parts = rows[first:end].split([math.prod(levels) for levels in codebooks])
        smoothed = [_smooth(part, levels, code_smoothing) for part, levels in zip(parts, codebooks, strict=True)]
        away = rows[first:end] - torch.cat(smoothed)
        away = F.embedding(labels[is_code] - first, away)
        total = total + ((hidden[is_code] * away).sum(-1) * weights[is_code]).sum()
    return total / weights.sum()


def _smooth(rows: torch.Tensor, levels: list[int], share: float) -> torch.Tensor:
    """Each code's row, averaged with the rows of its neighbours. At the ends of a digit a code is its own neighbour.

    Shapes:
        rows, returns: `(codes, hidden_size)`, in the numbering of [`FiniteScalarQuantizer`]
    """
    table = rows.view(*reversed(levels), -1)
    for axis, count in enumerate(reversed(levels)):
        index = torch.arange(count, device=rows.device)
        below = table.index_select(axis, (index - 1).clamp(min=0))
        above = table.index_select(axis, (index + 1).clamp(max=count - 1))
        table = (1 - 2 * share) * table + share * (below + above)
    return table.flatten(0, -2)


class _NatsOfAnswers(torch.autograd.Function):
    """Weighted sum of the cross-entropies of `labels`, `(tokens,)`, for the logits `hidden @ rows.T`.

    On two cores in bfloat16 this takes about half the time of the separate operations. Each block of float32 logits is
    turned into its gradient while it is in the processor's cache, and only that gradient is kept, in the precision of
    the matrix products (after Cut Your Losses, https://huggingface.co/papers/2411.09009).
    """

    @staticmethod
    def forward(ctx, hidden, rows, labels, weights):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.dtypes = hidden.dtype, rows.dtype
        hidden, rows = hidden.to(dtype), rows.to(dtype)
        total = weights.new_zeros(())
        learns = any(ctx.needs_input_grad)
        of_hidden, of_logits = torch.empty_like(hidden), hidden.new_empty(len(hidden) * learns, len(rows))
        size = BLOCK if kind == "cpu" else LARGE_BLOCK
        for start in range(0, len(hidden), size):
            block = slice(start, start + size)
            label, weight = labels[block, None], weights[block, None]
            logits = (hidden[block] @ rows.T).float()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, label)
            odds = logits.exp_()
            sums = odds.sum(1, keepdim=True)
            total += ((sums.log() - right) * weight).sum()
            if learns:
                of_logits[block] = odds.mul_(weight / sums).scatter_add_(1, label, -weight)
                of_hidden[block] = of_logits[block] @ rows
        if learns:
            ctx.save_for_backward(of_hidden, of_logits.T @ hidden)
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_rows = ctx.saved_tensors
        of_hidden, of_rows = (g.to(d) * gradient for g, d in zip((of_hidden, of_rows), ctx.dtypes, strict=True))
        return of_hidden, of_rows, None, None
