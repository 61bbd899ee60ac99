"""Contact sheets of held-out drawings, each marked as right or wrong."""

from collections.abc import Sequence

from PIL import Image

from dps_hf.contact_sheet import Item, Section, draw_page, find_writable
from dps_hf.evaluation.subject import Subject
from dps_hf.judges.verdict import Case
from dps_hf.nano import emoji
from dps_hf.nano.detector import detect, match_scene
from dps_hf.nano.exact_judge import exact_judge
from dps_hf.nano.held_out import FORMS, select_emoji, select_prompts, write_emoji_prompt
from dps_hf.nano.scenes import render
from dps_hf.nano.scenes_edit import edit


def draw_sheet(subject: Subject) -> Image.Image:
    """Draws a page of scenes, edits, and emoji beside their originals. Rules decide which drawings are right."""
    prompts = []
    for name, form in FORMS.items():
        count = 8 if "unseen" in form else 4  # more of what the model gets wrong more often
        prompts += find_writable(select_prompts(subject, name, 24), count)
    drawings = subject.draw(prompts)
    marks = check_drawings(prompts, drawings)
    scenes = [Item([drawing], [prompt], right) for drawing, prompt, right in zip(drawings, prompts, marks)]

    rng = subject.rng("sheet")
    before, instructions, after = zip(*(edit(rng, "validation") for _ in range(8)))
    pictures = [render(scene) for scene in before]
    edited = subject.draw(instructions, pictures, think=True)
    edits = [
        Item([picture, drawing], [instruction], match_scene(detect(drawing), scene))
        for picture, drawing, instruction, scene in zip(pictures, edited, instructions, after)
    ]

    pairs = select_emoji(subject, 8)
    prompts = [write_emoji_prompt(pair) for pair in pairs]
    drawings = subject.draw(prompts)
    marks = check_drawings(prompts, drawings)
    faces = [
        Item([emoji.get_picture(pair), drawing], [prompt], right)
        for pair, drawing, prompt, right in zip(pairs, drawings, prompts, marks)
    ]
    return draw_page(
        [
            Section(f"Drawn from words that are not in the training data: {_count_right(scenes)}", scenes, columns=8),
            Section(f"Edits after thinking: the picture, and the edited one: {_count_right(edits)}", edits, columns=4),
            Section(
                f"Emoji: the original, which training never shows, and the drawing: {_count_right(faces)}",
                faces,
                columns=4,
            ),
        ]
    )


def check_drawings(prompts: Sequence[str], drawings: Sequence[Image.Image]) -> list[bool]:
    """Decides whether each drawing is right; that of an emoji is if no other emoji of its style is nearer."""
    verdicts = exact_judge([Case(prompt, drawing) for prompt, drawing in zip(prompts, drawings)])
    return [verdict is not None and verdict.scores["exact"] == 1 for verdict in verdicts]


def _count_right(items: Sequence[Item]) -> str:
    return f"{sum(bool(item.right) for item in items)} of {len(items)} are right"


def draw_comparison(subjects: list[Subject], names: tuple[str, ...]) -> Image.Image:
    """Draws a page on which several models draw the same prompts, those of the figures `names` of `FORMS`."""
    prompts = [prompt for name in names for prompt in find_writable(select_prompts(subjects[0], name, 24), 8)]
    items = [Item(pictures, [prompt]) for *pictures, prompt in zip(*(one.draw(prompts) for one in subjects), prompts)]
    return draw_page([Section("Before and after", items, columns=4)])
