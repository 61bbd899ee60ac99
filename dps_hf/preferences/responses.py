"""What a model answers and draws, several times for each prompt, and what a judge says of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from datasets import Dataset
from PIL import Image

from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.data.record import Message, Record, pictures_of, validate
from dps_hf.data.sources import IMAGE_PROCESSOR, leave_unopened, open_pictures, read_dataset
from dps_hf.inference import MAX_NEW_TOKENS, code_rows, drawing_text
from dps_hf.judges.openai import OpenAIJudge
from dps_hf.judges.verdict import Case, Judge, Verdict, control_token, rewritten
from dps_hf.model.image_processing_dps import to_rgb
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


PATIENCE = 1000  # records in a row of tasks, which have no end, that ask what was asked before


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    text: its words. images: what is shown before them. answers: the right ones, where they are known, and `steps` to them.
    draw: whether a drawing is wanted. think: whether the model thinks or plans aloud first.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    answers: tuple[str, ...] = ()
    draw: bool = False
    think: bool = False
    task: str = ""
    steps: str = ""

    @property
    def key(self) -> str:
        """Of what the model is shown, 64 hex digits."""
        pixels = b"".join(repr(image.size).encode() + to_rgb(image).tobytes() for image in self.images)
        return sha256(repr((self.text, self.draw, self.think)).encode() + pixels).hexdigest()

    @cached_property
    def encoded_images(self) -> list[dict]:
        """The pictures as `datasets` keeps them, encoded once for all rows."""
        encoded = []
        for image in self.images:
            buffer = BytesIO()
            to_rgb(image).save(buffer, format="PNG")  # PNG has no CMYK
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        return encoded


@dataclass(frozen=True)
class Response:
    """One response to a prompt.

    text: as trainers take it, a drawing as the text of its codes. content: as judges take it, a drawing as a picture.
    tokens: its length. seed: of the batch that it was sampled in; -1 where it was not. origin: "model", or who wrote it.
    verdict: what the judge said; None before, and where there is none to be had.
    """

    text: str
    content: str | Image.Image
    tokens: int
    seed: int = -1
    origin: str = "model"
    verdict: Verdict | None = None

    @property
    def thinks(self) -> bool:
        """Whether it begins by thinking aloud, or planning: that is asked for by the prompt."""
        return self.text.startswith("<think>")


def prompts_of(
    records: Iterable[Record], think: Iterable[str] = (), task: str = "", patience: int = PATIENCE
) -> Iterator[Prompt]:
    """The last question of each record by itself, each only once; those of the tasks in `think` are thought about.

    Args:
        task: of records that say none.
        patience: so many records in a row that ask what was asked before are the end: there is nothing new.
    """
    seen, think, known = set(), frozenset(think), 0
    for record in records:
        *before, question = record["messages"]
        answer: Message = {"role": "assistant", "content": []}  # a question alone is one whose answer is not known
        if question["role"] == "assistant":
            *before, question, answer = record["messages"]
        words = [part["text"] for part in question["content"] if part["type"] == "text"]
        texts = [part["text"] for part in answer["content"] if part["type"] == "text"]
        worked = [DPSProcessor.split_thinking(text) for text in texts]
        start, shown = _pictures_in(*before), _pictures_in(question)
        name = record.get("task") or task
        prompt = Prompt(
            text="".join(words),
            images=tuple(pictures_of(record)[start : start + shown]),
            answers=tuple(right for _, right in worked),
            draw=_pictures_in(answer) > 0,
            think=name in think,
            task=name,
            steps=record.get("steps") or next((steps for steps, _ in worked if steps), ""),
        )
        known = known + 1 if prompt.key in seen else 0
        if known == patience:
            return
        if not known:
            seen.add(prompt.key)
            yield prompt


def _pictures_in(*messages: Message) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def task_prompts(weights: Mapping[str, float], seed: int, think: Iterable[str] = ()) -> Iterator[Prompt]:
    """Questions of tasks as a [`~dps_hf.data.mixture.Mixture`] has them, without help, each only once."""
    guidance = dict.fromkeys(map(name_of, weights), Schedule({"none": 1}))
    return prompts_of(Mixture(weights, seed, guidance=guidance).stream(), think)


def read_prompts(path: Path, think: Iterable[str] = ()) -> Iterator[Prompt]:
    """Prompts of one's own, each only once; those of the tasks in `think` are thought about.

    Args:
        path: a text file with a prompt for a drawing on each line, empty lines being left out; or a folder of records that
            `datasets` saved, whose questions are asked. Who gives no task has that of the name of the file or folder.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: no line has words, the file is not UTF-8, or the folder has several splits or no records; or a line or a
            record is wrong, for example a control token in its words, and its number is named.
    """
    if not path.is_dir():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"prompts must name a file in UTF-8; {path} is not ({error}). Save it as UTF-8."
            ) from None
        lines = [line.strip() for line in text.splitlines()]
        if not any(lines):
            raise ValueError(f"prompts must name a file with a prompt for a drawing on each line; {path} has none.")
        for i, line in enumerate(lines, 1):
            if name := control_token(line):
                raise ValueError(
                    f"line {i} of {path} must not hold control tokens; got {name!r}. Write it in other words."
                )
        for line in dict.fromkeys(filter(None, lines)):
            yield Prompt(line, draw=True, think=path.stem in think, task=path.stem)
        return

    dataset = leave_unopened(read_dataset(path, "prompts"))
    yield from prompts_of(_checked(dataset, path), think, path.name, patience=len(dataset))


def _checked(dataset: Dataset, path: Path) -> Iterator[Record]:
    for i in range(len(dataset)):
        try:
            one = dataset[i]
            validate(one)
            one["images"] = open_pictures(one, IMAGE_PROCESSOR)
            if "user" not in [message["role"] for message in one["messages"][-2:]]:
                raise ValueError("'messages' must end with a question of the user, or with one and its answer.")
            for part in one["messages"][-1 if one["messages"][-1]["role"] == "user" else -2]["content"]:
                if name := control_token(part.get("text") or ""):
                    raise ValueError(
                        f"a question must not hold control tokens; got {name!r}. Write it in other words."
                    )
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"record {i} of {path}: {error}") from error
        yield one


# Sampling


@torch.no_grad()
def sample(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    prompts: Sequence[Prompt],
    num_responses: int,
    seed: int,
    batch_size: int = 16,
    **generation,
) -> list[list[Response]]:
    """`num_responses` responses to each prompt, fewer where one did not come to its drawing.

    The i-th batch is sampled with seed `seed + i`, which its responses record: the same prompts give the same responses.

    Args:
        batch_size: prompts answered at a time, all of one kind.
        generation: whatever `model.generate` takes, for example a `temperature` or a `guidance_scale`.
    """
    responses: list[list[Response]] = [[] for _ in prompts]
    kinds: dict[tuple, list[int]] = {}
    for i, prompt in enumerate(prompts):  # a batch has pictures in each of its prompts or in none
        kinds.setdefault((prompt.draw, prompt.think, bool(prompt.images)), []).append(i)
    batches = [rows[i : i + batch_size] for rows in kinds.values() for i in range(0, len(rows), batch_size)]
    for offset, rows in enumerate(batches):
        torch.manual_seed(seed + offset)
        batch = _sample([prompts[row] for row in rows], model, processor, num_responses, generation)
        for i, response in enumerate(batch):
            if response is not None:
                responses[rows[i // num_responses]].append(replace(response, seed=seed + offset))
    return responses


def _sample(prompts: list[Prompt], model, processor, num_responses: int, generation: dict) -> list[Response | None]:
    """Of prompts of one kind; the responses to one prompt stand together."""
    draw, think = prompts[0].draw, prompts[0].think
    chats = [[{"role": "user", "content": _content(prompt)}] for prompt in prompts]
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        enable_thinking=think,
    ).to(model.device)
    mode = "text" if not draw else "interleaved" if think else "image"
    length = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
    length += model.config.num_drawing_tokens + 2 if draw else 0  # begin and end of image
    options = {"do_sample": True, "max_new_tokens": length, **generation, "num_return_sequences": num_responses}
    tokens = model.generate(**inputs, **options, generation_mode=mode)[:, inputs["input_ids"].shape[1] :]
    begun = "<think>" if think else ""  # the prompt ends in it
    if not draw:
        texts = processor.post_process_multimodal_output(tokens)
        return [_in_words(processor, begun + text) for text in texts]

    codes = _codes(tokens, model)
    whole = [row for row in codes if row is not None]
    pictures = iter(_pictures(model, processor, torch.stack(whole)) if whole else ())
    responses: list[Response | None] = []
    for row, drawing in zip(tokens, codes):
        if drawing is None:
            responses.append(None)
            continue
        start = int((row == model.config.boi_token_id).nonzero()[-1])
        plan = begun + processor.tokenizer.decode(row[:start], skip_special_tokens=True)
        text = plan + processor.drawing_text(drawing)
        responses.append(Response(text, next(pictures), _length(processor, text)))
    return responses


def _content(prompt: Prompt) -> list[dict]:
    return [*({"type": "image", "image": image} for image in prompt.images), {"type": "text", "text": prompt.text}]


def _codes(tokens: torch.Tensor, model) -> list[torch.Tensor | None]:
    """The last drawing of each row, `(num_codes,)`; None where there is no whole one."""
    count = model.config.num_codes
    return [row[-count:] if len(row) >= count else None for row in code_rows(model, tokens)]


def _pictures(model, processor, codes: torch.Tensor) -> list[Image.Image]:
    pixels = model.decode_image_tokens(codes.to(model.device))
    return processor.post_process_multimodal_output(pixels, generation_mode="image")


def _length(processor, text: str) -> int:
    return len(processor.tokenizer(text)["input_ids"])


def _in_words(processor, text: str) -> Response:
    return Response(text, text, _length(processor, text))


# Judging


def judged(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    refine_margin: float | None = None,
) -> list[list[Response]]:
    """The responses with the verdicts of a judge, all asked for in one call.

    With `refine_margin` an [`OpenAIJudge`] also rewrites answers: a rewrite that it scores by this much better than the
    answer becomes a response of its own, whose origin says who wrote it.

    Raises:
        TypeError: `refine_margin` with a judge that cannot rewrite.
    """
    cases = [_case(prompt, response) for prompt, group in zip(prompts, responses) for response in group]
    if refine_margin is None:
        verdicts = judge(cases)
    elif isinstance(judge, OpenAIJudge):
        verdicts = judge.refine(cases, refine_margin)
    else:
        raise TypeError(f"refine_margin needs an OpenAIJudge; got {judge!r}. Leave it out.")
    better = [rewritten(case, v) if v and v.rewrite else None for case, v in zip(cases, verdicts)]
    scored = iter(judge([case for case in better if case]) if any(better) else ())  # from the cache
    remaining = iter(zip(verdicts, better))
    groups = []
    for group in responses:
        results = []
        for response, (verdict, case) in zip(group, remaining):
            results.append(replace(response, verdict=verdict))
            if case is not None and isinstance(case.response, str):
                # Four letters a token: no rewrite is measured by a tokenizer that may not be at hand.
                length = max(1, round(response.tokens * len(case.response) / max(1, len(response.text))))
                results.append(Response(case.response, case.response, length, -1, case.origin, next(scored)))
        groups.append(results)
    return groups


def compared(
    judge: OpenAIJudge, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]
) -> list[list[Response]]:
    """The responses with the share of comparisons that each wins among those to its prompt, a tie being half a win.

    Every two different ones are compared in both orders, equal ones once. Where no comparison of a response came to a
    verdict, it has none.
    """
    distinct = [list({response.text: response for response in group}.values()) for group in responses]
    couples = [
        (_case(prompt, a), _case(prompt, b))
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
        groups.append([replace(response, verdict=_mean(verdicts[response.text])) for response in group])
    return groups


def _mean(verdicts: Sequence[Verdict]) -> Verdict | None:
    if not verdicts:
        return None
    scores = {aspect: fmean(verdict.scores[aspect] for verdict in verdicts) for aspect in verdicts[0].scores}
    return replace(verdicts[0], scores=scores, rationale="\n".join(verdict.rationale for verdict in verdicts))


def _case(prompt: Prompt, response: Response) -> Case:
    return Case(prompt.text, response.content, prompt.images, prompt.answers, response.origin, prompt.steps)


def voted(
    votes: Sequence[tuple[Case, Verdict]], model: DPSForConditionalGeneration, processor: DPSProcessor
) -> tuple[list[Prompt], list[list[Response]]]:
    """What people voted on, as `read_votes` gives it, by prompt: the i-th responses are those to the i-th prompt.

    Drawings keep the codes that they know; other pictures become drawings of the model, by its image tokenizer.
    """
    groups: dict[str, tuple[Prompt, list[Response]]] = {}
    for case, verdict in votes:
        draw = isinstance(case.response, Image.Image)
        prompt = Prompt(case.prompt, case.images, case.answers, draw, task="votes")
        if isinstance(case.response, str):
            response = _in_words(processor, case.response)
        else:
            text = drawing_text(model, processor, case.response)
            response = Response(text, case.response, _length(processor, text))
        response = replace(response, origin=case.origin, verdict=verdict)
        groups.setdefault(prompt.key, (prompt, []))[1].append(response)
    return [prompt for prompt, _ in groups.values()], [responses for _, responses in groups.values()]
