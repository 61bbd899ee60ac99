"""Scores a DPS: drawing, reading, reasoning, in 12 languages, on held-out scenes and emoji.

python examples/evaluate.py
python examples/evaluate.py --model runs/nano --output outputs/nano.json --items 100 --tasks scenes_t2i emoji_t2i

Finished tasks are kept in the output: the same command goes on where it was stopped. Every figure says from how many
items it comes and within which limits the true value lies with 95 % confidence.
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional as F
from transformers import HfArgumentParser

from dps_hf.data import emoji, facts, scenes
from dps_hf.data.mixture import Mixture
from dps_hf.data.record import pick
from dps_hf.evaluation.detector import detect, same_things
from dps_hf.evaluation.metrics import name_match, nearest_neighbours_right, psnr, wilson_interval
from dps_hf.inference import DPS_NANO, ask, draw, load
from dps_hf.pages import Item, Section, page
from dps_hf.training import RecordCollator, ShuffledWords, to_pixels


@dataclass
class ScriptArguments:
    """
    model: folder or name of the model.
    output, sheet: where the figures (JSON) and a page of drawings (PNG) go; the sheet lies beside the output by default.
    items: how many items a figure comes from, where there are as many.
    tasks: only these; all where left out.
    guidance, temperature, top_k: of the drawings, by default as the model's generation config says; temperature 0 is greedy.
    fresh: whether to score anew what the output holds already.
    """

    model: str = str(DPS_NANO)
    output: str = "model_cards/results/dps-nano.json"
    sheet: str | None = None
    items: int = 500
    tasks: list[str] | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    batch_size: int = 48
    seed: int = 0
    fresh: bool = False


@dataclass
class Subject:
    """The model that is scored, and how."""

    script: ScriptArguments
    model: torch.nn.Module = field(init=False)
    processor: transformers.ProcessorMixin = field(init=False)
    sampling: dict = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.processor = load(self.script.model)
        config = self.model.generation_config

        def first(*values: float | None) -> float:
            return next(value for value in values if value is not None)

        temperature = first(self.script.temperature, config.temperature, 1.0)
        self.sampling = {
            "guidance_scale": first(self.script.guidance, config.guidance_scale, 1.0),
            "do_sample": temperature > 0,
            "temperature": temperature or 1.0,
            "top_k": first(self.script.top_k, config.top_k, 50),  # the library's own default
            "top_p": first(config.top_p, 1.0),
        }

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.script.seed)

    def held_out_emoji(self, count: int | None = None) -> list[emoji.Pair]:
        found = emoji.pairs("validation")
        return [found[i] for i in self.rng().permutation(len(found))[: count or self.script.items]]

    def draw(self, prompts: list[str], guided: bool = True) -> list[Image.Image]:
        torch.manual_seed(self.script.seed)
        sampling = self.sampling if guided else {**self.sampling, "guidance_scale": 1.0}
        return draw(self.model, self.processor, prompts, self.script.batch_size, "drawings", **sampling)

    def ask(self, questions: list[str], pictures: list[Image.Image] | None = None, think: bool = False) -> list[str]:
        answers = ask(self.model, self.processor, questions, pictures, think, self.script.batch_size, "answers")
        return [answer.text for answer in answers]


# Figures


def share(right: Iterable[bool]) -> dict:
    """How many are right, with the interval of Wilson."""
    marks = list(right)
    return _figure(sum(marks) / len(marks), len(marks), wilson_interval(sum(marks), len(marks)))


def mean(values: Iterable[float]) -> dict:
    array = np.array(list(values), dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return _figure(array.mean(), len(array), (array.mean() - half, array.mean() + half))


def _figure(value: float, n: int, interval: tuple[float, float]) -> dict:
    return {"value": round(float(value), 4), "n": n, "ci95": [round(float(limit), 4) for limit in interval]}


# Tasks


def scenes_t2i(subject: Subject, guided: bool = True) -> dict:
    """Everything that the prompt names is in the drawing and nothing else; half of the prompts name sizes."""
    figures = {}
    for name, count in (("one_object", 1), ("two_objects", 2)):
        rng = subject.rng()
        held_out = [scenes.sample_split(rng, "validation", count) for _ in range(subject.script.items)]
        prompts = [scenes.caption(scene, sizes=i % 2 == 0) for i, scene in enumerate(held_out)]
        drawings = subject.draw(prompts, guided)
        figures[name] = share(
            same_things(detect(drawing), scenes.parse_caption(prompt)) for drawing, prompt in zip(drawings, prompts)
        )
    return figures


def scenes_i2t(subject: Subject) -> dict:
    """The description names all things, and each of them rightly: number, size, colour and shape."""
    figures = {}
    for name, count in (("one_object", 1), ("exact", None)):
        rng = subject.rng()
        held_out = [scenes.sample_split(rng, "validation", count) for _ in range(subject.script.items)]
        answers = subject.ask([scenes.DESCRIBE[0]] * len(held_out), list(map(scenes.render, held_out)))
        figures[name] = share(
            scenes.parse_caption(answer) == scenes.parse_caption(scenes.caption(scene))
            for answer, scene in zip(answers, held_out)
        )
    return figures


def scenes_cot(subject: Subject) -> dict:
    """The same questions after thinking and without."""
    rng = subject.rng()
    held_out = [scenes.sample_split(rng, "validation") for _ in range(subject.script.items)]
    questions, _, truths = zip(*(scenes.ask(rng, scene) for scene in held_out))
    pictures = list(map(scenes.render, held_out))
    return {
        name: share(map(name_match, subject.ask(list(questions), pictures, think), truths))
        for name, think in (("answer", True), ("direct", False))
    }


def emoji_i2t(subject: Subject) -> dict:
    """The name of an emoji in a style in which training never showed it, in the language of the question."""
    pairs = subject.held_out_emoji()
    pictures = list(map(emoji.picture, pairs))
    right = {
        language: [
            name_match(answer, pair.names[language])
            for answer, pair in zip(subject.ask([questions[0]] * len(pairs), pictures), pairs)
        ]
        for language, questions in emoji.QUESTIONS.items()
    }
    # Each emoji counts once: whether it is named in one language says much about the others.
    return {language: share(marks) for language, marks in right.items()} | {"mean": mean(np.mean(list(right.values()), 0))}


def emoji_t2i(subject: Subject, guided: bool = True) -> dict:
    """Among 50 emoji of the style, the one most like the drawing is the one that was asked for."""
    pairs, rng = subject.held_out_emoji(), subject.rng()
    drawings = subject.draw([f"{pair.names['en']}, {emoji.STYLES[pair.style]} style" for pair in pairs], guided)
    right = []
    for pair, drawing in zip(pairs, drawings):
        others = [p.index for p in emoji.all_pairs() if p.style == pair.style and p.codepoints != pair.codepoints]
        candidates = emoji.pictures()[[pair.index, *rng.choice(others, 49, replace=False)]]
        right += nearest_neighbours_right([drawing], candidates, [0])
    return {"nn50": share(right)}


def facts_(subject: Subject) -> dict:
    """Every capital and every country once, in an order that is drawn by chance."""
    asked = [(facts.FORWARD[0].format(country), capital) for country, capital in facts.CAPITALS.items()]
    asked += [(facts.BACKWARD[0].format(capital), country) for country, capital in facts.CAPITALS.items()]
    chosen = [asked[i] for i in subject.rng().permutation(len(asked))[: subject.script.items]]
    questions, truths = zip(*chosen)
    return {"en": share(map(name_match, subject.ask(list(questions)), truths))}


@torch.no_grad()
def image_tokenizer(subject: Subject) -> dict:
    """How near held-out emoji come to themselves through the codes."""
    model, size, values = subject.model, subject.model.config.drawing_size, []
    for pair in subject.held_out_emoji():
        picture = emoji.picture(pair).resize((size, size))
        codes = model.encode_image(to_pixels(picture)[None].to(model.device))
        pixels = model.decode_image_tokens(codes)
        [again] = subject.processor.post_process_multimodal_output(pixels, generation_mode="image")
        values.append(psnr(picture, again))
    return {"psnr_db": mean(values)}


@torch.no_grad()
def right_vs_shuffled_words(subject: Subject) -> dict:
    """Nats per image token of held-out emoji after the right words and after those of another record."""
    model, mixture = subject.model, Mixture({"emoji_t2i": 1}, subject.script.seed, subject.script.items, "validation")
    collate, start = RecordCollator(model, subject.processor), model.config.image_code_start_id
    losses = {}
    for name, records in (("right", mixture), ("shuffled", ShuffledWords(mixture))):
        losses[name] = []
        for first in range(0, len(mixture), 32):
            batch = transformers.BatchFeature(collate([records[i] for i in range(first, min(first + 32, len(mixture)))]))
            labels = batch.to(model.device).pop("labels")[:, 1 - batch["logits_to_keep"] :]
            logits = model(**batch).logits[:, :-1]
            loss = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
            codes = (labels >= start) & (labels < start + model.config.codebook_size)
            losses[name] += ((loss * codes).sum(1) / codes.sum(1)).tolist()
    gap = np.subtract(losses["shuffled"], losses["right"])
    return {name: mean(values) for name, values in {**losses, "gap": gap}.items()}


@torch.no_grad()
def features(subject: Subject) -> dict:
    """Retrieval among 200: a picture finds the same emoji in another style, a name its English one."""
    model, pairs, rng = subject.model, subject.held_out_emoji(min(subject.script.items, 200)), subject.rng()

    def of_pictures(pairs: list[emoji.Pair]) -> torch.Tensor:
        pixels = subject.processor.image_processor(list(map(emoji.picture, pairs)), return_tensors="pt")["pixel_values"]
        return model.get_image_features(pixels.to(model.device)).image_embeds

    def of_texts(texts: list[str]) -> torch.Tensor:
        batch = subject.processor.tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
        return model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output

    def found(queries: torch.Tensor, gallery: torch.Tensor) -> dict:
        nearest = (F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T).argmax(1).cpu()
        return share((nearest == torch.arange(len(nearest))).tolist())

    others = {pair.codepoints: [] for pair in pairs}
    for pair in emoji.pairs("train"):
        others.get(pair.codepoints, []).append(pair)
    gallery = [pick(rng, others[pair.codepoints]) for pair in pairs]
    foreign = [pair.names[pick(rng, emoji.OTHER_LANGUAGES)] for pair in pairs]
    return {
        "image_r1": found(of_pictures(pairs), of_pictures(gallery)),
        "text_r1": found(of_texts(foreign), of_texts([pair.names["en"] for pair in pairs])),
    }


TASKS: dict[str, Callable[[Subject], dict]] = {
    "scenes_t2i": scenes_t2i,
    "scenes_t2i_unguided": partial(scenes_t2i, guided=False),
    "scenes_i2t": scenes_i2t,
    "scenes_cot": scenes_cot,
    "emoji_i2t": emoji_i2t,
    "emoji_t2i": emoji_t2i,
    "emoji_t2i_unguided": partial(emoji_t2i, guided=False),
    "facts": facts_,
    "image_tokenizer": image_tokenizer,
    "right_vs_shuffled_words": right_vs_shuffled_words,
    "features": features,
}


def sheet(subject: Subject, count: int = 24) -> Image.Image:
    """Drawings for a person to look at, emoji beside the art that was held out."""
    rng, pairs = subject.rng(), subject.held_out_emoji(count)
    captions = [scenes.caption(scenes.sample_split(rng, "validation")) for _ in range(count)]
    prompts = [f"{pair.names['en']}, {emoji.STYLES[pair.style]} style" for pair in pairs]
    drawings = subject.draw(captions + prompts)
    return page(
        [
            Section("Scenes", [Item([drawing], [caption]) for drawing, caption in zip(drawings, captions)], 8),
            Section(
                "Emoji: drawn, and the art that was held out",
                [
                    Item([drawing, emoji.picture(pair)], [prompt])
                    for drawing, pair, prompt in zip(drawings[count:], pairs, prompts)
                ],
                5,
            ),
        ]
    )


def recipe(subject: Subject) -> dict:
    """Everything that the figures depend on."""
    weights = hashlib.sha256()
    for _, tensor in sorted(subject.model.state_dict().items()):
        weights.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return {
        "model": Path(subject.script.model).name,
        "weights_sha256": weights.hexdigest(),
        "num_parameters": subject.model.num_parameters(),
        "items": subject.script.items,
        "seed": subject.script.seed,
        "batch_size": subject.script.batch_size,
        "drawings": subject.sampling,
        "answers": {"do_sample": False},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main(script: ScriptArguments) -> None:
    # Model
    subject = Subject(script)

    # Tasks
    output = Path(script.output)
    report = {"command": shlex.join(["python", *sys.argv]), **recipe(subject), "seconds": {}, "results": {}}
    if output.exists() and not script.fresh:
        kept = json.loads(output.read_text())
        changed = [name for name in recipe(subject) if kept.get(name) != report[name]]
        if changed:
            sys.exit(f"{output} was made with other {', '.join(changed)}. Give --fresh to score anew, or another --output.")
        report = kept
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in [name for name in script.tasks or TASKS if name not in report["results"]]:
        print(name)
        start = time.perf_counter()
        report["results"][name] = TASKS[name](subject)
        report["seconds"][name] = round(time.perf_counter() - start, 1)
        output.write_text(json.dumps(report, indent=2) + "\n")
    picture = Path(script.sheet) if script.sheet else output.with_suffix(".png")
    if script.fresh or not picture.exists():
        sheet(subject).save(picture)

    # Table
    print(f"\n{'':40} {'value':>8}  {'95 % interval':^18} {'n':>5}")
    for task, figures in report["results"].items():
        for name, figure in figures.items():
            low, high = figure["ci95"]
            print(f"{f'{task}.{name}':40} {figure['value']:8.3f}  {f'{low:.3f} to {high:.3f}':^18} {figure['n']:5}")
    print(f"\nFigures: {output}\nDrawings: {picture}")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
