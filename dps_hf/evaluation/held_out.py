"""Evaluations of a model on your held-out records: captions, answers, drawings, retrieval and a judge's scores."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dps_hf.contact_sheet import Item, Section, draw_page
from dps_hf.data.sources import LazyRecords
from dps_hf.evaluation.captions import check_libraries, score_captions
from dps_hf.evaluation.figures import Figure, mean, share
from dps_hf.evaluation.metrics import normalize_answer
from dps_hf.evaluation.subject import Subject
from dps_hf.evaluation.turns import (
    CAPTIONS,
    DRAWINGS,
    QUESTIONS,
    Turn,
    digest,
    respond,
    show_wanted,
    sort_turns,
    split_turns,
    write_drawing,
    write_messages,
)
from dps_hf.judges.verdict import Case, Judge, ask_judge


RANKS = (1, 5)  # of R@1 and R@5
SHOWN = 24  # items of a kind on the sheet

T = TypeVar("T")


class HeldOut:
    """The evaluations of one data set. Which of them apply depends on what its records hold.

    Args:
        records: held-out records.
        answers: what answers about pictures are, see [`~dps_hf.evaluation.turns.sort_turns`].
        judge: scores what the model answers and draws.

    Raises:
        ValueError: the records hold no answer.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], answers: str | None = None, judge: Judge | None = None):
        self.turns = sort_turns((turn for record in records for turn in split_turns(record)), answers)
        if not self.turns:
            raise ValueError("dataset must have records with answers by the assistant; there is none.")
        self.judge = judge
        self._responses: dict[str, list[Any]] = {}

    def list_evaluations(self) -> dict[str, Callable[[Subject], dict[str, Figure]]]:
        """The evaluations that apply, by name."""
        found = [evaluate for kind, evaluate in self._by_kind().items() if kind in self.turns]
        if len({digest(picture) for _, picture in self._pairs()}) > 1:
            found.append(self.retrieval)
        if len({turn.prompt for turn in self.turns.get(DRAWINGS, ())}) > 1:
            found.append(self.right_words)
        if self.judge is not None:
            found.append(self.judgements)
        return {evaluate.__name__: evaluate for evaluate in found}

    def _by_kind(self) -> dict[str, Callable[[Subject], dict[str, Figure]]]:
        return {CAPTIONS: self.captions, QUESTIONS: self.questions, DRAWINGS: self.drawings}

    def describe(self) -> str:
        """What the records hold, and what is therefore measured."""
        held = ", ".join(f"{len(turns)} {kind}" for kind, turns in self.turns.items())
        return f"The records hold {held}. Measured: {', '.join(self.list_evaluations())}."

    def captions(self, subject: Subject) -> dict[str, Figure]:
        """Compares captions with all right captions of the same picture."""
        check_libraries()  # before the model has answered
        groups = _group(self.turns[CAPTIONS], lambda turn: digest(turn.pictures[0]))
        said = self._respond(subject, CAPTIONS)
        references = [[str(self.turns[CAPTIONS][i].wanted) for i in group] for group in groups]
        return score_captions([said[group[0]] for group in groups], references)

    def questions(self, subject: Subject) -> dict[str, Figure]:
        """The share of answers that equal a right one (`exact`), or contain one (`contained`), after normalisation.

        The right answers of a question are those of all records with the same pictures and the same question.
        """
        turns, said = self.turns[QUESTIONS], self._respond(subject, QUESTIONS)
        exact, contained = [], []
        for group in _group(turns, _get_question):
            answer = normalize_answer(said[group[0]])
            right = {normalize_answer(str(turns[i].wanted)) for i in group}
            exact.append(answer in right)
            contained.append(any(f" {one} " in f" {answer} " for one in right if one) or answer in right)
        return {"exact": share(exact), "contained": share(contained)}

    def drawings(self, subject: Subject) -> dict[str, Figure]:
        """How often the right one of all wanted pictures is nearest to the drawing (`r1`) or in the nearest 5 (`r5`).

        Pictures are compared by the features of the model's own vision tower. So the figure shows whether a drawing
        resembles what was asked for, and not whether it is beautiful.
        """
        turns = self.turns[DRAWINGS]
        wanted = [show_wanted(subject.model, subject.processor, turn) for turn in turns]
        drawn = embed_pictures(subject, self._respond(subject, DRAWINGS))
        return _score_ranks("", drawn, embed_pictures(subject, wanted), _digest_all(wanted), _digest_all(wanted))

    def retrieval(self, subject: Subject) -> dict[str, Figure]:
        """Recall at 1 and at 5 of captions for pictures and of pictures for captions, by features of the model.

        Without captions, wanted drawings take the place of pictures, and their prompts that of captions.
        """
        texts, shown = zip(*self._pairs())
        pictures = [
            picture
            if isinstance(picture, Image.Image)
            else show_wanted(subject.model, subject.processor, Turn((), picture))
            for picture in shown
        ]
        names = _digest_all(pictures)
        first = {name: picture for name, picture in zip(names, pictures)}  # each picture once
        of_texts, of_pictures = embed_texts(subject, texts), embed_pictures(subject, list(first.values()))
        figures = _score_ranks("image_to_text_", of_pictures, of_texts, list(first), names)
        return figures | _score_ranks("text_to_image_", of_texts, of_pictures, names, list(first))

    def _pairs(self) -> list[tuple[str, Any]]:
        """Captions and their pictures, or prompts and the wanted drawings."""
        if CAPTIONS in self.turns:
            return [(str(turn.wanted), turn.pictures[0]) for turn in self.turns[CAPTIONS]]
        return [(turn.prompt, turn.wanted) for turn in self.turns.get(DRAWINGS, ())]

    @torch.no_grad()
    def right_words(self, subject: Subject) -> dict[str, Figure]:
        """Whether the wanted drawing is likelier after its own words than after those of another drawing.

        `likelier` is the share of drawings for which this holds, 0.5 by chance. `gap` is the mean difference of the
        losses, in nats per code.
        """
        turns = self.turns[DRAWINGS]
        order = subject.rng("right_words").permutation(len(turns)).tolist()
        pairs = []
        for place, i in enumerate(order):
            others = (order[(place + step) % len(order)] for step in range(1, len(order)))
            other = next(j for j in others if turns[j].prompt != turns[i].prompt)
            pairs.append((turns[i], turns[other]))
        drawings = [write_drawing(subject.model, subject.processor, turn.wanted) for turn, _ in pairs]
        right = score_drawings(subject, [turn for turn, _ in pairs], drawings)
        shuffled = score_drawings(subject, [other for _, other in pairs], drawings)
        gaps = [after - before for before, after in zip(right, shuffled)]
        return {"likelier": share(gap > 0 for gap in gaps), "gap": mean(gaps)}

    def judgements(self, subject: Subject) -> dict[str, Figure]:
        """The mean score of the judge, 0 to 1, for each kind. Responses without a verdict do not count."""
        figures = {}
        for kind, turns in self.turns.items():
            cases = [
                Case(turn.prompt, response, turn.pictures, (turn.wanted,) if isinstance(turn.wanted, str) else ())
                for turn, response in zip(turns, self._respond(subject, kind))
            ]
            assert self.judge is not None
            verdicts = [verdict for verdict in ask_judge(self.judge, cases) if verdict is not None]
            print(f"The judge has a verdict on {len(verdicts)} of {len(cases)} {kind}.")
            if verdicts:
                figures[kind] = mean(verdict.score for verdict in verdicts)
        return figures

    def draw_sheet(self, subject: Subject) -> Image.Image:
        """A page of drawings beside the wanted ones, and of answers beside the wanted ones, below their pictures."""
        shown = {kind: self._respond(subject, kind, SHOWN) for kind in self.turns}
        return draw_samples(subject.model, subject.processor, self.turns, shown)

    def _respond(self, subject: Subject, kind: str, first: int | None = None) -> list[Any]:
        """The responses of the model to the turns of a kind. Without `first`, they are kept for other evaluations."""
        if kind in self._responses:
            return self._responses[kind][:first]
        torch.manual_seed(subject.seed)
        responses = respond(
            subject.model,
            subject.processor,
            self.turns[kind][:first],
            subject.batch_size,
            kind,
            **subject.sampling,
        )
        if first is None:
            self._responses[kind] = responses
        return responses


def choose_records(records: Any, subject: Subject) -> list[Mapping[str, Any]]:
    """The records of `subject.items` rows at random, of all if there are fewer, or the first of a stream."""
    if not hasattr(records, "__len__"):
        return list(records.take(subject.items))
    rows = np.arange(len(records))
    if isinstance(records, LazyRecords):  # a captioned picture gives several records
        rows = np.unique(records.table[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
    chosen = subject.rng("dataset").permutation(rows.max() + 1)[: subject.items]
    return [records[int(index)] for index in np.flatnonzero(np.isin(rows, chosen))]


@torch.no_grad()
def score_drawings(subject: Subject, turns: Sequence[Turn], drawings: Sequence[str]) -> list[float]:
    """The mean loss of each drawing in nats per code, after the conversation of the turn at the same index.

    Args:
        drawings: each as the text of its codes.
    """
    model, processor, losses = subject.model, subject.processor, []
    start, codebook_size = model.config.image_code_start_id, model.config.codebook_size
    assert start is not None  # models that draw have one
    for first in _list_starts(len(turns), subject.batch_size):
        batch = turns[first : first + subject.batch_size]
        answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in drawings[first:]]
        chats = [[*write_messages(model, processor, turn), answer] for turn, answer in zip(batch, answers)]
        inputs = processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        tokens = inputs["input_ids"]
        begin = int((tokens[0] == model.config.boi_token_id).nonzero()[-1])  # the same in all rows: they end alike
        codes = tokens[:, begin + 1 : begin + 1 + model.config.num_codes] - start
        kept = tokens.shape[1] - begin  # begin-of-image predicts the first code
        logits = model(**inputs, logits_to_keep=kept, codes_only=True).logits[:, : model.config.num_codes].float()
        assert bool(((codes >= 0) & (codes < codebook_size)).all())
        losses += F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(1).tolist()
    return losses


@torch.no_grad()
def embed_pictures(subject: Subject, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Features of pictures, `(pictures, hidden_size)`, scaled to length 1."""
    features = []
    for first in _list_starts(len(pictures), subject.batch_size):
        batch = list(pictures[first : first + subject.batch_size])
        pixels = subject.processor.image_processor(batch, return_tensors="pt")["pixel_values"].to(subject.model.device)
        features.append(subject.model.get_image_features(pixels).image_embeds.float().cpu())
    return F.normalize(torch.cat(features), dim=-1)


@torch.no_grad()
def embed_texts(subject: Subject, texts: Sequence[str]) -> torch.Tensor:
    """Features of texts, `(texts, hidden_size)`, scaled to length 1."""
    features = []
    for first in _list_starts(len(texts), subject.batch_size):
        batch = list(texts[first : first + subject.batch_size])
        inputs = subject.processor(text=batch, padding=True, return_tensors="pt").to(subject.model.device)
        found = subject.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        features.append(found.pooler_output.float().cpu())
    return F.normalize(torch.cat(features), dim=-1)


def _list_starts(count: int, size: int) -> range:
    return range(0, count, size)


def _score_ranks(
    prefix: str, queries: torch.Tensor, gallery: torch.Tensor, wanted: Sequence[str], names: Sequence[str]
) -> dict[str, Figure]:
    """R@1 and R@5 of queries in a gallery whose entries `names[j]` are right for queries with `wanted[i]`."""
    ranked = (queries @ gallery.T).argsort(dim=1, descending=True)[:, : max(RANKS)].tolist()
    hits = [[names[j] == name for j in row] for row, name in zip(ranked, wanted, strict=True)]
    return {f"{prefix}r{rank}": share(any(row[:rank]) for row in hits) for rank in RANKS if rank < len(gallery)}


def _digest_all(pictures: Iterable[Image.Image]) -> list[str]:
    return [digest(picture) for picture in pictures]


def _group(items: Sequence[T], key: Callable[[T], Any]) -> list[list[int]]:
    """The indices of the items, those of equal keys together."""
    groups = defaultdict(list)
    for index, item in enumerate(items):
        groups[key(item)].append(index)
    return list(groups.values())


def _get_question(turn: Turn) -> tuple:
    messages = tuple((message["role"], str([p.get("text") for p in message["content"]])) for message in turn.messages)
    return messages, tuple(digest(picture) for picture in turn.pictures)


def draw_samples(
    model: Any, processor: Any, turns: Mapping[str, Sequence[Turn]], responses: Mapping[str, Sequence[Any]]
) -> Image.Image:
    """A page of responses: drawings beside the wanted ones, and texts below the pictures of their questions."""
    sections = []
    for kind, given in responses.items():
        items = []
        for turn, response in zip(turns[kind], given):
            if turn.draws:
                pictures = [*turn.pictures, response, show_wanted(model, processor, turn)]
                items.append(Item(pictures, [turn.prompt]))
            else:
                asked = [turn.prompt] if kind == QUESTIONS else []
                items.append(Item(list(turn.pictures), [*asked, f"said: {response}", f"wanted: {turn.wanted}"]))
        titles = {DRAWINGS: "Drawings, and the wanted pictures", CAPTIONS: "Captions", QUESTIONS: "Answers"}
        sections.append(Section(titles[kind], items, columns=4))
    return draw_page(sections)
