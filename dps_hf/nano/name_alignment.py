"""A loss that gives names of one emoji in two languages similar text features."""

from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.nano import emoji


def name_alignment_loss(
    model: DPSForConditionalGeneration, processor: DPSProcessor, step: int, count: int = 64
) -> torch.Tensor:
    """Pulls the text features of an emoji's name in one language towards those of its name in another.

    This is InfoNCE: a symmetric cross-entropy over cosines at a temperature of 0.05 (CLIP,
    https://huggingface.co/papers/2103.00020, figure 3).

    Args:
        step: of the training. It chooses the names, so that a resumed run sees the same ones.
        count: number of emoji.

    Returns:
        The loss in nats, for [`~dps_hf.training.trainer.DPSTrainer`]'s `extra_loss`.
    """
    rng = np.random.default_rng([7, step])
    chosen = [_read_names()[i] for i in rng.choice(len(_read_names()), count, replace=False)]
    languages = list(emoji.QUESTIONS)
    ways = [rng.choice(len(languages), 2, replace=False) for _ in chosen]
    texts = [names[languages[way[side]]] for side in (0, 1) for names, way in zip(chosen, ways, strict=True)]
    inputs = processor(text=texts, padding=True, return_tensors="pt").to(model.device)
    processor.tokenizer.backend_tokenizer.no_padding()  # otherwise it would be saved as a tokenizer that always pads
    features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    one, other = F.normalize(features.float(), dim=-1).chunk(2)
    logits, target = one @ other.T / 0.05, torch.arange(count, device=model.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@cache
def _read_names() -> list[dict[str, str]]:
    """For each emoji of the training set, its name in each language."""
    return list({pair.codepoints: pair.names for pair in emoji.select_pairs("train")}.values())
