"""Shows what a model says about held-out pictures, what it draws, and what it still knows, on one HTML page.

python examples/smol/make_page.py --model runs/smol/merged --output runs/smol/page.html
"""

import argparse
import base64
import json
from collections import Counter
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dps_hf
from dps_hf.evaluation.metrics import name_match
from dps_hf.files import write_whole


QUESTIONS = (
    "What is the capital of France?",
    "Which planet is known as the red planet?",
    "What is the opposite of cold?",
    "Write a sentence about the sea.",
    "Hello, who are you?",
)
STYLE = """
body { font-family: sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
img { width: 6rem; image-rendering: pixelated; border: 1px solid lightgrey; }
.right { color: green; } .wrong { color: firebrick; }
dt { font-weight: bold; margin-top: 0.6rem; } table { border-collapse: collapse; } td { padding: 0.1rem 0.8rem; }
"""


def embed(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def read_held_out(folder: Path, count: int) -> tuple[list[Image.Image], list[str]]:
    """Some of the captioned pictures of a folder, always the same ones."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    return [Image.open(folder / row["file_name"]).convert("RGB") for row in chosen], [row["text"] for row in chosen]


def write_figures(files: list[Path]) -> str:
    """The figures that `examples/evaluate.py` wrote, as a table."""
    rows = []
    for file in files:
        report = json.loads(file.read_text())
        for task in report["seconds"]:
            for name, figure in report[task].items():
                low, high = figure["ci95"]
                cells = (
                    file.stem,
                    f"{task}.{name}",
                    f"{figure['value']:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    figure["n"],
                )
                rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return f"<h2>Figures, 95 % intervals and numbers of items</h2><table>{''.join(rows)}</table>" if rows else ""


def compare_with_chance(names: Path, held_out: Path) -> str:
    """How often held-out pictures are named rightly, beside the name that is right most often if always given."""
    figure = json.loads(names.read_text())["questions"]["exact"]
    truths = [json.loads(line)["text"] for line in (held_out / "metadata.jsonl").read_text().splitlines()]
    chance = Counter(truths).most_common(1)[0][1] / len(truths)
    low, high = figure["ci95"]
    return (
        f"{figure['value']:.1%} of {figure['n']} held-out pictures are named rightly (95 % interval {low:.1%} to "
        f"{high:.1%}); the best answer that is always the same is right for {chance:.1%}."
    )


def main(
    model: str, held_out: Path, output: Path, figures: list[Path], question: str, names: int, drawings: int
) -> None:
    dps, processor = dps_hf.load(model)
    named_rightly = compare_with_chance(figures[0], held_out) if figures else ""
    print(named_rightly)
    pictures, truths = read_held_out(held_out, max(names, drawings))
    shown = pictures[:names]
    answers = dps_hf.ask(dps, processor, [question] * len(shown), shown, progress="names", max_new_tokens=24)
    named = ""
    for picture, truth, answer in zip(pictures, truths, answers):  # as many as there are answers
        kind = "right" if name_match(answer.text, truth) else "wrong"
        named += (
            f'<div>{embed(picture)}<br><b>{escape(truth)}</b><br><span class="{kind}">{escape(answer.text)}</span>'
        )
        named += "</div>"
    torch.manual_seed(0)
    drawn = dps_hf.draw(dps, processor, [f"Draw: {truth}" for truth in truths[:drawings]], progress="drawings")
    drew = ""
    for drawing, picture, truth in zip(drawn, pictures, truths):
        drew += f"<div>{embed(drawing)}{embed(picture)}<br><b>{escape(truth)}</b></div>"
    said = ""
    for asked, answer in zip(QUESTIONS, dps_hf.ask(dps, processor, QUESTIONS, progress="answers", max_new_tokens=48)):
        print(f"{asked} {answer.text}")
        said += f"<dt>{escape(asked)}</dt><dd>{escape(answer.text)}</dd>"
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(Path(model).name)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{escape(Path(model).name)}: held-out pictures, named and drawn</h1>
<p>{escape(named_rightly)}</p>{write_figures(figures)}
<h2>Named: the true name, and the answer to “{escape(question)}”</h2><div class="items">{named}</div>
<h2>Drawn from the name: the drawing, and the held-out picture</h2><div class="items">{drew}</div>
<h2>Asked without a picture</h2><dl>{said}</dl></html>
"""
    write_whole(output, page)
    print(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/smol/merged", help="folder of the model (default: %(default)s)")
    parser.add_argument("--held_out", type=Path, default="runs/smol/data/held_out", help="folder of pictures")
    parser.add_argument("--output", type=Path, default="runs/smol/page.html", help="the page (default: %(default)s)")
    parser.add_argument(
        "--figures", type=Path, nargs="*", default=[], help="files of examples/evaluate.py: first of names"
    )
    parser.add_argument("--question", default="What is this?", help="about each picture (default: %(default)s)")
    parser.add_argument("--names", type=int, default=36, help="how many pictures are named (default: %(default)s)")
    parser.add_argument("--drawings", type=int, default=12, help="how many are drawn (default: %(default)s)")
    main(**vars(parser.parse_args()))
