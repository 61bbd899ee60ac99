"""Scores a DPS on held-out scenes and emoji: drawing, editing, reading in 12 languages, reasoning, knowing.

python examples/evaluate.py --output outputs/shipped.json --temperature 0 --guidance 1.5
python examples/evaluate.py --model runs/nano --output outputs/nano.json --items 100 --tasks scenes_t2i emoji_t2i

Finished tasks are kept in the output: stopped at any moment, the same command goes on with the next task, unless it says
`--fresh`. Every figure says from how many items it comes, and within which limits the true value lies with 95 % confidence.
The first command samples as the card of dps-nano says; without these two options drawings are sampled as the model's
generation config has it.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import GenerationConfig, HfArgumentParser

from dps_hf import NANO
from dps_hf.contact_sheet import Item, Section, page, writable
from dps_hf.files import write_whole
from dps_hf.inference import load, weights_digest
from dps_hf.nano import emoji
from dps_hf.nano.evaluation import FORMS, TASKS, Subject, emoji_prompt
from dps_hf.nano.scenes import render
from dps_hf.nano.scenes_edit import edit


@dataclass
class ScriptArguments:
    """
    model: folder or name of the model.
    output: where the figures go, as JSON.
    sheet: where a page of drawings for a person to look at goes; by default beside the figures, as PNG.
    items: how many items a figure comes from, where there are as many.
    tasks: all where left out.
    guidance, temperature, top_k: of the drawings, by default as the model's generation config says; temperature 0 is greedy.
    fresh: scores anew what the output holds already.
    """

    model: str = NANO
    output: Path = Path("model_cards/results/dps-nano.json")
    sheet: Path | None = None
    items: int = 500
    tasks: list[str] | None = field(default=None, metadata={"choices": list(TASKS), "metavar": "TASK"})
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    batch_size: int = 48
    seed: int = 0
    fresh: bool = False


def sampling(script: ScriptArguments, config: GenerationConfig) -> dict:
    """How drawings are made, in full: what nobody says is written out, so that a later default changes no figure."""
    given = {"guidance_scale": script.guidance, "temperature": script.temperature, "top_k": script.top_k}
    chosen = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the library's defaults
    chosen |= {name: getattr(config, name) for name in chosen if getattr(config, name) is not None}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if chosen["temperature"] == 0:
        return {"guidance_scale": chosen["guidance_scale"], "do_sample": False}
    return {**chosen, "do_sample": True}


def recipe(subject: Subject) -> dict:
    """Everything that the figures depend on."""
    return {
        "weights": weights_digest(subject.model),
        "items": subject.items,
        "seed": subject.seed,
        "batch_size": subject.batch_size,
        **subject.sampling,
        "answers": "greedy",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def sheet(subject: Subject) -> Image.Image:
    """Drawings for a person to look at: scenes, edits, and emoji beside the art that was held out."""
    prompts = [prompt for name in FORMS for prompt in writable(subject.held_out_prompts(name, 24), 8)]
    drawn_scenes = [Item([drawing], [prompt]) for drawing, prompt in zip(subject.draw(prompts), prompts)]

    rng = subject.rng("sheet")
    before, instructions, _ = zip(*(edit(rng, "validation") for _ in range(8)))
    pictures = [render(scene) for scene in before]
    edits = zip(pictures, subject.draw(instructions, pictures, think=True), instructions)

    pairs = subject.held_out_emoji(12)
    drawings = subject.draw([emoji_prompt(pair) for pair in pairs])
    drawn_emoji = [
        Item([drawing, emoji.picture(pair)], [emoji_prompt(pair)]) for drawing, pair in zip(drawings, pairs)
    ]
    return page(
        [
            Section("Scenes that training never heard of", drawn_scenes, columns=8),
            Section(
                "Before and after an edit, thinking first",
                [Item([picture, drawing], [instruction]) for picture, drawing, instruction in edits],
                columns=4,
            ),
            Section("Emoji: left drawn, right the art that training never showed", drawn_emoji, columns=4),
        ]
    )


def print_table(report: dict) -> None:
    print(f"\n{'':36}{'value':>8}   95 % interval     n")
    for task in [task for task in TASKS if task in report]:
        for name, figure in report[task].items():
            low, high = figure["ci95"]
            print(f"{f'{task}.{name}':36}{figure['value']:8.3f}  {low:7.3f} {high:7.3f} {figure['n']:5}")


def main(script: ScriptArguments) -> None:
    if script.items < 1:
        raise ValueError(f"items must be 1 or more; got {script.items}.")
    # Model
    model, processor = load(script.model)
    subject = Subject(
        model, processor, script.items, script.seed, sampling(script, model.generation_config), script.batch_size
    )

    # Tasks
    made_by = recipe(subject)
    report = {"model": Path(script.model).name, "parameters": model.num_parameters(), "recipe": made_by, "seconds": {}}
    if script.output.exists() and (script.tasks or not script.fresh):
        report = json.loads(script.output.read_text())
        if changed := [name for name in made_by if report["recipe"].get(name) != made_by[name]]:
            sys.exit(
                f"{script.output} holds figures of other {', '.join(changed)}: give --fresh and no --tasks, or another "
                "--output."
            )
        for name in script.tasks if script.fresh else ():
            report.pop(name, None)
    # Tasks added later, new ones say, leave alone what scored all others.
    if not script.tasks or "command" not in report:
        report["command"] = shlex.join(["python", *sys.argv])
    script.output.parent.mkdir(parents=True, exist_ok=True)
    for name in [task for task in script.tasks or TASKS if task not in report]:
        print(name)
        start = time.perf_counter()
        report[name] = TASKS[name](subject)
        report["seconds"][name] = round(time.perf_counter() - start, 1)
        write_whole(script.output, json.dumps(report, indent=2) + "\n")
    sheet_path = script.sheet or script.output.with_suffix(".png")
    if script.fresh or not sheet_path.exists():
        sheet(subject).save(sheet_path)

    print_table(report)
    print(f"\nFigures: {script.output}\nDrawings: {sheet_path}")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
