"""Draws with a served model, asks a question about the drawing, and prints the time for each.

python examples/serve/ask.py http://127.0.0.1:8080/v1
python examples/serve/ask.py http://127.0.0.1:8001/v1 --prompt "a small blue star" --guidance 1.5 --output star.png
"""

import argparse
import time
from pathlib import Path

from dps_hf import NANO
from dps_hf.command_line import show_errors
from dps_hf.serving.client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base_url")
    parser.add_argument("--checkpoint", default=NANO, help="checkpoint of the served model, for its image tokenizer")
    parser.add_argument("--prompt", default="a big red heart")
    parser.add_argument("--question", default="Describe the picture.")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale of the drawing; 1 is off")
    parser.add_argument("--output", type=Path, default=Path("outputs/served.png"))
    arguments = parser.parse_args()

    client = Client(arguments.base_url, arguments.checkpoint)
    start = time.perf_counter()
    drawing = client.draw(arguments.prompt, guidance_scale=arguments.guidance)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(arguments.output)
    drawn = time.perf_counter()
    answer = client.ask(arguments.question, [drawing])
    print(f"{client.server}: {arguments.output} in {drawn - start:.1f} s")
    print(f"{arguments.question} {answer.text} ({time.perf_counter() - drawn:.1f} s)")


if __name__ == "__main__":
    with show_errors():
        main()
