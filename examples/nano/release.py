"""Writes a trained DPS as a checkpoint to ship: half the bytes, its code, its card.

python examples/release_nano.py --model runs/nano --output dps_hf/checkpoints/dps-nano
python examples/release_nano.py --output dps_hf/checkpoints/dps-nano    # the card, once the checkpoint is scored

The weights are stored in float16, those of the image tokenizer in bfloat16 where they are such numbers anyhow and else as they
are, and loaded in float32: the file is half as large, and nothing computes in half precision on a CPU that cannot.
`make evaluate` scores the checkpoint and fills its card.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from trl import TrlParser

import dps_hf  # noqa: F401  registers DPS with the Auto classes
from dps_hf.hub.cards import model_card
from dps_hf.inference import load, weights_digest


@dataclass
class ScriptArguments:
    """
    model: directory of the trained model; left out, the weights stay as they are, and the card is written.
    output: directory of the checkpoint.
    results: figures for the card; the card is left out where they are missing.
    drawings, curves: pictures for the card.
    """

    output: str
    model: str | None = None
    results: str = "model_cards/results/dps-nano.json"
    drawings: str = "model_cards/results/dps-nano.png"
    curves: str = "model_cards/results/curves.png"


def write_card(script: ScriptArguments) -> None:
    """
    Raises:
        ValueError: the figures are of other weights.
    """
    scored = json.loads(Path(script.results).read_text())["recipe"]["weights"]
    if scored != (held := weights_digest(load(script.output)[0])):
        raise ValueError(f"{script.results} is of weights {scored}, {script.output} holds {held}. Score them first.")
    model_card("model_cards/dps-nano.md", "dps_hf/checkpoints/dps-nano", script.results).save(
        Path(script.output, "README.md")
    )
    shutil.copy(script.drawings, Path(script.output, "drawings.png"))
    shutil.copy(script.curves, Path(script.output, "curves.png"))


def main(script: ScriptArguments) -> None:
    if script.model:
        model = AutoModelForMultimodalLM.from_pretrained(script.model, dtype=torch.float16)
        weights = model.model.image_tokenizer.state_dict().values()
        if all(weight.equal(weight.bfloat16().to(weight)) for weight in weights):
            model.model.image_tokenizer.bfloat16()
        model.save_pretrained(script.output)
        config = model.config
        for part in (config, config.text_config, config.vision_config, config.image_tokenizer_config):
            part.dtype, part._name_or_path = torch.float32, ""  # no path of this machine
        config.save_pretrained(script.output)
        AutoProcessor.from_pretrained(script.model).save_pretrained(script.output)
    elif Path(script.results).exists():
        write_card(script)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
