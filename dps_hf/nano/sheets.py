"""Contact sheets of held-out drawings."""

from PIL import Image

from dps_hf.contact_sheet import Item, Section, draw_page, find_writable
from dps_hf.evaluation.subject import Subject
from dps_hf.nano import emoji
from dps_hf.nano.held_out import FORMS, emoji_prompt, held_out_emoji, held_out_prompts
from dps_hf.nano.scenes import render
from dps_hf.nano.scenes_edit import edit


def draw_sheet(subject: Subject) -> Image.Image:
    """Draws a page of scenes, edits, and emoji beside their originals."""
    prompts = [prompt for name in FORMS for prompt in find_writable(held_out_prompts(subject, name, 24), 8)]
    scenes = [Item([drawing], [prompt]) for drawing, prompt in zip(subject.draw(prompts), prompts)]

    rng = subject.rng("sheet")
    before, instructions, _ = zip(*(edit(rng, "validation") for _ in range(8)))
    pictures = [render(scene) for scene in before]
    edits = [
        Item([picture, drawing], [instruction])
        for picture, drawing, instruction in zip(
            pictures, subject.draw(instructions, pictures, think=True), instructions
        )
    ]

    pairs = held_out_emoji(subject, 12)
    drawings = subject.draw([emoji_prompt(pair) for pair in pairs])
    faces = [Item([drawing, emoji.picture(pair)], [emoji_prompt(pair)]) for drawing, pair in zip(drawings, pairs)]
    return draw_page(
        [
            Section("Scenes that training never shows", scenes, columns=8),
            Section("Edits after thinking, before and after", edits, columns=4),
            Section("Emoji: the drawing, and the held-out original", faces, columns=4),
        ]
    )


def draw_comparison(subjects: list[Subject], names: tuple[str, ...]) -> Image.Image:
    """Draws a page on which several models draw the same prompts, those of the figures `names` of `FORMS`."""
    prompts = [prompt for name in names for prompt in find_writable(held_out_prompts(subjects[0], name, 24), 8)]
    items = [Item(pictures, [prompt]) for *pictures, prompt in zip(*(one.draw(prompts) for one in subjects), prompts)]
    return draw_page([Section("Before and after", items, columns=4)])
