"""Judges scenes, emoji and facts by rules: the detector and lists of names, without a model.

verdicts = exact_judge([Case("a big red star", drawing), Case("What is the capital of France?", "Paris.")])
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image

from dps_hf.evaluation.metrics import compute_squared_distances, name_match, pool
from dps_hf.judges.verdict import Case, Verdict
from dps_hf.model.image_processing_dps import to_rgb
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.nano import emoji
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.facts import BACKWARD, FORWARD, read_capitals
from dps_hf.nano.scenes import IMAGE_SIZE
from dps_hf.nano.wording import LANGUAGES, Kind, Wish, parse_caption, parse_wish, say, strip_request


_SENTENCE = re.compile(r"(?<=[.:])\s+")
_STYLED = re.compile(rf"(.+), ({'|'.join(emoji.STYLES.values())}) style", re.DOTALL)


def exact_judge(cases: Sequence[Case]) -> list[Verdict | None]:
    """Scores what rules can check; every other case has no verdict.

    Scenes have a caption or the relation of two things as their prompt, in one of four languages. Their aspects are
    "exact", and the F1 score of "things", "shapes" and "colours", wherever these are in the drawing.

    Emoji have the prompt "NAME, STYLE style". Their aspects are "exact", 1 if no emoji of the style is nearer to the
    drawing, and "likeness", the share of those emoji that are further away.

    Texts have the aspect "exact", by the case's `answers` or by the list of facts. If the right answer is the caption
    of a scene, the text is scored like a drawing of that scene.

    If the case has `steps`, an answer with thinking also has the aspect "steps", the F1 score of its sentences, since
    wrong steps may lead to a right answer (Lightman et al. 2023, https://huggingface.co/papers/2305.20050).

    Raises:
        ImportError: pyarrow is missing, and a case asks for an emoji.
    """
    return [_judge_case(case) for case in cases]


def _judge_case(case: Case) -> Verdict | None:
    if isinstance(case.response, str):
        thinking, answer = DPSProcessor.split_thinking(case.response)
        found = _judge_text(case, answer)
        # Thinking without any step scores 0; else no steps would be better than one wrong step.
        if found and case.steps and (thinking or case.response.lstrip().startswith("<think>")):
            found[0]["steps"] = score_steps(thinking, case.steps)
    else:
        found = _judge_drawing(case.prompt, case.response)
    return found and Verdict(*found, judge="exact", origin=case.origin)


Judgement = tuple[dict[str, float], str] | None
"""Scores and rationale."""


def _judge_drawing(prompt: str, drawing: Image.Image) -> Judgement:
    wish = parse_wish(prompt)
    if wish:
        return _judge_scene(wish, drawing)
    asked = find_emoji(prompt)
    return asked and _judge_emoji(asked[0], drawing)


def _judge_text(case: Case, answer: str) -> Judgement:
    names = case.answers or _read_answers().get(case.prompt.strip(), ())
    if not names:
        return None
    things = parse_caption(names[0]) if len(names) == 1 else None
    if things is not None:
        return score_scene(parse_caption(answer) or Counter(), things)
    return {"exact": float(name_match(answer, names))}, f"right: {' or '.join(names)}"


def score_steps(thinking: str, steps: str) -> float:
    """F1 score of the sentences of two texts; a sentence ends in a full stop or a colon."""
    said, right = (Counter(_SENTENCE.split(text.strip())) for text in (thinking, steps))
    return 2 * (said & right).total() / (said.total() + right.total())


# Scenes


def _judge_scene(wish: Wish, drawing: Image.Image) -> Judgement:
    found = detect(drawing)
    scores, rationale = score_scene(Counter((thing.size, thing.colour, thing.shape) for thing in found), wish.kinds)
    where = f"; wanted {say(wish)}" if wish.relation else ""
    return {**scores, "exact": float(fulfils(found, wish))}, rationale + where


def score_scene(found: Counter[Kind], wanted: Counter[Kind]) -> tuple[dict[str, float], str]:
    """F1 scores of whole things, of shapes and of colours, and the rationale.

    A wanted size of None stands for any size. "exact" is 1 if nothing is missing and nothing is superfluous.
    """
    left, hits, total = Counter(found), 0, found.total() + wanted.total()
    # Things with a size first: the others may be matched with any that remain.
    for size, *rest in sorted(wanted.elements(), key=lambda kind: kind[0] is None):
        match = next((kind for kind in +left if [*kind[1:]] == rest and size in (None, kind[0])), None)
        if match is not None:
            left[match] -= 1
            hits += 1
    scores = {"exact": float(2 * hits == total), "things": 2 * hits / total}
    for field, name in ((2, "shapes"), (1, "colours")):
        a, b = (Counter(kind[field] for kind in kinds.elements()) for kinds in (found, wanted))
        scores[name] = 2 * (a & b).total() / total
    return scores, f"wanted {_list_things(wanted)}; found {_list_things(found)}"


def _list_things(kinds: Counter[Kind]) -> str:
    return ", ".join(f"{n} {' '.join(filter(None, kind))}" for kind, n in kinds.items()) or "nothing"


# Names


@cache
def _read_answers() -> Mapping[str, Sequence[str]]:
    answers: dict[str, tuple[str]] = {}
    for language in LANGUAGES:
        for country, capital in read_capitals(language).items():
            answers |= {question.format(country): (capital,) for question in FORWARD[language]}
            answers |= {question.format(capital): (country,) for question in BACKWARD[language]}
    return answers


def find_emoji(prompt: str) -> tuple[emoji.Pair, str] | None:
    """The emoji that a prompt asks for, and the language of its name; None if it asks for none."""
    # First the whole prompt: some names begin with the words of a request.
    for wanted in (prompt.strip(), strip_request(prompt)):
        if _STYLED.fullmatch(wanted) and (found := _index_emoji().get(wanted.casefold())):
            return found
    return None


@cache
def _index_emoji() -> dict[str, tuple[emoji.Pair, str]]:
    named: dict[str, tuple[emoji.Pair, str]] = {}
    for language in emoji.QUESTIONS:  # English first: it keeps a name that two languages share
        for pair in emoji.read_pairs():
            prompt = f"{pair.names[language]}, {emoji.STYLES[pair.style]} style"
            named.setdefault(prompt.casefold(), (pair, language))
    return named


def _judge_emoji(pair: emoji.Pair, drawing: Image.Image) -> Judgement:
    rows, candidates = _make_gallery(pair.style)
    size = to_rgb(drawing).resize((IMAGE_SIZE, IMAGE_SIZE))
    distances = compute_squared_distances(pool([size]), candidates)[0]
    right = rows.index(pair.index)
    others = np.delete(distances, right)
    scores = {"exact": float(distances[right] <= others.min()), "likeness": float((others > distances[right]).mean())}
    return scores, f"nearest of the style: {emoji.read_pairs()[rows[int(distances.argmin())]].names['en']}"


@cache
def _make_gallery(style: str) -> tuple[list[int], np.ndarray]:
    rows = [pair.index for pair in emoji.read_pairs() if pair.style == style]
    return rows, pool(emoji.read_pictures()[rows])
