"""Shows what dps-nano can do, offline, on a page of pictures.

python examples/nano/demo.py
python examples/nano/demo.py --image cat.png
python examples/nano/demo.py --prompt "a big red heart and two small blue stars"
python examples/nano/demo.py --prompt "hedgehog, noto style"
"""

import base64
import re
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import jinja2
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from dps_hf import NANO
from dps_hf.contact_sheet import Item, Section, draw_page
from dps_hf.data.record import pick
from dps_hf.evaluation.metrics import name_match
from dps_hf.inference import ask, draw, load
from dps_hf.model.image_processing_dps import open_picture
from dps_hf.nano import emoji
from dps_hf.nano.evaluation import EMOJI_GUIDANCE
from dps_hf.nano.questions import ask as ask_about
from dps_hf.nano.scenes import render, sample_split


SCENES = (
    "a big red heart",
    "a small orange star",
    "a small blue circle and a big yellow star",
    "two big green triangles",
    "a black cross and an orange circle",
    "a pink heart, a blue star and a green square",
)
HTML = """\
<!doctype html>
<meta charset="utf-8">
<title>dps-nano</title>
<style>
  body { font: 15px/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
         color: #222; background: #fff; }
  section { display: flex; flex-wrap: wrap; gap: 1.2rem; }
  figure { margin: 0; width: min-content; min-width: 16rem; }
  img { width: 7.8rem; border: 1px solid #ccc; }
  figcaption div { unicode-bidi: plaintext; }
</style>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<section>
  {% for item in section.items %}
  <figure>
    {% for picture in item.pictures %}<img alt="" src="data:image/png;base64,{{ base64(picture) }}">{% endfor %}
    <figcaption>{% for line in item.lines %}<div>{{ line }}</div>{% endfor %}</figcaption>
  </figure>
  {% endfor %}
</section>
{% endfor %}
"""


@dataclass
class ScriptArguments:
    """
    image: a picture to name and to describe.
    prompt: what to draw, four times. With `image` or `prompt` the demo does nothing else.
    output: folder for the pictures, `page.png`, `page.html` and `answers.txt`.
    """

    image: str = ""
    prompt: str = ""
    model: str = NANO
    output: Path = Path("outputs/demo")
    seed: int = 0


def describe_picture(model, processor, picture: Image.Image) -> Section:
    questions = ["What is this?", "Describe the picture.", "What do you see?"]
    answers = ask(model, processor, questions, [picture] * len(questions))
    seen = ImageOps.pad(picture, (64, 64), color="grey")
    lines = [f"{question} {answer.text}" for question, answer in zip(questions, answers)]
    return Section("Your picture, as dps-nano sees it", [Item([seen], lines)], columns=2)


def draw_prompt(model, processor, prompt: str) -> Section:
    drawings = draw(model, processor, [prompt], num_return_sequences=4)
    return Section("Your words, drawn four times", [Item([drawing], [prompt]) for drawing in drawings], columns=4)


def draw_scenes(model, processor) -> Section:
    drawings = draw(model, processor, SCENES)
    return Section("Drawn from words", [Item([drawing], [prompt]) for drawing, prompt in zip(drawings, SCENES)])


def draw_emoji(model, processor, rng: np.random.Generator) -> Section:
    """One emoji of each style."""
    held_out = [emoji.pairs("validation")[i] for i in rng.permutation(len(emoji.pairs("validation")))]
    chosen = [next(pair for pair in held_out if pair.style == style) for style in emoji.STYLES]
    prompts = [f"{pair.names['en']}, {emoji.STYLES[pair.style]} style" for pair in chosen]
    drawings = draw(model, processor, prompts, guidance_scale=EMOJI_GUIDANCE)
    items = [
        Item([drawing, emoji.picture(pair)], [prompt]) for drawing, prompt, pair in zip(drawings, prompts, chosen)
    ]
    return Section("Emoji, drawn; beside each drawing the original, which training never showed", items, columns=3)


def name_emoji(model, processor, rng: np.random.Generator) -> Section:
    pairs = [pick(rng, emoji.pairs("validation")) for _ in range(8)]
    questions = [asked[0] for asked in emoji.QUESTIONS.values()] * len(pairs)
    pictures = [emoji.picture(pair) for pair in pairs for _ in emoji.QUESTIONS]
    answers = iter(ask(model, processor, questions, pictures, think=True))
    items = []
    for pair in pairs:
        lines = []
        for (language, truth), answer in zip(pair.names.items(), answers):
            verdict = "right" if name_match(answer.text, truth) else f"it is: {truth}"
            lines.append(f"{language}: {answer.text} ({verdict})")
        items.append(Item([emoji.picture(pair)], lines))
    return Section("Emoji in a style that training never showed, named in 12 languages", items, columns=4)


def answer_questions(model, processor, rng: np.random.Generator) -> Section:
    held_out = [sample_split(rng, "validation", count) for count in (2, 3, 3, 4, 4, 4)]
    questions, _, truths, _ = zip(*(ask_about(rng, scene) for scene in held_out))
    pictures = [render(scene) for scene in held_out]
    answers = ask(model, processor, questions, pictures, think=True)
    items = [
        Item(
            [picture],
            [f"Question: {question}", f"Thinking: {answer.thinking}", f"Answer: {answer.text} (it is: {truth})"],
        )
        for picture, question, answer, truth in zip(pictures, questions, answers, truths)
    ]
    return Section("Questions about scenes that training never showed", items, columns=3)


def write(sections: list[Section], folder: Path) -> None:
    """Numbers all items and writes them as pictures, a page of pictures, a page for a browser, and text."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = folder / "answers.txt"
    if answers.exists():  # what an earlier run wrote, and nothing else that may lie there
        for old in re.findall(r"^\d\d\.png$", answers.read_text(encoding="utf-8"), re.MULTILINE):
            (folder / old).unlink(missing_ok=True)
    number, numbered, text = 0, [], []
    for section in sections:
        items = []
        text.append(f"\n{section.title}\n")
        for item in section.items:
            number += 1
            item.pictures[0].save(folder / f"{number:02}.png")
            items.append(Item(item.pictures, [f"no. {number}", *item.lines]))
            text.append("\n    ".join([f"{number:02}.png", *item.lines]))
        numbered.append(Section(section.title, items, section.columns))
    answers.write_text("\n".join(text).strip() + "\n", encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(HTML)
    (folder / "page.html").write_text(template.render(sections=numbered, base64=_base64), encoding="utf-8")
    draw_page(numbered).save(folder / "page.png")


def _base64(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def main(script: ScriptArguments) -> None:
    disable_progress_bar()
    try:
        picture = open_picture(script.image) if script.image else None
        if picture is not None:
            picture.thumbnail((1024, 1024))  # it is looked at more than once, and may have had 100 megapixels
    except ValueError as error:
        sys.exit(str(error))
    print("Loading the model ...")
    model, processor = load(script.model)
    torch.manual_seed(script.seed)
    rng = np.random.default_rng(script.seed)
    sections = []
    if picture is not None:
        print("Looking at your picture ...")
        sections.append(describe_picture(model, processor, picture))
    if script.prompt:
        print("Drawing your words ...")
        try:
            sections.append(draw_prompt(model, processor, script.prompt))
        except ValueError as error:  # words that are tokens of the model, such as <image>
            sys.exit(str(error))
    if not sections:
        print("Drawing scenes ...")
        sections.append(draw_scenes(model, processor))
        print("Drawing emoji ...")
        sections.append(draw_emoji(model, processor, rng))
        print("Naming emoji in 12 languages ...")
        sections.append(name_emoji(model, processor, rng))
        print("Thinking about questions ...")
        sections.append(answer_questions(model, processor, rng))
    write(sections, script.output)
    for section in sections if script.image or script.prompt else sections[-1:]:
        print("", *dict.fromkeys("\n".join(item.lines) for item in section.items), sep="\n")
    page_path = script.output / "page"
    answers = script.output / "answers.txt"
    print(f"\nEverything on one page: {page_path}.png; names in other scripts: {page_path}.html; as text: {answers}")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
