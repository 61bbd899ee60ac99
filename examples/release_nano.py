"""Writes a trained DPS as a checkpoint to ship: half the bytes, its code, its card.

python examples/release_nano.py --model runs/nano --output dps_hf/checkpoints/dps-nano
python examples/release_nano.py --output dps_hf/checkpoints/dps-nano    # the card alone

The weights are stored in float16 and loaded in float32: the file is half as large, and nothing computes in half
precision on a CPU that cannot. The card is filled with the figures that `examples/evaluate.py` wrote.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from trl import TrlParser

import dps_hf  # noqa: F401  registers DPS with the Auto classes


@dataclass
class ScriptArguments:
    """
    model: directory of the trained model; left out, the weights stay as they are.
    output: directory of the checkpoint.
    results: figures for the card; the card is left out where they are missing.
    drawings: picture for the card.
    """

    output: str
    model: str | None = None
    results: str = "model_cards/results/dps-nano.json"
    drawings: str = "model_cards/results/dps-nano.png"


def flatten(results: dict, prefix: str = "") -> dict[str, dict]:
    """Nested figures to `{"scenes_t2i.one_object": {"value": ..., "n": ..., "ci95": ...}}`."""
    figures = {}
    for key, value in results.items():
        if isinstance(value, dict) and "value" in value:
            figures[prefix + key] = value
        elif isinstance(value, dict):
            figures |= flatten(value, f"{prefix}{key}.")
    return figures


def table(results: dict) -> str:
    rows = ["| figure | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, figure in flatten(results).items():
        low, high = figure.get("ci95") or (None, None)
        interval = f"{low:.3g} – {high:.3g}" if low is not None else ""
        rows.append(f"| `{name}` | {figure['value']:.3g} | {interval} | {figure['n']} |")
    return "\n".join(rows)


def write_card(script: ScriptArguments) -> None:
    results = json.loads(Path(script.results).read_text())
    card = Template(Path("model_cards/dps-nano.md").read_text()).substitute(
        parameters=f"{results['parameters'] / 1e6:.1f} million",
        command=results["command"],
        recipe=", ".join(f"{name} {value}" for name, value in results["recipe"].items()),
        table=table(results),
    )
    Path(script.output, "README.md").write_text(card)
    shutil.copy(script.drawings, Path(script.output, "drawings.png"))


def main(script: ScriptArguments) -> None:
    if script.model:
        model = AutoModelForMultimodalLM.from_pretrained(script.model, dtype=torch.float16)
        model.save_pretrained(script.output)
        config = model.config
        for part in (config, config.text_config, config.vision_config, config.image_tokenizer_config):
            part.dtype = torch.float32
        config.save_pretrained(script.output)
        AutoProcessor.from_pretrained(script.model).save_pretrained(script.output)
    if Path(script.results).exists():
        write_card(script)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
