"""A judge that asks a model behind a server of the OpenAI chat protocol, such as OpenAI's own, vLLM or llama-server.

judge = OpenAIJudge("gpt-5-mini", "answer", "runs/verdicts.jsonl", max_calls=2000)
verdicts = judge([Case("What is the capital of France?", "Paris.")])
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dps_hf.judges.rubric import compute_digest, restore
from dps_hf.judges.server import Server
from dps_hf.judges.verdict import Case, Verdict, apply_rewrite, find_control_token


class OpenAIJudge(Server):
    """Scores, compares and rewrites responses by a rubric.

    Arguments, counts and errors are those of [`~dps_hf.judges.server.Server`]. A verdict is None if there is no reply,
    or none that can be read.
    """

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """Scores each case by itself.

        Raises:
            RuntimeError, OSError: as [`~dps_hf.judges.server.Server.ask`].
        """
        replies = self.ask([self.rubric.question("score", self.name, case) for case in cases])
        return [reply and self._verdict(case, reply) for case, reply in zip(cases, replies)]

    def _verdict(self, case: Case, reply: Any) -> Verdict:
        scores = {aspect: self.rubric.scale(getattr(reply, aspect)) for aspect in self.rubric.aspects}
        return Verdict(scores, reply.rationale, self.name, case.origin)

    def compare(self, first: Sequence[Case], second: Sequence[Case]) -> list[tuple[Verdict, Verdict] | None]:
        """Compares `first[i]` with `second[i]`, in both orders.

        Returns:
            A verdict on each of the two. An aspect's score is 1 if the case is better in both orders, 0 if the other
            one is, and 0.5 otherwise. None if either order has no reply that can be read.

        Raises:
            ValueError: `first[i]` and `second[i]` differ in prompt or pictures.
        """
        if len(first) != len(second):
            raise ValueError(f"first and second must be equally many; got {len(first)} and {len(second)}.")
        for i, (a, b) in enumerate(zip(first, second)):
            if a.prompt != b.prompt or [*map(compute_digest, a.images)] != [*map(compute_digest, b.images)]:
                raise ValueError(f"first[{i}] and second[{i}] must answer one prompt; got {a.prompt!r}, {b.prompt!r}.")
        questions = [self.rubric.question("compare", self.name, a, b) for a, b in zip(first, second)]
        questions += [self.rubric.question("compare", self.name, b, a) for a, b in zip(first, second)]
        replies = self.ask(questions)
        verdicts: list[tuple[Verdict, Verdict] | None] = []
        for a, b, ab, ba in zip(first, second, replies, replies[len(first) :]):
            if ab is None or ba is None:
                verdicts.append(None)
                continue
            scores = {
                aspect: _merge_verdicts(getattr(ab, aspect), getattr(ba, aspect)) for aspect in self.rubric.aspects
            }
            rationale = f"{ab.rationale}\nThe other way round: {ba.rationale}"
            others = {aspect: 1 - score for aspect, score in scores.items()}
            verdicts.append(
                (Verdict(scores, rationale, self.name, a.origin), Verdict(others, rationale, self.name, b.origin))
            )
        return verdicts

    def refine(self, cases: Sequence[Case], margin: float = 0.1) -> list[Verdict | None]:
        """Scores each case as `judge(cases)` does, and lets the model criticise and rewrite answers in words.

        A rewrite is judged like any other answer, by a call that does not know where it comes from. If its score is
        higher than that of the original by at least `margin`, the verdict has it as its `rewrite`, and the critique as
        its rationale. [`~dps_hf.judges.verdict.apply_rewrite`] makes a case of it; judging that case costs nothing
        more. A rewrite is not taken if it has control tokens, or if only one of the two, rewrite and answer, begins
        with thinking.

        Raises:
            ValueError: `margin` is not above 0.
        """
        if not 0 < margin <= 1:
            raise ValueError(f"margin must be above 0 and at most 1; got {margin}. A score is between 0 and 1.")
        verdicts = self(cases)
        asked = [i for i, v in enumerate(verdicts) if v is not None and isinstance(cases[i].response, str)]
        replies = self.ask([self.rubric.question("refine", self.name, cases[i]) for i in asked])
        drafts = {}
        for i, reply in zip(asked, replies):
            verdict, text = verdicts[i], "" if reply is None else restore(reply.rewrite).strip()
            thinks = str(cases[i].response).startswith("<think>") == text.startswith("<think>")  # both, or neither
            if verdict is not None and text and thinks and not find_control_token(text):
                drafts[i] = replace(verdict, rationale=reply.rationale, rewrite=text)
        again = self([apply_rewrite(cases[i], draft) for i, draft in drafts.items()])
        for (i, draft), verdict in zip(drafts.items(), again):
            # Scores are sums of decimals: 0.7 - 0.6 must reach a margin of 0.1.
            if verdict is not None and verdict.score - draft.score >= margin - 1e-9:
                verdicts[i] = draft
        return verdicts


def _merge_verdicts(ab: str, ba: str) -> float:
    """The score of the first case from the answers in both orders: 1 if it wins both, 0 if it loses both, else 0.5."""
    if (ab, ba) == ("first", "second"):
        return 1.0
    return 0.0 if (ab, ba) == ("second", "first") else 0.5
