"""How often dps-nano is right: about scenes, emoji and facts that its training never shows."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dps_hf.data.record import pick
from dps_hf.evaluation.figures import Figure, mean, share
from dps_hf.evaluation.metrics import compute_psnr, find_right_neighbours, name_match
from dps_hf.evaluation.subject import Subject
from dps_hf.inference import encode
from dps_hf.nano import emoji
from dps_hf.nano.detector import detect, fulfils, match_scene
from dps_hf.nano.everyday_evaluation import everyday_descriptions, everyday_questions, everyday_wishes, talk
from dps_hf.nano.facts import BACKWARD, FORWARD, read_capitals
from dps_hf.nano.held_out import FORMS, sample_scenes, select_emoji, select_prompts, write_emoji_prompt
from dps_hf.nano.questions import ask as ask_about
from dps_hf.nano.scenes import Scene, render, shows
from dps_hf.nano.scenes_edit import edit
from dps_hf.nano.scenes_t2i import arrange_scene, is_drawn_in_training
from dps_hf.nano.splits import UNSEEN_PAIRS
from dps_hf.nano.wording import DESCRIBE, LANGUAGES, parse_caption, parse_wish, write_caption


QUESTIONS: dict[str, tuple[str | None, bool]] = {
    "answer": (None, True),
    "direct": (None, False),
    "unseen_pair": ("pair", True),
    "unseen_count": ("count", True),
}
"""Figures of questions about scenes: what is unseen in the pictures, and whether the model thinks first."""

CANDIDATES = 50  # emoji among which a drawing is looked up
GALLERY = 200  # emoji among which features are looked up
WHITE = 200  # brightness; a page on which nothing is darker is white
EMOJI_GUIDANCE = 3.0  # with less the page often stays white; scenes need less


def scenes_t2i(
    subject: Subject, names: Collection[str] = FORMS, guided: bool = True, think: bool = False
) -> dict[str, Figure]:
    """The drawing shows everything that the prompt names, in the right place, and nothing else; `think`: after a plan.

    `unseen_pair` is also given for each pair. `new_picture` is of the prompts whose picture training draws for no
    other words either, although it shows each of their things.
    """
    drawn: dict[str, list[tuple[Scene, bool]]] = {}
    for name in names:
        prompts = select_prompts(subject, name)
        drawings = subject.draw(prompts, guided=guided, think=think)
        wishes = [wish for prompt in prompts if (wish := parse_wish(prompt))]
        right = [fulfils(detect(drawing), wish) for drawing, wish in zip(drawings, wishes, strict=True)]
        drawn[name] = list(zip(map(arrange_scene, wishes), right))
    everything = [one for some in drawn.values() for one in some]
    for pair in sorted(UNSEEN_PAIRS):
        drawn["unseen_pair_{}_{}".format(*pair)] = [
            (scene, right) for scene, right in everything if pair in {(t.colour, t.shape) for t in scene.things}
        ]
    drawn["new_picture"] = [
        (scene, right) for scene, right in everything if shows(scene, None) and not is_drawn_in_training(scene)
    ]
    figures = {}
    for name, some in drawn.items():
        if some:  # several prompts ask for one picture
            pictures, marks = zip(*some)
            figures[name] = share(marks, pictures)
    return figures


def scenes_t2i_unguided(subject: Subject) -> dict[str, Figure]:
    """The same without classifier-free guidance."""
    return scenes_t2i(subject, guided=False)


def scenes_t2i_plan(subject: Subject, guided: bool = True) -> dict[str, Figure]:
    """Counting and positions, drawn after a plan in words."""
    return scenes_t2i(subject, ("counting", "position"), guided, think=True)


def scenes_t2i_plan_unguided(subject: Subject) -> dict[str, Figure]:
    """The same without classifier-free guidance."""
    return scenes_t2i_plan(subject, guided=False)


def scenes_i2t(subject: Subject) -> dict[str, Figure]:
    """The description names all things with the right number, size, colour and shape.

    `one_object` and `exact` (1 to 4 things) are as training shows them. `unseen_pair` shows a colour and a shape that
    training never shows together, `unseen_count` a shape in a number in which training never shows it.
    """
    figures = {}
    for name, count, unseen in (
        ("one_object", 1, None),
        ("exact", None, None),
        ("unseen_pair", None, "pair"),
        ("unseen_count", None, "count"),
    ):
        held_out = sample_scenes(subject, count, unseen)
        answers = subject.ask([DESCRIBE["en"][0]] * len(held_out), [render(scene) for scene in held_out])
        truths = [parse_caption(write_caption(scene)) for scene in held_out]
        figures[name] = share(parse_caption(answer) == truth for answer, truth in zip(answers, truths))
    return figures


def scenes_i2t_languages(subject: Subject) -> dict[str, Figure]:
    """`exact` in the other languages (`de` ...), asked as in training and in held-out words (`new_wording_en` ...)."""
    held_out, figures = sample_scenes(subject), {}
    pictures, truths = (
        [render(scene) for scene in held_out],
        [parse_caption(write_caption(scene)) for scene in held_out],
    )
    for prefix, wording, languages in (("", 0, LANGUAGES[1:]), ("new_wording_", -1, LANGUAGES)):
        for language in languages:
            answers = subject.ask([DESCRIBE[language][wording]] * len(pictures), pictures)
            figures[prefix + language] = share(parse_caption(one) == truth for one, truth in zip(answers, truths))
    return figures


def scenes_cot(subject: Subject, names: Collection[str] = QUESTIONS) -> dict[str, Figure]:
    """Questions of all kinds: after thinking (`answer`, and a figure for each kind), and without (`direct`).

    `unseen_pair` and `unseen_count` are after thinking, about pictures of what training never shows together.
    """
    figures, by_kind = {}, {}
    for name in names:
        right, kinds = _check_answers(subject, *QUESTIONS[name])
        figures[name] = share(right)
        for kind in sorted(set(kinds)) if name == "answer" else ():
            by_kind[f"answer_{kind}"] = share(mark for mark, one in zip(right, kinds) if one == kind)
    return figures | by_kind


def _check_answers(subject: Subject, unseen: str | None, think: bool) -> tuple[list[bool], list[str]]:
    """Which questions about held-out scenes are answered rightly, and their kinds."""
    held_out, rng = sample_scenes(subject, unseen=unseen), subject.rng("questions")
    questions, _, truths, kinds = zip(*(ask_about(rng, scene) for scene in held_out))
    answers = subject.ask(questions, [render(scene) for scene in held_out], think)
    return list(map(name_match, answers, truths)), list(kinds)


def scenes_edit(subject: Subject, guided: bool = True) -> dict[str, Figure]:
    """The edit is made and everything else is unchanged: after thinking (`exact`), and without (`direct`)."""
    rng = subject.rng("edits")
    before, instructions, after = zip(*(edit(rng, "validation") for _ in range(subject.items)))
    pictures, figures = [render(scene) for scene in before], {}
    for name, think in (("exact", True), ("direct", False)):
        drawings = subject.draw(instructions, pictures, guided, think)
        figures[name] = share(match_scene(detect(drawing), scene) for drawing, scene in zip(drawings, after))
    return figures


def scenes_edit_unguided(subject: Subject) -> dict[str, Figure]:
    """The same without classifier-free guidance."""
    return scenes_edit(subject, guided=False)


def emoji_i2t(subject: Subject) -> dict[str, Figure]:
    """The name of a held-out emoji, in the language of the question: after thinking, and without (`direct_`)."""
    pairs, languages = select_emoji(subject), list(emoji.QUESTIONS)
    pictures = [emoji.get_picture(pair) for pair in pairs] * len(languages)
    questions = [emoji.QUESTIONS[language][0] for language in languages for _ in pairs]
    truths = [pair.names[language] for language in languages for pair in pairs]
    figures: dict[str, Figure] = {}
    for prefix, think in (("", True), ("direct_", False)):
        right = map(name_match, subject.ask(questions, pictures, think), truths)
        marks = np.array(list(right)).reshape(len(languages), len(pairs))
        figures |= {prefix + language: share(row) for language, row in zip(languages, marks)}
        # An emoji counts once in the mean: whether it is named in one language says much about the others.
        figures[f"{prefix}mean"] = mean(marks.mean(0))
    return figures


def emoji_t2i(subject: Subject, guided: bool = True) -> dict[str, Figure]:
    """Among 50 emoji of the style, the held-out one that was asked for is nearest to the drawing.

    `drawn` is the share of drawings that are no white page.
    """
    pairs = select_emoji(subject)
    drawings = subject.draw([write_emoji_prompt(pair) for pair in pairs], guided=guided)
    drawn = share(np.asarray(drawing.convert("L")).min() < WHITE for drawing in drawings)
    return {"nn50": _find_among_50(subject, pairs, drawings), "drawn": drawn}


def emoji_t2i_unguided(subject: Subject) -> dict[str, Figure]:
    """The same without classifier-free guidance."""
    return emoji_t2i(subject, guided=False)


def emoji_t2i_guided_by_3(subject: Subject) -> dict[str, Figure]:
    """The same with a guidance of 3, which suits emoji best, whatever the guidance of the other figures."""
    return emoji_t2i(replace(subject, sampling={**subject.sampling, "guidance_scale": EMOJI_GUIDANCE}))


def reference(subject: Subject) -> dict[str, Figure]:
    """A yardstick for `emoji_t2i`, not a figure of the model: the score of original art in place of drawings.

    The art is of a random style in which training shows the emoji.
    """
    pairs, rng, shown = select_emoji(subject), subject.rng("art"), _list_training_styles()
    art = [emoji.get_picture(pick(rng, shown[pair.codepoints])) for pair in pairs]
    return {"emoji_art_nn50": _find_among_50(subject, pairs, art)}


def _find_among_50(subject: Subject, pairs: list[emoji.Pair], drawings: list[Image.Image]) -> Figure:
    rng, right = subject.rng("candidates"), []
    for pair, drawing in zip(pairs, drawings, strict=True):
        others = [p.index for p in emoji.read_pairs() if p.style == pair.style and p.codepoints != pair.codepoints]
        candidates = emoji.read_pictures()[[pair.index, *rng.choice(others, CANDIDATES - 1, replace=False)]]
        right += find_right_neighbours([drawing], candidates, [0])
    return share(right)


def _list_training_styles() -> dict[str, list[emoji.Pair]]:
    """Emoji to the styles in which training shows them."""
    shown = defaultdict(list)
    for pair in emoji.select_pairs("train"):
        shown[pair.codepoints].append(pair)
    return shown


def facts(subject: Subject) -> dict[str, Figure]:
    """Every country's capital and every capital's country, once in each language. Training shows all of them."""
    figures = {}
    for language in LANGUAGES:
        pairs = read_capitals(language).items()
        asked = [(FORWARD[language][0].format(country), capital) for country, capital in pairs]
        asked += [(BACKWARD[language][0].format(capital), country) for country, capital in pairs]
        chosen = [asked[i] for i in subject.rng("facts").permutation(len(asked))[: subject.items]]
        questions, truths = zip(*chosen)
        figures[language] = share(map(name_match, subject.ask(questions), truths))
    return figures


def image_tokenizer(subject: Subject) -> dict[str, Figure]:
    """How well held-out emoji are reconstructed from their codes."""
    model, size = subject.model, subject.model.config.drawing_size
    values = []
    for pair in select_emoji(subject):
        picture = emoji.get_picture(pair)
        pixels = model.decode_image_tokens(encode(model, subject.processor, [picture]))
        again = subject.processor.post_process_multimodal_output(pixels, generation_mode="image")
        values.append(compute_psnr(picture.resize((size, size)), again[0]))
    return {"psnr_db": mean(values)}


@torch.no_grad()
def right_vs_shuffled_words(subject: Subject) -> dict[str, Figure]:
    """Nats per image token of held-out emoji, after their own words and after those of another emoji."""
    model, processor, config = subject.model, subject.processor, subject.model.config
    pairs = select_emoji(subject)
    losses: dict[str, list[float]] = {"right": [], "shuffled": []}
    for start in range(0, len(pairs), 25):
        batch = pairs[start : start + 25]
        drawings = [processor.drawing_text(c) for c in encode(model, processor, [emoji.get_picture(p) for p in batch])]
        for name, worded in (("right", batch), ("shuffled", [pairs[i - 1] for i in range(start, start + len(batch))])):
            chats = [
                [{"role": "user", "content": write_emoji_prompt(pair)}, {"role": "assistant", "content": drawing}]
                for pair, drawing in zip(worded, drawings)
            ]
            texts = processor.apply_chat_template(chats)
            inputs = processor(text=texts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
            tokens = inputs["input_ids"][:, 1:]
            logits = model(**inputs).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
            codes = (tokens >= config.image_code_start_id) & (
                tokens < config.image_code_start_id + config.codebook_size
            )
            losses[name] += ((loss * codes).sum(1) / codes.sum(1)).tolist()
    gap = np.subtract(losses["shuffled"], losses["right"])
    return {"right": mean(losses["right"]), "shuffled": mean(losses["shuffled"]), "gap": mean(gap)}


@torch.no_grad()
def features(subject: Subject) -> dict[str, Figure]:
    """Retrieval among 200: a held-out picture finds its emoji in another style, a foreign name finds the English one.

    More than 200 items are split into galleries of 200. The names are not held out: training with
    [`~dps_hf.nano.name_alignment.name_alignment_loss`] shows both names of an emoji together.
    """
    model, rng = subject.model, subject.rng("features")
    # Whole ones: a smaller last gallery would be easier.
    galleries = min(math.ceil(subject.items / GALLERY), len(emoji.select_pairs("validation")) // GALLERY)
    pairs = select_emoji(subject, galleries * GALLERY if subject.items > GALLERY else subject.items)
    shown = _list_training_styles()
    others = [pick(rng, shown[pair.codepoints]) for pair in pairs]
    foreign = [pair.names[pick(rng, emoji.OTHER_LANGUAGES)] for pair in pairs]

    def of_pictures(pairs: list[emoji.Pair]) -> torch.Tensor:
        return model.get_image_features(_make_pixels(subject, map(emoji.get_picture, pairs))).image_embeds

    def of_texts(texts: list[str]) -> torch.Tensor:
        inputs = subject.processor(text=texts, padding=True, return_tensors="pt").to(model.device)
        return model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output

    def recall(queries: torch.Tensor, gallery: torch.Tensor) -> Figure:
        queries, gallery = F.normalize(queries, dim=-1), F.normalize(gallery, dim=-1)
        marks: list[bool] = []
        for some, among in zip(queries.split(GALLERY), gallery.split(GALLERY)):
            marks += [index == i for i, index in enumerate((some @ among.T).argmax(1).tolist())]
        return share(marks)

    return {
        "image_r1": recall(of_pictures(pairs), of_pictures(others)),
        "text_r1": recall(of_texts(foreign), of_texts([pair.names["en"] for pair in pairs])),
    }


def _make_pixels(subject: Subject, pictures: Iterable[Image.Image]) -> torch.Tensor:
    pixels = subject.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    return pixels.to(subject.model.device)


EVALUATIONS = (
    scenes_t2i,
    scenes_t2i_unguided,
    scenes_t2i_plan,
    scenes_t2i_plan_unguided,
    scenes_i2t,
    scenes_i2t_languages,
    scenes_cot,
    scenes_edit,
    scenes_edit_unguided,
    emoji_i2t,
    emoji_t2i,
    emoji_t2i_unguided,
    emoji_t2i_guided_by_3,
    facts,
    image_tokenizer,
    right_vs_shuffled_words,
    features,
    reference,
    everyday_wishes,
    everyday_questions,
    everyday_descriptions,
    talk,
)
"""What `--tasks dps_hf.nano.evaluation` runs."""
