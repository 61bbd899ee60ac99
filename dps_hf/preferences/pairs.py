"""Rows that trl's trainers take: a better and a worse response to one prompt, or one response that is good or bad."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from statistics import fmean

from datasets import Features, Image, List, Value

from dps_hf.judges.verdict import Verdict
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response


ROUNDING = 1e-9  # scores are sums of decimals

_CHAT = List({"role": Value("string"), "content": Value("string")})
_ABOUT = {"score": Value("float32"), "aspects": Value("string"), "origin": Value("string"), "tokens": Value("int32")}
_COMMON = {
    "images": List(Image()),
    "chat_template_kwargs": {"enable_thinking": Value("bool")},  # trl renders the prompt with them
    "judge": Value("string"),
    "seed": Value("int64"),
    "task": Value("string"),
}

PAIRED = Features(
    {"prompt": _CHAT, "chosen": _CHAT, "rejected": _CHAT}
    | {f"{name}_{side}": kind for side in ("chosen", "rejected") for name, kind in _ABOUT.items()}
    | _COMMON
)
"""For DPO. `aspects` are JSON, `seed` is that of the chosen response."""

UNPAIRED = Features({"prompt": _CHAT, "completion": _CHAT, "label": Value("bool")} | _ABOUT | _COMMON)
"""For KTO."""


@dataclass(frozen=True)
class Selection:
    """Which pairs are made, and which responses are good.

    aspect: the aspect whose score counts; if left out, the mean of all aspects.
    margin: by how much the score of the chosen response must be higher.
    max_pairs: at most so many pairs of one prompt.
    max_length_ratio: at most so many times may one response be as long as the other, in tokens; else trainers learn
        length.
    good: responses with at least this score are labelled good.
    bad: responses with at most this score are labelled bad; those between `bad` and `good` are left out.
    only_good: whether the chosen response must be good, for trainers that make it likelier whatever was rejected.

    Raises:
        ValueError: a number is out of its range.
    """

    aspect: str | None = None
    margin: float = 0.1
    max_pairs: int = 4
    max_length_ratio: float = 2.0
    good: float = 0.9
    bad: float = 0.5
    only_good: bool = False

    def __post_init__(self):
        if not 0 < self.margin <= 1:
            raise ValueError(f"margin must be above 0 and at most 1, as scores are; got {self.margin}.")
        if self.max_pairs < 1 or self.max_length_ratio < 1:
            raise ValueError(
                f"max_pairs and max_length_ratio must be at least 1; got {self.max_pairs}, {self.max_length_ratio}."
            )
        if self.bad >= self.good:
            raise ValueError(f"bad must be below good; got {self.bad} and {self.good}.")

    def score(self, response: Response) -> float | None:
        """None where the judge said nothing, or nothing of this aspect."""
        if response.verdict is None:
            return None
        return response.verdict.score if self.aspect is None else response.verdict.scores.get(self.aspect)


def make_pairs(
    responses: Sequence[Response], selection: Selection, counts: Counter[str] | None = None
) -> list[tuple[Response, Response]]:
    """Pairs of a better and a worse response to one prompt.

    Equal texts count as one response. The next pair is always that whose two responses are in the fewest pairs so far,
    and among those the pair with the widest margin. So every good response is chosen, and none is in every pair.

    Args:
        counts: what became of the responses is added here: "responses", "unjudged", "duplicates", "ties" (pairs of
            responses, within the margin), "one thinks", "unequal lengths", "none good" (pairs of responses), "pairs".
    """
    counts = Counter() if counts is None else counts
    distinct = _keep_distinct(responses, selection)
    unjudged = sum(selection.score(response) is None for response in responses)
    counts.update(
        {
            "responses": len(responses),
            "unjudged": unjudged,
            "duplicates": len(responses) - unjudged - len(distinct),
        }
    )
    possible = []
    for (better, high), (worse, low) in permutations(distinct, 2):
        lead = high - low
        if lead < 0 or (lead == 0 and better.text > worse.text):
            continue  # the two come in the other order, too
        if better.thinks != worse.thinks:
            counts["one thinks"] += 1  # they do not continue the same prompt
            continue
        # 0.7 - 0.6 must reach a margin of 0.1.
        if lead < selection.margin - ROUNDING:
            counts["ties"] += 1
        elif selection.only_good and high < selection.good - ROUNDING:
            counts["none good"] += 1
        elif max(better.tokens, worse.tokens) > selection.max_length_ratio * min(better.tokens, worse.tokens):
            counts["unequal lengths"] += 1
        else:
            possible.append((lead, better, worse))
    pairs: list[tuple[Response, Response]] = []
    used: Counter[str] = Counter()
    while possible and len(pairs) < selection.max_pairs:
        best = min(possible, key=lambda p: (used[p[1].text] + used[p[2].text], -p[0]))
        possible.remove(best)
        pairs.append(best[1:])
        used.update(response.text for response in best[1:])
    counts["pairs"] += len(pairs)
    return pairs


def make_paired_rows(
    prompt: Prompt, responses: Sequence[Response], selection: Selection, counts: Counter[str] | None = None
) -> list[dict]:
    """One row of `PAIRED` for each pair."""
    scores = {response.text: score for response, score in _keep_distinct(responses, selection)}
    return [
        {
            **_make_prompt_fields(prompt, chosen),
            "chosen": _make_messages(chosen),
            "rejected": _make_messages(rejected),
            **{f"{name}_chosen": value for name, value in _make_response_fields(chosen, scores[chosen.text]).items()},
            **{
                f"{name}_rejected": value
                for name, value in _make_response_fields(rejected, scores[rejected.text]).items()
            },
        }
        for chosen, rejected in make_pairs(responses, selection, counts)
    ]


def make_unpaired_rows(
    prompt: Prompt, responses: Sequence[Response], selection: Selection, counts: Counter[str] | None = None
) -> list[dict]:
    """One row of `UNPAIRED` for each response that is clearly good or bad, equal ones once."""
    counts = Counter() if counts is None else counts
    rows = []
    for response, score in _keep_distinct(responses, selection):
        good = score >= selection.good - ROUNDING
        if not good and score > selection.bad + ROUNDING:
            continue
        counts["good" if good else "bad"] += 1
        rows.append(
            {
                **_make_prompt_fields(prompt, response),
                "completion": _make_messages(response),
                "label": good,
                **_make_response_fields(response, score),
            }
        )
    return rows


def _keep_distinct(responses: Sequence[Response], selection: Selection) -> list[tuple[Response, float]]:
    """Responses with different texts and their scores, which are means over all verdicts on the same text.

    So if ten people vote on one answer, each of them counts.
    """
    verdicts: dict[str, list[Verdict]] = {}
    scores: dict[str, list[float]] = {}
    first: dict[str, Response] = {}
    for response in responses:
        score = selection.score(response)
        if score is not None and response.verdict is not None:
            first.setdefault(response.text, response)
            verdicts.setdefault(response.text, []).append(response.verdict)
            scores.setdefault(response.text, []).append(score)
    distinct = []
    for text, response in first.items():
        aspects = dict.fromkeys(aspect for verdict in verdicts[text] for aspect in verdict.scores)
        means = {a: fmean(v.scores[a] for v in verdicts[text] if a in v.scores) for a in aspects}
        # Not the mean of these means: nine thumbs must not weigh as much as the one rating beside them.
        mean = fmean(scores[text])
        distinct.append((replace(response, verdict=replace(verdicts[text][0], scores=means)), mean))
    return distinct


def _make_prompt_fields(prompt: Prompt, response: Response) -> dict:
    assert response.verdict is not None  # or it had no score
    return {
        # trl puts the pictures before the words
        "prompt": [{"role": "user", "content": prompt.text}],
        "images": prompt.encoded_images,
        # The chat template then ends the prompt with <think>, so that it is not part of what is learned.
        "chat_template_kwargs": {"enable_thinking": response.thinks},
        "judge": response.verdict.judge,
        "seed": response.seed,
        "task": prompt.task,
    }


def _make_messages(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]


def _make_response_fields(response: Response, score: float) -> dict:
    assert response.verdict is not None
    return {
        "score": score,
        "aspects": json.dumps({name: round(score, 6) for name, score in response.verdict.scores.items()}),
        "origin": response.origin,
        "tokens": response.tokens,
    }
