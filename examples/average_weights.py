"""Averages the weights of models that one model was trained further to: often better than each of them, and no larger.

python examples/average_weights.py --models runs/seed-0 runs/seed-1 dps_hf/checkpoints/dps-nano --output runs/averaged
python examples/average_weights.py --models runs/mine dps_hf/checkpoints/dps-nano --shares 1 3 --output runs/averaged

What training forgot comes back in part, and what each run learned stays in part (Model soups, arXiv 2203.05482; between
a model and its fine-tuned self: WiSE-FT, arXiv 2109.01903). Models that were trained from nothing have no average.
What goes on with another image tokenizer may be averaged with what it was before: image tokenizer and embeddings of codes are the
first model's then.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from trl import TrlParser

from dps_hf.components import same_image_tokenizer
from dps_hf.inference import load, weights_digest
from dps_hf.model.modeling_dps import DPSForConditionalGeneration


@dataclass
class ScriptArguments:
    """
    models: directories of two models or more, of one architecture; processor and generation config are the first one's.
    output: directory of the average.
    shares: weight of each in the average, in any unit; left out, all are alike.
    """

    models: list[str]
    output: str
    shares: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.shares = self.shares or [1.0] * len(self.models)
        if len(self.models) < 2:
            raise ValueError(f"models must be two or more; got {len(self.models)}.")
        if len(self.shares) != len(self.models):
            raise ValueError(f"shares must be as many as models, {len(self.models)}; got {len(self.shares)}.")
        if min(self.shares) < 0 or not sum(self.shares):
            raise ValueError(f"shares must not be negative, nor all 0; got {self.shares}.")


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, in float32: each once, where `state_dict` holds tied ones twice."""
    return dict(model.float().named_parameters())


def keep_codes(weights: dict[str, torch.Tensor], own: DPSForConditionalGeneration) -> None:
    """Puts a model's own image tokenizer and embeddings of codes in place of others, in which a code is another picture."""
    start = cast(int, own.config.image_code_start_id)
    codes = slice(start, start + own.config.codebook_size)
    tables = {id(table.weight) for table in (own.get_input_embeddings(), own.get_output_embeddings())}
    for name in [name for name in weights if ".image_tokenizer." in name]:
        del weights[name]
    for name, weight in tensors(own).items():
        if ".image_tokenizer." in name:
            weights[name] = weight
        elif id(weight) in tables and name in weights and weights[name].shape == weight.shape:
            weights[name][codes] = weight[codes]


@torch.no_grad()
def main(script: ScriptArguments) -> None:
    first, *others = script.models
    model, processor = load(first)
    average, total = tensors(model), script.shares[0]
    for path, share in zip(others, script.shares[1:]):
        other = load(path)[0]
        weights = tensors(other)
        if not same_image_tokenizer(model.model.image_tokenizer, other.model.image_tokenizer):
            keep_codes(weights, model)
        shapes, expected = ({name: tuple(w.shape) for name, w in held.items()} for held in (weights, average))
        if shapes != expected:
            name = min(name for name, _ in shapes.items() ^ expected.items())
            raise ValueError(
                f"Models must be of one architecture: {name} is {expected.get(name)} in {first} and {shapes.get(name)} "
                f"in {path}."
            )
        if share:
            total += share
            for name, weight in average.items():
                weight.lerp_(weights[name], share / total)  # what all models have alike stays exactly as it is
    model.save_pretrained(script.output)
    processor.save_pretrained(script.output)
    print(f"{len(script.models)} models, averaged to weights {weights_digest(model)} in {script.output}")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
