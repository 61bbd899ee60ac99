"""Any model behind a server of the OpenAI chat protocol as the judge: GPT, vLLM, llama-server.

judge = OpenAIJudge("gpt-5-mini", "answer", "runs/verdicts.jsonl", max_calls=2000)
verdicts = judge([Case("What is the capital of France?", "Paris.")])
"""

import json
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from email.utils import parsedate_to_datetime
from os import PathLike
from threading import Condition
from typing import Any, NamedTuple

from PIL import Image
from transformers.utils.logging import tqdm

from dps_hf.judges.cache import Reply, ReplyCache
from dps_hf.judges.rubric import Question, Rubric, answers, digest, not_inert, texts_of
from dps_hf.judges.verdict import NO_REPLY, REFUSED, Case, Verdict, apply_rewrite, find_control_token


BACKOFF_SECONDS = 1.0  # before the first retry; twice as long before each further one
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 300.0  # a server that wants to be left alone for longer is not asked again

NO_FORMAT = (400, 422, 501)  # how servers refuse `response_format`
TRANSIENT = (408, 409, 425, 429)  # and 500 and above
OPEN_QUESTIONS = 3  # in a row that are refused before it is tested whether the server answers anything

CUT = re.compile(
    "length|max_tokens|max_output_tokens|abort|error|insufficient"
)  # how completions end that are no whole ones

SHOWN_LETTERS = 300  # of what a server says

SHORTEST_KEY = 8  # shorter ones, "local" for instance, are no secrets but words that a text may hold

logger = logging.getLogger(__name__)


class OpenAIJudge:
    """Scores, compares and refines, a rubric and a cache of replies in hand.

    A reply that says something is never asked for again, in this run or a later one, even if it could not be read: its
    verdict is None. Faults of the server or the network are retried, as are replies that are empty or cut; a case on which
    all retries failed is None too, counted as "no reply", and asked again by the next run. A case that the server refuses
    by itself, for what it says or shows, is None and counted as "refused". Where the server refuses all, whatever the
    reason, or answers nothing any more, it is an error that quotes the server: what tells the two apart is what else it
    answers, a test question at last. `counts` says how many calls and tokens there were, and how many of each fault;
    `fault` what the server said when it last left a case without a reply, empty if it is only the budget that is spent.

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
        self.fault = ""
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
        self._closed_because = ""
        self._reserved = 0  # tokens for the calls under way
        self._largest = 0  # tokens of one call so far
        # Whether the server refuses one question or all, see `_leave_open`.
        self._open: list[_Open] = []
        self._spoken = self._answered = 0  # numbers of the last calls that were
        self._testing = False
        self._refusals: Counter[str] = Counter()  # of single questions in this run, by what the server says

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """Scores each case by itself.

        Raises:
            RuntimeError: the server refuses all, an account being empty for instance, or answers no more.
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
        the critique as its rationale. [`~dps_hf.judges.verdict.apply_rewrite`] makes it a case whose origin is recorded;
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
            if verdict is not None and text and thinks and not find_control_token(text):
                drafts[i] = replace(verdict, rationale=reply.rationale, rewrite=text)
        again = self([apply_rewrite(cases[i], draft) for i, draft in drafts.items()])
        for (i, draft), verdict in zip(drafts.items(), again):
            # Scores are sums of decimals: 0.7 - 0.6 must reach a margin of 0.1.
            if verdict is not None and verdict.score - draft.score >= margin - 1e-9:
                verdicts[i] = draft
        return verdicts

    # Asking

    def _ask(self, questions: Sequence[Question]) -> list[Any]:
        """The fields of each reply, None where there is none or it cannot be read."""
        keys = [question.key for question in questions]
        new = {key: question for key, question in zip(keys, questions) if self._kept(key) is None}
        self._count("from cache", len(keys) - len(new))
        self._stopped, self._open, self._refusals = False, [], Counter()
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked = [pool.submit(self._ask_one, key, question) for key, question in new.items()]
            try:
                done = as_completed(asked)
                for future in tqdm(done, desc=self.name, total=len(asked), unit="case", disable=not self._progress):
                    future.result()
            except BaseException:
                self._stop()  # those under way are still written down
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if not all(one.fault.spoke for one in self._open):
            self._test()
        for left in self._open:
            self.fault = left.fault.said
            self._count(NO_REPLY)
        kept = [self._kept(key) for key in keys]
        replies = [None if reply is None else q.read(reply) for q, reply in zip(questions, kept)]
        self._count("unreadable", sum(fields is None and reply is not None for fields, reply in zip(replies, kept)))
        if self._refusals:
            said = "; ".join(f"{number} x {said}" for said, number in self._refusals.most_common(3))
            logger.warning("%s: the server refuses some cases and answers others; it says: %s", self.name, said)
        if None in replies:
            logger.warning(
                "%s: %d of %d replies are missing; so far: %s%s",
                self.name,
                replies.count(None),
                len(keys),
                dict(self.counts),
                f"; at last: {self.fault}" if self.fault else "",
            )
        return replies

    def _kept(self, key: str) -> Reply | None:
        """What was replied before, unless it has no answer: that is asked again."""
        return self.cache[key] if key in self.cache and answers(self.cache[key]) else None

    def _ask_one(self, key: str, question: Question) -> None:
        """Asks until there is a reply, and writes it down."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or not self._testing)  # who has not begun awaits its outcome
        outcome, first = self._reply(question)
        if isinstance(outcome, _Completion):
            self.cache.add(key, outcome.kept, judge=self.name, rubric=self.rubric.name, tokens=outcome.tokens)
        elif outcome is not None:
            self._leave_open(question, outcome, first)
        else:
            if not self._stopped:
                self.fault = self._closed_because if time.monotonic() < self._closed_until else ""
            self._count(NO_REPLY)

    def _reply(self, question: Question) -> tuple["_Completion | _Fault | None", int]:
        """Asks until there is a reply, and gives it and the number of the first call.

        In its place there is the last fault, where the server refuses or all retries failed, and None where no call may
        begin any more.
        """
        structured, attempt, first = self._structured, 0, 0
        while call := self._begin(question):
            first = first or call.number
            try:
                outcome = self._call(question, structured)
            finally:
                self._end(call.reserved)
            if isinstance(outcome, _Completion):
                self._settle(call.number, call.number)
                if not structured:
                    self._structured = False
                return outcome, first
            self._count(outcome.name)
            if outcome.spoke:
                self._settle(call.number)
            if structured and outcome.status in NO_FORMAT:
                structured = False  # the same question once more; whether this was the reason, the reply will tell
                continue
            if outcome.pause is not None and not outcome.refused:
                self._hold(outcome.pause, outcome.said)
            attempt += 1
            if outcome.refused or attempt > self._retries:
                return outcome, first
            pause = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            with self._turn:
                self._turn.wait_for(lambda: self._stopped, pause)
        return None, first

    def _call(self, question: Question, structured: bool) -> "_Completion | _Fault":
        """What one call brought, the key left out of it. No error leaves it: they hold the request, and that the key."""
        import openai

        more = {"response_format": question.response_format()} if structured else {}
        create = self._client.chat.completions.with_raw_response.create
        try:
            text = create(model=self.name, messages=question.messages(), **more).http_response.text
        except openai.APIStatusError as error:
            return self._refusal(error.status_code, error.body, retry_after(error.response.headers))
        except openai.APITimeoutError:
            return _Fault("timeout", "it takes longer than timeout_seconds")
        except openai.APIConnectionError as error:
            return _Fault("connection", self._without_key(f"no connection ({error.__cause__ or error})"))
        except (openai.APIError, ValueError):
            return _Fault("garbled", "what it sends cannot be read")
        try:
            body = self._without_key(json.loads(text))
        except (ValueError, RecursionError):
            return _Fault("garbled", f"what it sends is no JSON: {self._without_key(text)[:SHOWN_LETTERS]}")
        return self._completion(question, body)

    def _completion(self, question: Question, body: Any) -> "_Completion | _Fault":
        try:
            choice = body["choices"][0]
            message, reason = choice["message"], str(choice.get("finish_reason")).lower()
            content = message.get("content")
        except (AttributeError, LookupError, TypeError):
            error = body.get("error") if isinstance(body, dict) else None
            code = str(error.get("code")) if isinstance(error, dict) else ""
            if re.fullmatch("[45][0-9][0-9]", code):  # of servers that pass on what another one said
                return self._refusal(int(code), error)
            return _Fault("garbled", f"what it sends is no completion: {json.dumps(body)[:SHOWN_LETTERS]}")
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if type(tokens) is not int or tokens <= 0:
            tokens = _estimate(question, "".join(texts_of(message)))
        self._count("tokens", tokens)
        if reason == "content_filter":
            return _Fault("filtered", f"finish_reason {reason}", refused=True)
        if CUT.search(reason):
            return _Fault("cut", f"its reply is cut, finish_reason {reason}", spoke=True)
        if not answers(message):
            return _Fault("empty", f"its reply is empty, finish_reason {reason}", spoke=True)
        # What is not read in the text is kept as it came, so that a better reader need not pay for it.
        alone = not any(value for name, value in message.items() if name not in ("role", "content"))
        if isinstance(content, str) and (alone or question.read(content) is not None):
            return _Completion(content, tokens)
        return _Completion(message, tokens)

    # One or all

    def _leave_open(self, question: Question, fault: "_Fault", first: int) -> None:
        """Of a question without a reply: whether the server fails it alone, or all, is told by what else it answers.

        An answer to a later call tells that it is this one. So that no server is asked in vain for long, a test question
        is asked after some in a row.

        Raises:
            RuntimeError: it fails all.
        """
        pictures = any(not isinstance(body, str) for _, body in question.parts)
        with self._turn:
            # Refused is for good, so that later means after the refusal: an account may have run empty meanwhile.
            self._open.append(_Open(self.counts["calls"] if fault.refused else first, fault, pictures))
            # No server refuses a key for what a question says.
            keyless = fault.status == 401 and not self._spoken and not self._reserved
        self._settle()
        if keyless:
            self._stop()
            raise RuntimeError(self._end_of_all(fault, fault))
        with self._turn:
            testing = len(self._open) >= OPEN_QUESTIONS and not self._testing
            self._testing |= testing
        if testing:
            self._test()

    def _settle(self, spoken: int = 0, answered: int = 0) -> None:
        """An answer to the call of this number tells of the open questions before it that they fail by themselves.

        Args:
            spoken: the number of a call that got a completion of any kind; where replies are empty or cut it tells nothing.
            answered: of one that got a reply.
        """
        with self._turn:
            self._spoken, self._answered = max(self._spoken, spoken), max(self._answered, answered)
            left = []
            for one in self._open:
                if one.since >= (self._answered if one.fault.spoke else self._spoken):
                    left.append(one)
                elif one.fault.refused:
                    self.counts[REFUSED] += 1
                    self._refusals[one.fault.said] += 1
                else:
                    self.counts[NO_REPLY] += 1
                    self.fault = one.fault.said
            self._open = left

    def _test(self) -> None:
        """Asks what any model answers. Where its reply is empty or cut as well, nothing more is asked in this run.

        Raises:
            RuntimeError: the server refuses it, or does not answer it.
        """
        with self._turn:
            # Where nothing was ever answered, it may be that the model sees no pictures.
            pictures = not self._spoken and not len(self.cache) and all(one.pictures for one in self._open)
        case = Case("What is 100 and 1?", "101", (Image.new("RGB", (64, 64), "white"),) if pictures else ())
        try:
            outcome, _ = self._reply(self.rubric.question("score", self.name, case))
            left = list(self._open)
            if isinstance(outcome, _Fault) and left:  # else something was answered meanwhile
                self._stop()
                if not outcome.spoke:
                    raise RuntimeError(self._end_of_all(left[-1].fault, outcome))
        finally:
            with self._turn:
                self._testing = False
                self._turn.notify_all()

    def _end_of_all(self, fault: "_Fault", of_test: "_Fault") -> str:
        how = f"refuses model {self.name!r} with" if fault.refused else f"does not answer model {self.name!r}:"
        also = "" if fault.said == of_test.said else f", and to a test question it says {of_test.said}"
        said = f"{fault.said}{also}".rstrip(".")
        return (
            f"The server {how} {said}. Check the account, the model's name and what it takes, base_url, and the "
            f"key in {self._key_variable}. Replies so far are in {self.cache.path}; the next run asks for the rest."
        )

    # Limits

    def _begin(self, question: Question) -> "_Call | None":
        """Waits until a call may begin, and reserves tokens for it; None where none may begin any more."""
        with self._turn:
            while True:
                now, calls, tokens = time.monotonic(), self.counts["calls"], self.counts["tokens"]
                spent = calls >= self._max_calls or tokens >= self._max_tokens
                if self._stopped or now < self._closed_until or spent:
                    return None
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
            return _Call(self.counts["calls"], reserved)

    def _end(self, reserved: int) -> None:
        with self._turn:
            self._reserved -= reserved
            self._turn.notify_all()

    def _stop(self) -> None:
        """No call begins any more in this run."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def _hold(self, seconds: float, said: str = "") -> None:
        """Leaves the server alone, in all cases: what one is refused, the others would be, too."""
        with self._turn:
            until = time.monotonic() + seconds
            self._next = max(self._next, until)
            if seconds > LONGEST_WAIT_SECONDS:
                self._closed_until = max(self._closed_until, until)
                self._closed_because = said

    def _count(self, what: str, number: int = 1) -> None:
        with self._turn:
            if number:
                self.counts[what] += number
            if what == "tokens":
                self._largest = max(self._largest, number)

    def _refusal(self, status: int, body: Any, pause: float | None = None) -> "_Fault":
        """
        Args:
            body: what the server says is wrong: an object with a message mostly, or any other, or a text.
        """
        error = body if isinstance(body, dict) else {}
        said = error["message"] if isinstance(error.get("message"), str) else body or "no reason given"
        said = self._without_key(said if isinstance(said, str) else json.dumps(said))
        said = " ".join(f"HTTP {status}: {said}".split())[:SHOWN_LETTERS]
        spent = "insufficient_quota" in (error.get("code"), error.get("type"))
        refused = spent or (status < 500 and status not in TRANSIENT)
        return _Fault(f"http {status}", said, status, refused, pause)

    def _without_key(self, what: Any) -> Any:
        """Servers have been seen to repeat the key that they refuse."""
        key = self._client.api_key
        if len(key) < SHORTEST_KEY:
            return what
        return json.loads(json.dumps(what).replace(json.dumps(key)[1:-1], "[key]"))


class _Completion(NamedTuple):
    kept: Reply
    tokens: int


class _Fault(NamedTuple):
    """Why a call brought no reply.

    name: how it is counted. said: by the server. refused: asking again would be in vain. pause: seconds that the server
    asks to be left alone for. spoke: it did answer, and nothing that is of use.
    """

    name: str
    said: str
    status: int = 0
    refused: bool = False
    pause: float | None = None
    spoke: bool = False


class _Call(NamedTuple):
    number: int
    reserved: int


class _Open(NamedTuple):
    """A question that was refused, or on which all retries failed. since: a later call that is answered settles it."""

    since: int
    fault: _Fault
    pictures: bool


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
