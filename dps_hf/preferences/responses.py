"""Samples several responses to each prompt, and adds the verdicts of a judge or of people."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from dps_hf.inference import complete, encode_drawing, make_conversation
from dps_hf.judges.verdict import Case, ComparingJudge, Judge, RewritingJudge, Verdict, apply_rewrite, ask_judge
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.preferences.prompts import Prompt


@dataclass(frozen=True)
class Response:
    """One response to a prompt.

    text: the response as trainers take it; a drawing is the text of its codes.
    content: the response as judges take it; a drawing is a picture.
    tokens: length in tokens.
    seed: seed of the batch in which it was sampled, -1 if it was not sampled.
    origin: "model", or who else wrote it.
    verdict: what the judge said; None before it was judged, or if the judge has no verdict.
    """

    text: str
    content: str | Image.Image
    tokens: int
    seed: int = -1
    origin: str = "model"
    verdict: Verdict | None = None

    @property
    def thinks(self) -> bool:
        """Whether it begins with thinking or planning aloud, which the prompt asks for."""
        return self.text.startswith("<think>")


# Sampling


def sample_responses(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    prompts: Sequence[Prompt],
    num_responses: int,
    seed: int,
    batch_size: int = 16,
    **generation: Any,
) -> list[list[Response]]:
    """`num_responses` responses to each prompt, or fewer to a prompt for a drawing if some end without a drawing.

    The i-th batch is sampled with seed `seed + i`, which its responses record: the same prompts give the same
    responses.

    Args:
        batch_size: number of prompts answered at a time. Prompts for answers and for drawings, with thinking and
            without, with pictures and without are in separate batches.
        generation: whatever `model.generate` takes, for example `temperature` or `guidance_scale`.
    """
    responses: list[list[Response]] = [[] for _ in prompts]
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        kinds.setdefault((prompt.draw, prompt.think, bool(prompt.images)), []).append(i)
    batches = [rows[i : i + batch_size] for rows in kinds.values() for i in range(0, len(rows), batch_size)]
    options = {"do_sample": True, **generation, "num_return_sequences": num_responses}
    for batch_seed, rows in enumerate(batches, seed):
        torch.manual_seed(batch_seed)
        chats = [make_conversation(prompts[row].text, prompts[row].images) for row in rows]
        draw, think = prompts[rows[0]].draw, prompts[rows[0]].think
        for i, (text, drawing) in enumerate(complete(model, processor, chats, draw, think, **options)):
            if not draw or drawing is not None:
                content = text if drawing is None else drawing
                response = Response(text, content, _count_tokens(processor, text), batch_seed)
                responses[rows[i // num_responses]].append(response)
    return responses


def _count_tokens(processor: DPSProcessor, text: str) -> int:
    return len(processor.tokenizer(text)["input_ids"])


# Judging


def judge_responses(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    refine_margin: float | None = None,
) -> list[list[Response]]:
    """The responses with the verdicts of a judge, which is called once for all of them.

    Args:
        refine_margin: if given, the judge also rewrites answers. A rewrite whose score is higher by at least this much
            becomes a response of its own; its origin says who wrote it.

    Raises:
        TypeError: `refine_margin` with a judge that is no [`~dps_hf.judges.verdict.RewritingJudge`].
    """
    cases = [_make_case(prompt, response) for prompt, group in zip(prompts, responses) for response in group]
    if refine_margin is None:
        verdicts = ask_judge(judge, cases)
    elif isinstance(judge, RewritingJudge):
        verdicts = judge.refine(cases, refine_margin)
    else:
        raise TypeError(f"refine_margin needs a judge with a method refine; got {judge!r}. Leave it out.")
    better = [apply_rewrite(case, v) if v and v.rewrite else None for case, v in zip(cases, verdicts)]
    scored = iter(judge([case for case in better if case]) if any(better) else ())
    remaining = iter(zip(verdicts, better))
    groups = []
    for group in responses:
        results = []
        for response, (verdict, case) in zip(group, remaining):
            results.append(replace(response, verdict=verdict))
            if case is not None and isinstance(case.response, str):
                # In proportion to the letters: there is no tokenizer here.
                length = max(1, round(response.tokens * len(case.response) / max(1, len(response.text))))
                results.append(Response(case.response, case.response, length, -1, case.origin, next(scored)))
        groups.append(results)
    return groups


def compare_responses(
    judge: ComparingJudge, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]
) -> list[list[Response]]:
    """The responses, each scored with the share of comparisons that it wins against the others to its prompt.

    A tie is half a win. Every two different responses are compared; equal ones count as one. A response has no verdict
    if none of its comparisons has one.
    """
    distinct = [list({response.text: response for response in group}.values()) for group in responses]
    couples = [
        (_make_case(prompt, a), _make_case(prompt, b))
        for prompt, group in zip(prompts, distinct)
        for a, b in combinations(group, 2)
    ]
    outcomes = iter(judge.compare([a for a, _ in couples], [b for _, b in couples]))
    groups = []
    for group, different in zip(responses, distinct):
        verdicts: dict[str, list[Verdict]] = {response.text: [] for response in different}
        for a, b in combinations(different, 2):
            if (outcome := next(outcomes)) is not None:
                verdicts[a.text].append(outcome[0])
                verdicts[b.text].append(outcome[1])
        groups.append([replace(response, verdict=_average(verdicts[response.text])) for response in group])
    return groups


def _average(verdicts: Sequence[Verdict]) -> Verdict | None:
    if not verdicts:
        return None
    scores = {aspect: fmean(verdict.scores[aspect] for verdict in verdicts) for aspect in verdicts[0].scores}
    return replace(verdicts[0], scores=scores, rationale="\n".join(verdict.rationale for verdict in verdicts))


def _make_case(prompt: Prompt, response: Response) -> Case:
    return Case(prompt.text, response.content, prompt.images, prompt.answers, response.origin, prompt.steps)


def group_votes(
    votes: Sequence[tuple[Case, Verdict]], model: DPSForConditionalGeneration, processor: DPSProcessor
) -> tuple[list[Prompt], list[list[Response]]]:
    """Votes, as [`~dps_hf.judges.votes.read_votes`] returns them, as prompts and the responses to each prompt.

    Drawings keep the codes in their `info`; other pictures are encoded by the model's image tokenizer.
    """
    groups: dict[str, tuple[Prompt, list[Response]]] = {}
    for case, verdict in votes:
        draw = isinstance(case.response, Image.Image)
        prompt = Prompt(case.prompt, case.images, case.answers, draw, task="votes")
        content = case.response
        text = content if isinstance(content, str) else encode_drawing(model, processor, content)
        tokens = _count_tokens(processor, text)
        response = Response(text, content, tokens, origin=case.origin, verdict=verdict)
        groups.setdefault(prompt.key, (prompt, []))[1].append(response)
    return [prompt for prompt, _ in groups.values()], [responses for _, responses in groups.values()]
