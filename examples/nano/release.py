"""Writes a trained DPS as the checkpoint that the package ships: weights of half the size, their code, and the card.

python examples/nano/release.py --model runs/nano --output dps_hf/checkpoints/dps-nano
python examples/nano/release.py --output dps_hf/checkpoints/dps-nano    # the card, once the checkpoint is measured

The weights are stored in float16, and loaded in float32 because some CPUs cannot compute in half precision. Those of
the image tokenizer are stored in bfloat16 if that loses nothing, and otherwise unchanged. `make evaluate` measures the
checkpoint and fills its card.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from trl import TrlParser

import dps_hf  # noqa: F401  registers DPS with the Auto classes
from dps_hf.command_line import run_script
from dps_hf.inference import digest_weights, load
from dps_hf.nano.card import make_card


@dataclass
class ScriptArguments:
    """
    output: folder of the checkpoint.
    model: folder of the trained model. Without it, the weights stay as they are, and the card is written.
    results: figures for the card; without them no card is written.
    drawings: picture for the card.
    """

    output: str
    model: str | None = None
    results: str = "model_cards/results/dps-nano.json"
    drawings: str = "model_cards/results/dps-nano.png"


def write_card(script: ScriptArguments) -> None:
    """
    Raises:
        ValueError: the figures are of other weights.
    """
    scored = json.loads(Path(script.results).read_text())["recipe"]["weights"]
    if scored != (held := digest_weights(load(script.output)[0])):
        raise ValueError(f"{script.results} is of weights {scored}, {script.output} holds {held}. Measure them first.")
    make_card("model_cards/dps-nano.md", script.results).save(Path(script.output, "README.md"))
    shutil.copy(script.drawings, Path(script.output, "drawings.png"))


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
    run_script(main, TrlParser((ScriptArguments,)))
