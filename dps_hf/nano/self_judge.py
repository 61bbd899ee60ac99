"""The model as the judge of its own drawings: it describes them, without seeing the prompts."""

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from dps_hf.inference import ask
from dps_hf.judges.verdict import Case, Verdict
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.nano.emoji import QUESTIONS
from dps_hf.nano.exact_judge import find_emoji, score_scene
from dps_hf.nano.wording import DESCRIBE, parse_caption, parse_wish, strip_request


class SelfJudge:
    """Describes each drawing, emoji in the language of the prompt, and compares the description with the prompt.

    Scenes have the aspects of [`~dps_hf.nano.exact_judge.exact_judge`], without the places of things. Everything else
    has the aspect "words", the F1 score of the words of description and prompt. There is no verdict on responses in
    words, nor on a scene whose description is no caption.

    Args:
        model, processor: as [`dps_hf.inference.load`] gives them.
        batch_size: number of drawings described at a time.
    """

    def __init__(self, model: DPSForConditionalGeneration, processor: DPSProcessor, batch_size: int = 32):
        self.name = "self"
        self._model, self._processor, self._batch_size = model, processor, batch_size

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        drawings = {i: case.response for i, case in enumerate(cases) if isinstance(case.response, Image.Image)}
        wanted, questions = {}, []
        for i in drawings:
            wanted[i], language = _describe_wanted(cases[i].prompt)
            questions.append(QUESTIONS[language][0] if language else DESCRIBE["en"][0])
        pictures = list(drawings.values())
        answers = ask(self._model, self._processor, questions, pictures, batch_size=self._batch_size)
        described = dict(zip(drawings, answers))
        return [
            self._verdict(case, wanted[i], described[i].text) if i in described else None
            for i, case in enumerate(cases)
        ]

    def _verdict(self, case: Case, wanted: str, description: str) -> Verdict | None:
        wish, seen = parse_wish(wanted), parse_caption(description)
        if wish is None and description:
            scores = {"words": _share_of_words(wanted, description)}
        elif wish is not None and seen is not None:
            scores = score_scene(seen, wish.kinds)[0]
        else:
            return None
        return Verdict(scores, f"I see: {description}", self.name, case.origin)


def _describe_wanted(prompt: str) -> tuple[str, str | None]:
    """What the drawing should show; and the language, if it is the name of an emoji."""
    asked = find_emoji(prompt)
    return (asked[0].names[asked[1]], asked[1]) if asked else (strip_request(prompt), None)


def _share_of_words(a: str, b: str) -> float:
    one, other = (Counter(word.strip(".,:;!?") for word in text.casefold().split()) for text in (a, b))
    return 2 * (one & other).total() / max(1, one.total() + other.total())
