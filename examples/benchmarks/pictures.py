"""Compares the image processor with that of Janus in transformers, and features of repeated pictures with others.

python examples/benchmarks/pictures.py
python examples/benchmarks/pictures.py --photographs 64 --side 384

The photographs are noise of 640 by 480 pixels. Janus' image processor uses torchvision where it is installed, and else
PIL; the report says which. DPS always uses PIL, so that pixels are the same on every machine.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from answering import make_models
from comparison import compare, write_report
from PIL import Image
from transformers import HfArgumentParser, JanusImageProcessor

from dps_hf.command_line import run_script
from dps_hf.model.image_processing_dps import DPSImageProcessor


@dataclass
class ScriptArguments:
    """
    photographs: in a batch.
    side: of the square that the image processors make, in pixels.
    """

    output: Path = Path("outputs/benchmarks/pictures.json")
    rounds: int = 5
    photographs: int = 16
    side: int = 224


def main(script: ScriptArguments) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(script.photographs)]
    settings = {"size": {"height": script.side, "width": script.side}, "min_size": 1}
    janus = JanusImageProcessor(**settings, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    comparisons = []
    for kind, pictures in (("PIL", [Image.fromarray(one) for one in arrays]), ("arrays", arrays)):
        for fit in ("pad-grey", "crop"):
            ours = DPSImageProcessor(**settings, fit=fit)
            comparisons.append(
                compare(
                    f"{len(pictures)} photographs from {kind}, {fit}",
                    lambda ours=ours, pictures=pictures: ours(pictures, return_tensors="pt"),
                    lambda pictures=pictures: janus(pictures, return_tensors="pt"),
                    script.rounds,
                    goal=1.0,
                    peer_name=f"Janus' image processor on {janus.backend}",
                )
            )
    model = make_models(layers=1, dtype=torch.float32)[0]
    side = model.config.vision_config.image_size
    different = torch.rand(script.photographs, 3, side, side) * 2 - 1
    repeated = different[:1].repeat(script.photographs, 1, 1, 1)
    with torch.no_grad():
        comparisons.append(
            compare(
                f"features of one picture {script.photographs} times",
                lambda: model.get_image_features(repeated),
                lambda: model.get_image_features(different),
                script.rounds,
                peer_name="different pictures",
            )
        )
    write_report(script.output, comparisons, side=script.side, janus=janus.backend)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
