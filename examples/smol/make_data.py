"""Writes the data of the recipes as files that people have: folders of captioned pictures, and questions with answers.

python examples/smol/make_data.py --model runs/smol/parts --output runs/smol/data

It writes `train/` and `held_out/`, emoji as PNG files with a `metadata.jsonl`, and `text.jsonl`, which are plain
questions and what the model itself answers. Learning these answers keeps what the language model knows. Each emoji in
`held_out/` is in a style in which `train/` does not show it.
"""

import argparse
import json
import re
from pathlib import Path

import dps_hf
from dps_hf.files import write_whole
from dps_hf.nano import emoji


QUESTIONS = Path(__file__).parent / "questions.txt"
LENGTH = 48  # tokens of an answer
SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


def write_pictures(split: str, folder: Path, limit: int | None) -> None:
    """Writes the pictures of a split, and last the file that lists them."""
    pairs = emoji.select_pairs(split)[:limit]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for pair in pairs:
        name = f"{pair.codepoints}_{pair.style}.png"
        emoji.get_picture(pair).save(folder / name)
        rows.append({"file_name": name, "text": pair.names["en"]})
    write_lines(folder / "metadata.jsonl", rows)


def write_answers(model: str, file: Path, limit: int | None) -> None:
    """Writes the questions with the first sentence of what the model answers.

    Longer answers would take most of the time of a training that has other things to teach.
    """
    dps, processor = dps_hf.load(model)
    questions = QUESTIONS.read_text().splitlines()[:limit]
    answers = dps_hf.ask(dps, processor, questions, progress="answers", max_new_tokens=LENGTH)
    rows = [
        {"prompt": question, "completion": sentence[0]}
        for question, answer in zip(questions, answers, strict=True)
        if (sentence := SENTENCE.match(answer.text))  # else it was cut off before
    ]
    write_lines(file, rows)


def write_lines(file: Path, rows: list[dict]) -> None:
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} rows: {file}")


def main(model: str, output: Path, limit: int | None) -> None:
    write_pictures("train", output / "train", limit)
    write_pictures("validation", output / "held_out", limit)
    write_answers(model, output / "text.jsonl", limit)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/smol/parts", help="the model that answers (default: %(default)s)")
    parser.add_argument("--output", type=Path, default="runs/smol/data", help="folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="the number of rows of each, if not all")
    main(**vars(parser.parse_args()))
