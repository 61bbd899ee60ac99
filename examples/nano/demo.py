"""Shows what dps-nano can do, offline, on a page of pictures.

python examples/nano/demo.py
python examples/nano/demo.py --image picture.png
python examples/nano/demo.py --image picture.png --prompt "How many circles are there?"
python examples/nano/demo.py --prompt "a big red heart and two small blue stars"
python examples/nano/demo.py --prompt "hedgehog, noto style"
"""

import base64
import re
import sys
from collections import Counter
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
from dps_hf.command_line import run_script
from dps_hf.contact_sheet import MARKS, Item, Section, draw_page
from dps_hf.data.record import pick
from dps_hf.evaluation.metrics import name_match
from dps_hf.inference import Answer, ask, draw, load
from dps_hf.model.image_processing_dps import open_picture
from dps_hf.nano import emoji
from dps_hf.nano.evaluation import EMOJI_GUIDANCE
from dps_hf.nano.questions import ask as ask_about
from dps_hf.nano.scenes import render, sample_split
from dps_hf.nano.sheets import check_drawings


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
    {% for picture in item.pictures %}<img alt="" src="data:image/png;base64,{{ encode_png(picture) }}">{% endfor %}
    <figcaption>{% for line in item.lines %}<div>{{ line }}</div>{% endfor %}
    {% if item.right is not none %}{% set word, colour = marks[item.right] %}
    <div style="color: {{ colour }}">{{ word }}</div>{% endif %}
    </figcaption>
  </figure>
  {% endfor %}
</section>
{% endfor %}
"""


@dataclass
class ScriptArguments:
    """
    image: a picture to name and to describe, or to answer `prompt` about.
    prompt: what to draw, four times; with `image`, a question about the picture. With `image` or `prompt` the demo
        does nothing else.
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
    lines = [line for q, answer in zip(questions, answers) for line in write_answer(processor, q, answer)]
    return Section("Your picture, as dps-nano sees it", [Item([pad_picture(picture)], lines)], columns=2)


def answer_question(model, processor, picture: Image.Image, question: str) -> Section:
    [answer] = ask(model, processor, [question], [picture], think=True)
    lines = write_answer(processor, question, answer)
    return Section("Your question about your picture", [Item([pad_picture(picture)], lines)], columns=2)


def write_answer(processor, question: str, answer: Answer, truth: str = "") -> list[str]:
    """Writes question, thoughts and answer on lines of their own."""
    more, text = processor.split_thinking(answer.text)  # the model may end its thoughts more than once
    thinking = " ".join(filter(None, (answer.thinking, more)))
    lines = [f"Question: {question}", f"Thinking: {thinking}", f"Answer: {text or '(none)'}"]
    if truth:
        lines[-1] += " (right)" if text == truth else f" (it is: {truth})"
    return lines if thinking else [lines[0], lines[-1]]


def pad_picture(picture: Image.Image) -> Image.Image:
    return ImageOps.pad(picture, (64, 64), color="grey")


def draw_prompt(model, processor, prompt: str) -> Section:
    drawings = draw(model, processor, [prompt], num_return_sequences=4)
    counts = Counter(drawing.tobytes() for drawing in drawings)
    items = []
    for drawing in drawings:
        alike = counts[drawing.tobytes()]
        lines = [f"{alike} of {len(drawings)} alike: the model is sure"] if alike > 1 else []
        items.append(Item([drawing], [prompt, *lines]))
    return Section("Your words, drawn four times", items, columns=4)


def draw_scenes(model, processor) -> Section:
    drawings = draw(model, processor, SCENES)
    marks = check_drawings(SCENES, drawings)
    items = [Item([drawing], [prompt], right) for drawing, prompt, right in zip(drawings, SCENES, marks)]
    return Section("Drawn from words", items)


def draw_emoji(model, processor, rng: np.random.Generator) -> Section:
    """One emoji of each style."""
    held_out = [emoji.select_pairs("validation")[i] for i in rng.permutation(len(emoji.select_pairs("validation")))]
    chosen = [next(pair for pair in held_out if pair.style == style) for style in emoji.STYLES]
    prompts = [f"{pair.names['en']}, {emoji.STYLES[pair.style]} style" for pair in chosen]
    drawings = draw(model, processor, prompts, guidance_scale=EMOJI_GUIDANCE)
    items = [
        Item([emoji.get_picture(pair), drawing], [prompt], right)
        for drawing, prompt, pair, right in zip(drawings, prompts, chosen, check_drawings(prompts, drawings))
    ]
    return Section("Emoji: the original, which training never shows, and the drawing", items, columns=3)


def name_emoji(model, processor, rng: np.random.Generator) -> Section:
    pairs = [pick(rng, emoji.select_pairs("validation")) for _ in range(8)]
    questions = [asked[0] for asked in emoji.QUESTIONS.values()] * len(pairs)
    pictures = [emoji.get_picture(pair) for pair in pairs for _ in emoji.QUESTIONS]
    answers = iter(ask(model, processor, questions, pictures, think=True))
    items = []
    for pair in pairs:
        lines = []
        for (language, truth), answer in zip(pair.names.items(), answers):
            text = processor.split_thinking(answer.text)[1]
            verdict = "right" if name_match(text, truth) else f"it is: {truth}"
            lines.append(f"{language}: {text or '(none)'} ({verdict})")
        items.append(Item([emoji.get_picture(pair)], lines))
    return Section("Emoji, named in 12 languages; training never shows them in this style", items, columns=4)


def answer_questions(model, processor, rng: np.random.Generator) -> Section:
    held_out = [sample_split(rng, "validation", count) for count in (2, 3, 3, 4, 4, 4)]
    questions, _, truths, _ = zip(*(ask_about(rng, scene) for scene in held_out))
    pictures = [render(scene) for scene in held_out]
    answers = ask(model, processor, questions, pictures, think=True)
    items = [
        Item([picture], write_answer(processor, question, answer, truth))
        for picture, question, answer, truth in zip(pictures, questions, answers, truths)
    ]
    return Section("Questions about pictures that are not in the training data", items, columns=3)


def write_page(sections: list[Section], folder: Path) -> None:
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
            item.pictures[-1].save(folder / f"{number:02}.png")
            items.append(Item(item.pictures, [f"no. {number}", *item.lines], item.right))
            mark = [] if item.right is None else [MARKS[item.right][0]]
            text.append("\n    ".join([f"{number:02}.png", *item.lines, *mark]))
        numbered.append(Section(section.title, items, section.columns))
    answers.write_text("\n".join(text).strip() + "\n", encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(HTML)
    (folder / "page.html").write_text(
        template.render(sections=numbered, marks=MARKS, encode_png=encode_png), encoding="utf-8"
    )
    draw_page(numbered).save(folder / "page.png")


def encode_png(picture: Image.Image) -> str:
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
    elif script.prompt:
        print("Drawing your words ...")
    try:
        if picture is not None and script.prompt:
            sections.append(answer_question(model, processor, picture, script.prompt))
        elif picture is not None:
            sections.append(describe_picture(model, processor, picture))
        elif script.prompt:
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
    write_page(sections, script.output)
    for section in sections if script.image or script.prompt else sections[-1:]:
        print("", *dict.fromkeys("\n".join(item.lines) for item in section.items), sep="\n")
    page_path = script.output / "page"
    answers = script.output / "answers.txt"
    print(f"\nEverything on one page: {page_path}.png; the same for a browser: {page_path}.html; as text: {answers}")


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
