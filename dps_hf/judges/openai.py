"""Any model behind a server of the OpenAI chat protocol as the judge: GPT, vLLM, llama-server.

judge = OpenAIJudge("gpt-5-mini", "answer", "runs/verdicts.jsonl", max_calls=2000)
verdicts = judge([Case("What is the capital of France?", "Paris.")])
"""

import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from email.utils import parsedate_to_datetime
from os import PathLike
from threading import Condition
from typing import Any

from transformers.utils.logging import tqdm

from dps_hf.judges.cache import ReplyCache
from dps_hf.judges.rubric import Question, Rubric, digest, not_inert
from dps_hf.judges.verdict import Case, Verdict, control_token, rewritten


BACKOFF_SECONDS = 1.0  # before the first retry; twice as long before each further one
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 300.0  # a server that wants to be left alone for longer is not asked again

NO_FORMAT = (400, 422, 501)  # how servers refuse `response_format`
NO_USE = (401, 403, 404)  # key, model or address: the next request would fare no better
TRANSIENT = (408, 409, 425, 429)  # and 500 and above

NO_REPLY = "no reply"  # how what was asked in vain is counted

SHORTEST_KEY = 8  # shorter ones, "local" for instance, are no secrets but words that a text may hold

logger = logging.getLogger(__name__)


class OpenAIJudge:
    """Scores, compares and refines, a rubric and a cache of replies in hand.

    A reply that was paid for is never asked for again, in this run or a later one, even if it could not be read: its
    verdict is None, as is that of a case which the server refuses. Faults of the server or the network are retried; a
    case on which all retries failed is None too, counted as "no reply", and asked again by the next run. `counts` says how
    many calls and tokens there were, and how many of each fault.

    Args:
        model: its name on the server, and the name of the judge.
        rubric: see [`~dps_hf.judges.rubric.Rubric`].
        cache: a JSONL file, made where it is missing. Judges may share one, as long as no two servers call different
            models by one name.
        other_caches: files of other processes that are read, too, and never written.
        base_url: of the server, "http://127.0.0.1:8080/v1" for instance; OpenAI's own by default.
        key_variable: the environment variable that holds the key. Servers given by `base_url` may need none.
        concurrency: requests under way at a time.
        retries: further attempts after a fault, with growing pauses, or those that the server asks for.
        max_calls, max_tokens: what this object may spend, retries included. Once it is spent no call begins and what is
            left is None; those under way still end. Each of them is taken to use as many tokens as the largest so far,
            and where tokens are limited the first one, of which nothing is known, is alone. A server that counts no
            tokens is taken to use one for 3 letters.

    Raises:
        ImportError: openai or pydantic is missing.
        ValueError: the key is missing, a number is out of range, or the rubric cannot be used.
    """

    def __init__(
        self,
        model: str,
        rubric: str | PathLike,
        cache: str | PathLike,
        *,
        other_caches: Sequence[str | PathLike] = (),
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        retries: int = 5,
        timeout_seconds: float = 120.0,
        requests_per_minute: float | None = None,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        progress: bool = True,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError("OpenAIJudge needs openai. Install it with `pip install dps_hf[judge]`.") from error
        if concurrency < 1 or retries < 0:
            raise ValueError(
                f"concurrency must be at least 1 and retries at least 0; got {concurrency} and {retries}."
            )
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be above 0; got {requests_per_minute}. None sets no limit.")
        self.name = model
        self.rubric = Rubric(rubric)
        self.cache = ReplyCache(cache, other_caches)
        if self.cache.broken_lines:
            logger.warning(
                "%d lines of %s cannot be read; what they held is asked again", self.cache.broken_lines, cache
            )
        self.counts: Counter[str] = Counter()
        self._client = openai.OpenAI(
            api_key=_key(key_variable, needed=base_url is None),
            base_url=base_url,
            timeout=timeout_seconds,
            max_retries=0,  # retries are counted, paced and paid here
        )
        self._key_variable = key_variable
        self._concurrency, self._retries, self._progress = concurrency, retries, progress
        self._structured = True  # until the server refuses
        # When a call may begin; `_turn` guards all of this and the counts.
        self._turn = Condition()
        self._max_calls = math.inf if max_calls is None else max_calls
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._stopped = False  # no call begins any more
        self._next = 0.0  # calls wait until then
        self._closed_until = 0.0  # until then they are given up
        self._reserved = 0  # tokens for the calls under way
        self._largest = 0  # tokens of one call so far

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """Scores each case by itself.

        Raises:
            RuntimeError: the server refuses the key, the model or the address.
            OSError: the cache cannot be written.
        """
        replies = self._ask([self.rubric.question("score", self.name, case) for case in cases])
        return [reply and self._verdict(case, reply) for case, reply in zip(cases, replies)]

    def _verdict(self, case: Case, reply: Any) -> Verdict:
        scores = {aspect: self.rubric.scaled(getattr(reply, aspect)) for aspect in self.rubric.aspects}
        return Verdict(scores, reply.rationale, self.name, case.origin)

    def compare(self, first: Sequence[Case], second: Sequence[Case]) -> list[tuple[Verdict, Verdict] | None]:
        """Compares the i-th of one with the i-th of the other, in both orders.

        Returns a verdict on each of the two: 1 in an aspect in which it is better in both orders, 0 in one in which the
        other is, 0.5 otherwise. None where either order has no readable reply.

        Raises:
            ValueError: two cases that are to be compared have not the same prompt and pictures.
        """
        if len(first) != len(second):
            raise ValueError(f"first and second must be equally many; got {len(first)} and {len(second)}.")
        for i, (a, b) in enumerate(zip(first, second)):
            if a.prompt != b.prompt or [*map(digest, a.images)] != [*map(digest, b.images)]:
                raise ValueError(f"first[{i}] and second[{i}] must answer one prompt; got {a.prompt!r}, {b.prompt!r}.")
        questions = [self.rubric.question("compare", self.name, a, b) for a, b in zip(first, second)]
        questions += [self.rubric.question("compare", self.name, b, a) for a, b in zip(first, second)]
        replies = self._ask(questions)
        verdicts: list[tuple[Verdict, Verdict] | None] = []
        for a, b, ab, ba in zip(first, second, replies, replies[len(first) :]):
            if ab is None or ba is None:
                verdicts.append(None)
                continue
            scores = {aspect: _agreed(getattr(ab, aspect), getattr(ba, aspect)) for aspect in self.rubric.aspects}
            rationale = f"{ab.rationale}\nThe other way round: {ba.rationale}"
            others = {aspect: 1 - score for aspect, score in scores.items()}
            verdicts.append(
                (Verdict(scores, rationale, self.name, a.origin), Verdict(others, rationale, self.name, b.origin))
            )
        return verdicts

    def refine(self, cases: Sequence[Case], margin: float = 0.1) -> list[Verdict | None]:
        """Scores each case as `judge(cases)` does, and has answers in words criticised and rewritten.

        A rewrite is judged like any other answer, by a call that knows nothing of it. Only where its score is at least
        `margin` above that of the original (scores being from 0 to 1) does the verdict have it as its `rewrite`, with
        the critique as its rationale. [`~dps_hf.judges.verdict.rewritten`] makes it a case whose origin is recorded;
        judging that case costs nothing more. Not taken is a rewrite with control tokens, or one that leaves out the
        thinking that begins the answer, or begins to think where that does not: it would follow another prompt.

        Raises:
            ValueError: `margin` is not above 0.
        """
        if not 0 < margin <= 1:
            raise ValueError(f"margin must be above 0 and at most 1; got {margin}. A score is between 0 and 1.")
        verdicts = self(cases)
        asked = [i for i, v in enumerate(verdicts) if v is not None and isinstance(cases[i].response, str)]
        replies = self._ask([self.rubric.question("refine", self.name, cases[i]) for i in asked])
        drafts = {}
        for i, reply in zip(asked, replies):
            verdict, text = verdicts[i], "" if reply is None else not_inert(reply.rewrite).strip()
            thinks = str(cases[i].response).startswith("<think>") == text.startswith("<think>")  # both, or neither
            if verdict is not None and text and thinks and not control_token(text):
                drafts[i] = replace(verdict, rationale=reply.rationale, rewrite=text)
        again = self([rewritten(cases[i], draft) for i, draft in drafts.items()])
        for (i, draft), verdict in zip(drafts.items(), again):
            # Scores are sums of decimals: 0.7 - 0.6 must reach a margin of 0.1.
            if verdict is not None and verdict.score - draft.score >= margin - 1e-9:
                verdicts[i] = draft
        return verdicts

    # Asking

    def _ask(self, questions: Sequence[Question]) -> list[Any]:
        """The fields of each reply, None where there is none or it cannot be read."""
        keys = [question.key for question in questions]
        new = {key: question for key, question in zip(keys, questions) if key not in self.cache}
        self._count("from cache", len(keys) - len(new))
        self._stopped = False
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked = [pool.submit(self._ask_one, key, question) for key, question in new.items()]
            try:
                done = as_completed(asked)
                for future in tqdm(done, desc=self.name, total=len(asked), unit="case", disable=not self._progress):
                    future.result()
            except BaseException:
                with self._turn:  # no call begins any more; those under way are still written down
                    self._stopped = True
                    self._turn.notify_all()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        replies = [q.read(self.cache[key]) if key in self.cache else None for key, q in zip(keys, questions)]
        unreadable = sum(reply is None and key in self.cache for key, reply in zip(keys, replies))
        self._count("unreadable", unreadable)
        if None in replies:
            missing = sum(reply is None for reply in replies)
            logger.warning(
                "%s: %d of %d replies are missing; so far: %s", self.name, missing, len(keys), dict(self.counts)
            )
        return replies

    def _ask_one(self, key: str, question: Question) -> None:
        """Asks until there is a reply, and writes it down."""
        import openai

        structured, attempt, refusal = self._structured, 0, ""
        while reserved := self._begin(question):
            pause = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**attempt) * random.uniform(0.5, 1)
            try:
                reply, tokens = self._call(question, structured)
            except openai.APIStatusError as error:
                self._count(f"http {error.status_code}")
                if structured and error.status_code in NO_FORMAT:
                    structured = False  # the same question once more; whether this was the reason, the reply will tell
                    continue
                if error.status_code in NO_USE or error.code == "insufficient_quota":
                    refusal = self._refusal(error.status_code, error.message)
                elif error.status_code < 500 and error.status_code not in TRANSIENT:
                    self._count("refused")
                    return
                elif (seconds := retry_after(error.response.headers)) is not None:
                    self._hold(seconds)
            except openai.APITimeoutError:
                self._count("timeout")
            except openai.APIConnectionError:
                self._count("connection")
            except (openai.APIError, ValueError, RecursionError):
                self._count("garbled")
            else:
                self.cache.add(key, reply, judge=self.name, rubric=self.rubric.name, tokens=tokens)
                if not structured:
                    self._structured = False
                return
            finally:
                self._end(reserved)
            if refusal:
                # Only here: raised above, it would take along the error, which holds the request, and that the key.
                raise RuntimeError(refusal)
            attempt += 1
            if attempt > self._retries:
                break
            with self._turn:
                self._turn.wait_for(lambda: self._stopped, pause)
        self._count(NO_REPLY)

    def _call(self, question: Question, structured: bool) -> tuple[str, int]:
        """The reply and the tokens it cost.

        Raises:
            ValueError: what came is no completion.
        """
        messages = question.messages()
        more = {"response_format": question.response_format()} if structured else {}
        completion = self._client.chat.completions.create(model=self.name, messages=messages, **more)
        try:
            content = completion.choices[0].message.content
        except (AttributeError, LookupError, TypeError):
            raise ValueError("no completion") from None
        reply = self._without_key(content if isinstance(content, str) else "")
        tokens = getattr(completion.usage, "total_tokens", None)
        if type(tokens) is not int or tokens <= 0:
            tokens = _estimate(question, reply)
        self._count("tokens", tokens)
        return reply, tokens

    # Limits

    def _begin(self, question: Question) -> int:
        """Waits until a call may begin, and reserves tokens for it: how many, or 0 where none may begin any more."""
        with self._turn:
            while True:
                now, calls, tokens = time.monotonic(), self.counts["calls"], self.counts["tokens"]
                spent = calls >= self._max_calls or tokens >= self._max_tokens
                if self._stopped or now < self._closed_until or spent:
                    return 0
                # Until one call has shown how many tokens it takes, there is only one.
                unknown = tokens == 0 and self._max_tokens < math.inf
                if self._reserved and (unknown or tokens + self._reserved >= self._max_tokens):
                    self._turn.wait()
                elif now < self._next:
                    self._turn.wait(self._next - now)
                else:
                    break
            self._next = now + self._gap
            self.counts["calls"] += 1
            reserved = max(_estimate(question), self._largest)
            self._reserved += reserved
            return reserved

    def _end(self, reserved: int) -> None:
        with self._turn:
            self._reserved -= reserved
            self._turn.notify_all()

    def _hold(self, seconds: float) -> None:
        """Leaves the server alone, in all cases: what one is refused, the others would be, too."""
        with self._turn:
            until = time.monotonic() + seconds
            self._next = max(self._next, until)
            if seconds > LONGEST_WAIT_SECONDS:
                self._closed_until = max(self._closed_until, until)

    def _count(self, what: str, number: int = 1) -> None:
        with self._turn:
            if number:
                self.counts[what] += number
            if what == "tokens":
                self._largest = max(self._largest, number)

    # The key

    def _refusal(self, status: int, message: str) -> str:
        return (
            f"The server refuses model {self.name!r} with HTTP {status}: {self._without_key(message)[:300]} "
            f"Check the model's name, base_url, and the key in {self._key_variable}. Replies so far are in {self.cache.path}."
        )

    def _without_key(self, text: str) -> str:
        """Servers have been seen to repeat the key that they refuse."""
        key = self._client.api_key
        return text.replace(key, "[key]") if len(key) >= SHORTEST_KEY else text


NO_KEY = "none"


def _estimate(question: Question, reply: str = "") -> int:
    """Tokens of a question and its reply, pictures left out."""
    texts = [question.instructions, reply, *(body for _, body in question.parts if isinstance(body, str))]
    return sum(map(len, texts)) // 3


def _key(variable: str, needed: bool) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and needed:
        raise ValueError(
            f"The environment variable {variable} holds no key. Set it, or give the base_url of a server."
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The key in {variable} has characters that no key has. Set it again; it is not shown here.")
    return key or NO_KEY


def _agreed(ab: str, ba: str) -> float:
    """Of what was said in both orders: 1 where both mean the first case, 0 where both mean the second."""
    if (ab, ba) == ("first", "second"):
        return 1.0
    return 0.0 if (ab, ba) == ("second", "first") else 0.5


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to be left alone for, given as a number or as a date; None if it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):  # a year that no clock has
            return None
    return max(0.0, seconds)
