"""Asks a model behind a server the questions of a rubric: each only once, with retries, in parallel."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from os import PathLike
from typing import Any, NamedTuple

from PIL import Image
from transformers.utils.logging import tqdm

from dps_hf.judges.cache import Reply, ReplyCache
from dps_hf.judges.pace import Pace
from dps_hf.judges.rubric import Question, Rubric, has_answer
from dps_hf.judges.transport import Completion, Fault, Transport, estimate_tokens
from dps_hf.judges.verdict import NO_REPLY, REFUSED, Case


BACKOFF_SECONDS = 1.0  # before the first retry; twice as long before each further one
LONGEST_BACKOFF_SECONDS = 60.0

NO_FORMAT = (400, 422, 501)  # statuses of servers that do not know `response_format`
OPEN_QUESTIONS = 3  # refused in a row before a test question is asked

logger = logging.getLogger(__name__)


class Server:
    """A model behind a server of the OpenAI chat protocol, which answers questions of a rubric.

    A reply is never asked for again, in this run or a later one, even if it cannot be read. After a fault of the
    server or the network, and after an empty or cut reply, the question is retried. If all retries fail, the question
    is counted as "no reply", and the next run asks it again. A question that the server refuses for what it says or
    shows is counted as "refused". If the server refuses all questions, or answers none any more, that is an error that
    quotes the server; a test question, which any model answers, tells the two cases apart.

    `counts` has the number of calls and tokens, and of each fault. `fault` is what the server said when a question
    last stayed without a reply; it is empty if the budget was spent.

    Args:
        model: name of the model on the server, and of the judge.
        rubric: see [`~dps_hf.judges.rubric.Rubric`].
        cache: a JSONL file for replies, made if it is missing. Judges may share one, as long as no two servers give
            different models the same name.
        other_caches: files of other processes, which are read but not written.
        base_url: address of the server, for example "http://127.0.0.1:8080/v1"; by default OpenAI's own.
        key_variable: environment variable that holds the key. A server given by `base_url` may need none.
        concurrency: number of requests at a time.
        retries: further attempts after a fault, with growing pauses or those that the server asks for.
        max_calls, max_tokens: what this object may spend, retries included. When it is spent, no call begins any more
            and the remaining replies are None. A call is expected to take as many tokens as the largest one so far;
            with `max_tokens`, the first call runs alone. If a server does not count tokens, 3 letters count as one.

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
        self.fault = ""
        self._transport = Transport(model, base_url, key_variable, timeout_seconds)
        self._pace = Pace(requests_per_minute, max_calls, max_tokens)
        self._turn = self._pace.turn  # guards what follows, too
        self._key_variable = key_variable
        self._concurrency, self._retries, self._progress = concurrency, retries, progress
        self._structured = True  # until the server refuses it
        # Whether the server refuses one question or all, see `_leave_open`.
        self._open: list[_Open] = []
        self._spoken = self._answered = 0  # numbers of the last calls that were
        self._testing = False
        self._refusals: Counter[str] = Counter()  # of single questions in this run, by what the server says

    @property
    def counts(self) -> Counter[str]:
        return self._pace.counts

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        """The fields of each reply, None where there is no reply or it cannot be read.

        Raises:
            RuntimeError: the server refuses all questions, for example because the account is empty, or answers no
                more.
            OSError: the cache cannot be written.
        """
        keys = [question.key for question in questions]
        new = {key: question for key, question in zip(keys, questions) if self._kept(key) is None}
        self._pace.count("from cache", len(keys) - len(new))
        self._pace.stopped, self._open, self._refusals = False, [], Counter()
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked = [pool.submit(self._ask_one, key, question) for key, question in new.items()]
            try:
                done = as_completed(asked)
                for future in tqdm(done, desc=self.name, total=len(asked), unit="case", disable=not self._progress):
                    future.result()
            except BaseException:
                self._pace.stop()  # those under way are still written down
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if not all(one.fault.spoke for one in self._open):
            self._test()
        for left in self._open:
            self.fault = left.fault.said
            self._pace.count(NO_REPLY)
        kept = [self._kept(key) for key in keys]
        replies = [None if reply is None else q.read(reply) for q, reply in zip(questions, kept)]
        self._pace.count(
            "unreadable", sum(fields is None and reply is not None for fields, reply in zip(replies, kept))
        )
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
        """The reply from before, None if there is none or it says nothing: then the question is asked again."""
        return self.cache[key] if key in self.cache and has_answer(self.cache[key]) else None

    def _ask_one(self, key: str, question: Question) -> None:
        """Asks until there is a reply, and writes it to the cache."""
        with self._turn:
            self._turn.wait_for(lambda: self._pace.stopped or not self._testing)  # a test may end all
        outcome, first = self._reply(question)
        if isinstance(outcome, Completion):
            self.cache.add(key, outcome.kept, judge=self.name, rubric=self.rubric.name, tokens=outcome.tokens)
        elif outcome is not None:
            self._leave_open(question, outcome, first)
        else:
            if not self._pace.stopped:
                self.fault = self._pace.closed_because
            self._pace.count(NO_REPLY)

    def _reply(self, question: Question) -> tuple[Completion | Fault | None, int]:
        """Asks until there is a reply. Returns it, and the number of the first call.

        In its place there is the last fault if the server refuses or all retries failed, and None if no call may begin
        any more.
        """
        structured, attempt, first = self._structured, 0, 0
        while call := self._pace.begin(estimate_tokens(question)):
            first = first or call.number
            try:
                outcome = self._transport.call(question, structured)
                if outcome.tokens:
                    self._pace.count("tokens", outcome.tokens)
            finally:
                self._pace.end(call.reserved)
            if isinstance(outcome, Completion):
                self._settle(call.number, call.number)
                if not structured:
                    self._structured = False
                return outcome, first
            self._pace.count(outcome.name)
            if outcome.spoke:
                self._settle(call.number)
            if structured and outcome.status in NO_FORMAT:
                structured = False  # ask once more without it; a reply will show whether this was the reason
                continue
            if outcome.pause is not None and not outcome.refused:
                self._pace.hold(outcome.pause, outcome.said)
            attempt += 1
            if outcome.refused or attempt > self._retries:
                return outcome, first
            pause = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            with self._turn:
                self._turn.wait_for(lambda: self._pace.stopped, pause)
        return None, first

    def _leave_open(self, question: Question, fault: Fault, first: int) -> None:
        """Notes a question without a reply. Whether the server fails this one or all shows in what else it answers.

        An answer to a later call shows that it fails this one. After some such questions in a row, a test question is
        asked.

        Raises:
            RuntimeError: the server fails all questions.
        """
        pictures = any(not isinstance(body, str) for _, body in question.parts)
        with self._turn:
            # A refusal is not retried, so only calls after it count: an account may have run empty in between.
            self._open.append(_Open(self.counts["calls"] if fault.refused else first, fault, pictures))
            # No server refuses a key for what a question says.
            keyless = fault.status == 401 and not self._spoken and not self._pace.reserved
        self._settle()
        if keyless:
            self._pace.stop()
            raise RuntimeError(self._end_of_all(fault, fault))
        with self._turn:
            testing = len(self._open) >= OPEN_QUESTIONS and not self._testing
            self._testing |= testing
        if testing:
            self._test()

    def _settle(self, spoken: int = 0, answered: int = 0) -> None:
        """Closes the open questions before a call that the server did answer: they fail by themselves.

        Args:
            spoken: number of a call that got a completion of any kind. It closes no question whose reply was empty or
                cut.
            answered: number of a call that got a reply.
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
        """Asks a question that any model answers. If that reply is empty or cut too, nothing more is asked now.

        Raises:
            RuntimeError: the server refuses it, or does not answer it.
        """
        with self._turn:
            # If nothing was ever answered, the reason may be that the model takes no pictures.
            pictures = not self._spoken and not len(self.cache) and all(one.pictures for one in self._open)
        case = Case("What is 100 and 1?", "101", (Image.new("RGB", (64, 64), "white"),) if pictures else ())
        try:
            outcome, _ = self._reply(self.rubric.question("score", self.name, case))
            left = list(self._open)
            if isinstance(outcome, Fault) and left:  # else something was answered meanwhile
                self._pace.stop()
                if not outcome.spoke:
                    raise RuntimeError(self._end_of_all(left[-1].fault, outcome))
        finally:
            with self._turn:
                self._testing = False
                self._turn.notify_all()

    def _end_of_all(self, fault: Fault, of_test: Fault) -> str:
        how = f"refuses model {self.name!r} with" if fault.refused else f"does not answer model {self.name!r}:"
        also = "" if fault.said == of_test.said else f", and to a test question it says {of_test.said}"
        said = f"{fault.said}{also}".rstrip(".")
        return (
            f"The server {how} {said}. Check the account, the model's name and what it takes, base_url, and the "
            f"key in {self._key_variable}. Replies so far are in {self.cache.path}; the next run asks for the rest."
        )


class _Open(NamedTuple):
    """A question that was refused, or whose retries all failed. An answer to a call after `since` closes it."""

    since: int
    fault: Fault
    pictures: bool
