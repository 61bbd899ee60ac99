"""The loss of packed rows."""

import math

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from dps_hf.model.loss_dps import SumOfNats
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.training.packing import make_attention_mask, takes_masks


def packed_loss(
    model: torch.nn.Module,
    bare: DPSForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    code_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of a [`~dps_hf.training.packing.PackingCollator`]'s batch. Logits are computed only for answers.

    It is the mean over the labels, each with its weight in `loss_weights`.

    Args:
        model: as the trainer wraps it.
        bare: the same model, unwrapped.
        code_smoothing: share of the target that goes from each digit of a code to each of its two neighbours. This is
            label smoothing (https://huggingface.co/papers/1512.00567, section 7) along the lattice of finite scalar
            quantisation. Codes that look alike are learned together, so a code can be drawn where training never
            showed it.

    Raises:
        ValueError: code_smoothing, and the head is sharded over several processes.
    """
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "position_ids", "pixel_values")}
    if takes_masks(bare):
        inputs["attention_mask"] = make_attention_mask(batch["examples"], batch["branches"], bare.dtype)
    elif "flash" in bare.model.language_model.config._attn_implementation:
        # Its kernels find records by their positions in one row only.
        batch = {name: value.view(1, -1) if value.dim() == 2 else value for name, value in batch.items()}
        inputs = {name: batch[name] for name in inputs}
    if not code_smoothing:
        # Within the model's own forward, where FSDP and ZeRO have gathered the weights.
        learned = {"labels": batch["labels"], "loss_weights": batch["loss_weights"]}
        return model(**inputs, **learned, skip_logits=True, use_cache=False).loss
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    outputs = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
    hidden, rows = outputs.hidden_states[-1][:, :-1], bare.get_output_embeddings().weight
    if isinstance(rows, DTensor) or hasattr(rows, "ds_id"):
        raise ValueError(
            "code_smoothing needs the whole head on each process, and FSDP or ZeRO-3 shards it. Set it to 0, or train "
            "with DDP or ZeRO-2."
        )
    if not torch.is_grad_enabled():
        rows = rows.detach()  # a parameter always asks for its gradient
    first, end = bare.config.image_code_start_id, bare.config.image_code_start_id + bare.config.codebook_size
    is_code = (labels >= first) & (labels < end)
    due = labels != -100
    total = SumOfNats.apply(hidden[due], rows, labels[due], weights[due])
    # The cross-entropy above has the code's own row as its target. This adds the difference to the smoothed target.
    codebooks = bare.config.image_tokenizer_geometry.levels
    parts = rows[first:end].split([math.prod(levels) for levels in codebooks])
    smoothed = [_smooth(part, levels, code_smoothing) for part, levels in zip(parts, codebooks, strict=True)]
    away = F.embedding(labels[is_code] - first, rows[first:end] - torch.cat(smoothed))
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
