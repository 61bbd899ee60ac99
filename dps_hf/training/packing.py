"""What `examples/train.py` needs: records packed into rows without padding, and their loss."""

import math
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Trainer

from dps_hf.data.mixture import Mixture
from dps_hf.data.record import Message, Record
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.nano import emoji
from dps_hf.training.collator import drawing_encoder, encode_drawings, prompt_and_text


ROW = 256  # tokens; attention costs little up to here
SMOOTHED = 0.6  # of all steps; the rest makes the model sure of single codes, and of where codes and where words stand
FULL_STEPS = 4  # until then, image codes and text are told from each other in one step of so many, which is faster
BLOCK = 256  # answers whose logits are made at a time on a CPU, to stay in its cache
LARGE_BLOCK = 16_384  # and on anything else


class ShuffledWords(torch.utils.data.Dataset):
    """The records of a mixture of drawings, each with the words of the next one.

    A model that listens to words loses here against the right ones; one that only continues pictures does not.
    """

    def __init__(self, mixture: Mixture):
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Record:
        record, other = self.mixture[index], self.mixture[(index + 1) % len(self)]
        return {**record, "messages": [*other["messages"][:-1], record["messages"][-1]]}


class Example(NamedTuple):
    """One record as tokens: what its questions share, then each question with its answer, which sees no other.

    ids, labels, weights: of each token; a label is -100, and its weight 0, outside of answers.
    positions: within the record; each question begins where what they share ends.
    branches: 0 for what is shared, then the number of the question.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    positions: list[int]
    branches: list[int]
    images: list[Image.Image]


class PackingCollator:
    """Records to rows of tokens that hold several records each, with no token between them and few after them.

    A token sees what comes before it in its own record. `more` questions about a picture share the picture's tokens and
    see nothing of each other: to the model they are records of their own, at a part of the cost.

    An answer of n tokens counts as n ** 0.5 of them: neither do the many of a drawing drown a short name, nor does each
    of them count next to nothing (InternVL 2.5, arXiv 2412.05271, section 3.3).

    A `<think>` that begins an answer belongs to the prompt: it is how thinking is asked for. An answer may be text, a
    drawing, or a plan and then its drawing.

    Args:
        prompt_dropout: share of the drawings that are learned without all that comes before them, pictures and plan
            included, for classifier-free guidance.
        code_dropout: share of the drawings in which codes, a random share of them, are hidden from those that follow.
            Whoever sees all codes before it can go on without the words; who does not has nothing but the words.

    Shapes of a batch:
        input_ids, position_ids, labels, loss_weights: `(rows, tokens)`
        examples, branches: `(rows, tokens)`, which of a row's examples a token belongs to (0: none) and its branch there
        pixel_values: `(pictures, 3, image_size, image_size)`, where there are pictures
    """

    def __init__(
        self,
        model: DPSForConditionalGeneration,
        processor: DPSProcessor,
        prompt_dropout: float = 0.0,
        code_dropout: float = 0.0,
    ):
        self.model, self.processor = model, processor
        self.encoder = drawing_encoder(model)
        self.prompt_dropout, self.code_dropout = prompt_dropout, code_dropout

    def __call__(self, records: list[Record]) -> dict[str, torch.Tensor]:
        examples = list(self._examples(encode_drawings(records, self.encoder, self.processor)))
        length = max(ROW, *(len(example.ids) for example in examples))
        rows = _packed(examples, length)
        pictures = [image for row in rows for example in row for image in example.images]
        batch = {
            "input_ids": _padded([[e.ids for e in row] for row in rows], length, self.model.config.pad_token_id),
            "position_ids": _padded([[e.positions for e in row] for row in rows], length, 0),
            "labels": _padded([[e.labels for e in row] for row in rows], length, -100),
            "loss_weights": _padded([[e.weights for e in row] for row in rows], length, 0.0),
            "examples": _padded([[[i] * len(e.ids) for i, e in enumerate(row, 1)] for row in rows], length, 0),
            "branches": _padded([[e.branches for e in row] for row in rows], length, 0),
        }
        if pictures:
            batch["pixel_values"] = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return batch

    def _examples(self, records: list[Record]) -> Iterator[Example]:
        prompts, texts = [], []
        placeholder = self.processor.image_token
        for record in records:
            for question, answer in _questions(record):
                prompt, text = prompt_and_text(self.processor, question, answer)
                several = placeholder * self.processor.num_image_tokens
                prompts.append(prompt.replace(placeholder, several))
                texts.append(text.replace(placeholder, several))
        # What is dropped depends on the batch alone: a run that is resumed, where torch's own generator stands
        # elsewhere, drops the same.
        chance = np.random.default_rng(zlib.crc32("".join(texts).encode()))
        tokenized = zip(*(self.processor.tokenizer(side)["input_ids"] for side in (prompts, texts)), strict=True)
        for record in records:
            asked = [next(tokenized) for _ in _questions(record)]
            yield self._example(asked, record["images"], chance)

    def _example(
        self, asked: list[tuple[list[int], list[int]]], images: list[Image.Image], chance: np.random.Generator
    ) -> Example:
        config = self.model.config
        (prompt, ids), *_ = asked
        if self.model.training and config.boi_token_id in ids[len(prompt) :]:  # earlier turns may hold drawings, too
            begin = ids.index(config.boi_token_id, len(prompt))
            if chance.random() < self.prompt_dropout:
                # What the unguided half of a guided batch sees: begin-of-image and nothing before.
                asked, images = [([config.boi_token_id], ids[begin:])], []
            elif chance.random() < self.code_dropout:
                codes = np.array(ids[begin + 1 : begin + 1 + config.num_codes])
                codes[chance.random(len(codes)) < chance.random()] = config.pad_token_id
                hidden = [*ids[: begin + 1], *codes.tolist(), *ids[begin + 1 + len(codes) :]]
                return _joined([(prompt, ids)], images, hidden)
        return _joined(asked, images)


def _questions(record: Record) -> list[tuple[list[Message], Message]]:
    """The prompt with its answer, and each further question, after the same pictures, with its own."""
    *before, question, answer = record["messages"]
    pictures = [part for part in question["content"] if part["type"] == "image"]
    if record.get("more") and question["content"][: len(pictures)] != pictures:
        raise ValueError("Where there are `more` questions, the first must begin with its pictures: they share these.")
    asked = [([*before, question], answer)]
    for text, said in record.get("more", ()):
        other = Message(role="user", content=[*pictures, {"type": "text", "text": text}])
        asked.append(([*before, other], Message(role="assistant", content=[{"type": "text", "text": said}])))
    return asked


def _joined(
    asked: list[tuple[list[int], list[int]]], images: list[Image.Image], seen: list[int] | None = None
) -> Example:
    """Prompts and prompts with answers, as tokens, to one example; `seen` is what the model sees in place of the first."""
    # All but the last token of a prompt: an answer begins right after it, in its own branch.
    columns = zip(*(prompt[:-1] for prompt, _ in asked), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns)) if len(asked) > 1 else 0
    ids, positions, branches = asked[0][1][:shared], list(range(shared)), [0] * shared
    labels, weights = [-100] * shared, [0.0] * shared
    for branch, (prompt, text) in enumerate(asked, start=1):
        answer = len(text) - len(prompt)
        ids += (seen or text)[shared:]
        labels += [-100] * (len(prompt) - shared) + text[len(prompt) :]
        weights += [0.0] * (len(prompt) - shared) + [answer**-0.5] * answer
        positions += range(shared, len(text))
        branches += [branch] * (len(text) - shared)
    return Example(ids, labels, weights, positions, branches, images)


def _packed(examples: list[Example], length: int) -> list[list[Example]]:
    """The examples in rows of at most `length` tokens, each in the first row that has room, the longest first."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        size = len(example.ids)
        index = next((i for i, left in enumerate(room) if left >= size), None)
        if index is None:
            rows.append([])
            room.append(length)
            index = len(rows) - 1
        rows[index].append(example)
        room[index] -= size
    return rows


def _padded(rows: list[list[list]], length: int, filler: float) -> torch.Tensor:
    flat = [[value for values in row for value in values] for row in rows]
    return torch.tensor([row + [filler] * (length - len(row)) for row in flat])


def attention_mask(examples: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """The mask of packed rows: each token sees itself, and what is its own or shared before it.

    Shapes:
        examples, branches: `(rows, tokens)`, as [`PackingCollator`] gives them
        returns: `(rows, 1, tokens, tokens)`, 0 where a token sees another, else the most negative float32
    """
    same = examples[:, :, None] == examples[:, None]
    same &= (branches[:, :, None] == branches[:, None]) | (branches[:, None] == 0)
    allowed = same.tril()
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, torch.finfo(torch.float32).min)[
        :, None
    ]


class DPSTrainer(Trainer):
    """The library's trainer over packed rows; names of one emoji in two languages get like text features, too.

    Args:
        alignment_steps: every so many steps, [`name_alignment_loss`] is added; 0 for never.
        code_smoothing: see [`packed_loss`]; for the first `SMOOTHED` of all steps, most of them with `codes_alone`, and not
            in evaluations.

    Raises:
        ValueError: `code_smoothing` is not within 0 and 0.5, or the image tokenizer's codes have no neighbours.
    """

    def __init__(self, *args, alignment_steps: int = 0, code_smoothing: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.alignment_steps, self.code_smoothing = alignment_steps, code_smoothing
        if not 0 <= code_smoothing <= 0.5:
            raise ValueError(f"code_smoothing must be between 0 and 0.5; got {code_smoothing}.")
        config = self.accelerator.unwrap_model(self.model).config
        if code_smoothing and config.image_tokenizer_geometry.levels is None:
            raise ValueError(
                f"code_smoothing={code_smoothing} needs an image tokenizer with `levels`, whose codes have neighbours; "
                f"{config.image_tokenizer_config.model_type!r} has none. Set it to 0."
            )

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        step, bare = self.state.global_step, self.accelerator.unwrap_model(model)
        smoothed = model.training and step < SMOOTHED * self.args.max_steps
        code_smoothing = self.code_smoothing if smoothed else 0.0
        with self.accelerator.autocast():
            loss = packed_loss(
                model,
                bare,
                inputs,
                codes_alone=code_smoothing > 0 and step % FULL_STEPS > 0,
                code_smoothing=code_smoothing,
            )
            if model.training and self.alignment_steps and step % self.alignment_steps == 0:
                # The step chooses the names, so that a run which is resumed sees the same.
                loss = loss + name_alignment_loss(bare, self.processing_class, np.random.default_rng([7, step]))
        return (loss, {"loss": loss}) if return_outputs else loss


def packed_loss(
    model: torch.nn.Module,
    bare: DPSForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    codes_alone: bool,
    code_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of a [`PackingCollator`]'s batch, with logits only where an answer is due.

    Args:
        model: as the trainer wraps it.
        bare: the same, unwrapped.
        codes_alone: whether image codes are told from each other only, and text from text.
        code_smoothing: share of the aim that goes from each digit of a code to each of its two neighbours. Label
            smoothing (arXiv 1512.00567, section 7) along the lattice of finite scalar quantisation: codes that look
            alike are learned together, so that one which training never showed in some place can be drawn there, too.
    """
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "position_ids", "pixel_values")}
    inputs["attention_mask"] = attention_mask(batch["examples"], batch["branches"])
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"][:, 1:]
    outputs = model(**inputs, logits_to_keep=1, output_hidden_states=True, use_cache=False)
    hidden, rows = outputs.hidden_states[-1][:, :-1], bare.get_output_embeddings().weight
    if not torch.is_grad_enabled():
        rows = rows.detach()  # a parameter always asks for its gradient
    first, end = bare.config.image_code_start_id, bare.config.image_code_start_id + bare.config.codebook_size
    is_code = (labels >= first) & (labels < end)
    due = labels != -100
    if not codes_alone:
        total = _NatsOfAnswers.apply(hidden[due], rows, labels[due], weights[due])
    else:
        is_text = due & ~is_code
        text = torch.where(
            labels >= end, labels - bare.config.codebook_size, labels
        )  # other tokens may follow the codes
        others = torch.cat([rows[:first], rows[end:]])
        total = _NatsOfAnswers.apply(hidden[is_code], rows[first:end], labels[is_code] - first, weights[is_code])
        total = total + _NatsOfAnswers.apply(hidden[is_text], others, text[is_text], weights[is_text])
    if code_smoothing:
        # By logits a code's aim is its row; what the smoothed aim is away from it makes up for the difference.
        codebooks = bare.config.image_tokenizer_geometry.levels
        parts = rows[first:end].split([math.prod(levels) for levels in codebooks])
        smoothed = [_smoothed(part, levels, code_smoothing) for part, levels in zip(parts, codebooks, strict=True)]
        away = rows[first:end] - torch.cat(smoothed)
        away = F.embedding(labels[is_code] - first, away)
        total = total + ((hidden[is_code] * away).sum(-1) * weights[is_code]).sum()
    return total / weights.sum()


def _smoothed(rows: torch.Tensor, levels: list[int], share: float) -> torch.Tensor:
    """Of each code, in the place of its row, the mean of the rows around it; at the ends of a digit it is its own neighbour.

    Shapes:
        rows, returns: `(codes, hidden_size)`, codes numbered as [`FiniteScalarQuantizer`] does
    """
    table = rows.view(*reversed(levels), -1)
    for axis, count in enumerate(reversed(levels)):
        index = torch.arange(count, device=rows.device)
        below = table.index_select(axis, (index - 1).clamp(min=0))
        above = table.index_select(axis, (index + 1).clamp(max=count - 1))
        table = (1 - 2 * share) * table + share * (below + above)
    return table.flatten(0, -2)


class _NatsOfAnswers(torch.autograd.Function):
    """Weighted sum of the cross-entropies of `labels`, `(tokens,)`, by the logits `hidden @ rows.T`.

    About half of the time of the same in single operations, on two cores in bfloat16: a block of logits in float32
    becomes its own gradient while it is in the processor's cache, and of the whole table there is only that gradient, in
    the precision of the matrix products (after Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009).
    """

    @staticmethod
    def forward(ctx, hidden, rows, labels, weights):
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.dtypes = hidden.dtype, rows.dtype
        hidden, rows = hidden.to(dtype), rows.to(dtype)
        total = weights.new_zeros(())
        learns = any(ctx.needs_input_grad)
        of_hidden, of_logits = torch.empty_like(hidden), hidden.new_empty(len(hidden) * learns, len(rows))
        size = BLOCK if kind == "cpu" else LARGE_BLOCK
        for start in range(0, len(hidden), size):
            block = slice(start, start + size)
            label, weight = labels[block, None], weights[block, None]
            logits = (hidden[block] @ rows.T).float()
            logits -= logits.amax(1, keepdim=True)
            right = logits.gather(1, label)
            odds = logits.exp_()
            sums = odds.sum(1, keepdim=True)
            total += ((sums.log() - right) * weight).sum()
            if learns:
                of_logits[block] = odds.mul_(weight / sums).scatter_add_(1, label, -weight)
                of_hidden[block] = of_logits[block] @ rows
        if learns:
            ctx.save_for_backward(of_hidden, of_logits.T @ hidden)
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_hidden, of_rows = ctx.saved_tensors
        of_hidden, of_rows = (g.to(d) * gradient for g, d in zip((of_hidden, of_rows), ctx.dtypes, strict=True))
        return of_hidden, of_rows, None, None


def name_alignment_loss(
    model: DPSForConditionalGeneration, processor: DPSProcessor, rng: np.random.Generator, count: int = 64
) -> torch.Tensor:
    """Nats by which the text features of `count` names in one language miss their translations in another.

    A symmetric cross-entropy over cosines at a temperature of 0.05 (InfoNCE; CLIP, arXiv 2103.00020, figure 3).
    """
    chosen = [_names()[i] for i in rng.choice(len(_names()), count, replace=False)]
    languages = list(emoji.QUESTIONS)
    ways = [rng.choice(len(languages), 2, replace=False) for _ in chosen]
    texts = [names[languages[way[side]]] for side in (0, 1) for names, way in zip(chosen, ways, strict=True)]
    inputs = processor(text=texts, padding=True, return_tensors="pt").to(model.device)
    processor.tokenizer.backend_tokenizer.no_padding()  # or it would be saved as one that pads whatever it is given
    features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    one, other = F.normalize(features.float(), dim=-1).chunk(2)
    logits, target = one @ other.T / 0.05, torch.arange(count, device=model.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@cache
def _names() -> list[dict[str, str]]:
    """Of each emoji that is trained on, its name in each language."""
    return list({pair.codepoints: pair.names for pair in emoji.pairs("train")}.values())
