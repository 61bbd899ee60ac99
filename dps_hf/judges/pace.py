"""When a call of a server may begin: its budget, its pace, and the pauses that the server asks for."""

import math
import time
from collections import Counter
from threading import Condition
from typing import NamedTuple


LONGEST_WAIT_SECONDS = 300.0  # a server that asks for a longer pause is not asked again


class Call(NamedTuple):
    """number: of the call, from 1 on. reserved: tokens that are set aside for it."""

    number: int
    reserved: int


class Pace:
    """Lets calls of several threads begin, and counts them.

    `turn` guards everything here, and what its users keep beside it. `counts` has calls, tokens and whatever is
    counted.

    Args:
        requests_per_minute: None sets no limit.
        max_calls, max_tokens: what may be spent; None sets no limit.
    """

    def __init__(self, requests_per_minute: float | None, max_calls: int | None, max_tokens: int | None):
        self.turn = Condition()
        self.counts: Counter[str] = Counter()
        self.stopped = False  # no call begins any more
        self.reserved = 0  # tokens for the calls under way
        self._max_calls = math.inf if max_calls is None else max_calls
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0  # calls wait until then
        self._closed_until = 0.0  # until then no call begins
        self._closed_because = ""
        self._largest = 0  # tokens of one call so far

    def begin(self, tokens_at_least: int = 0) -> Call | None:
        """Waits until a call may begin, and reserves tokens for it. Returns None if no call may begin any more."""
        with self.turn:
            while True:
                now, calls, tokens = time.monotonic(), self.counts["calls"], self.counts["tokens"]
                spent = calls >= self._max_calls or tokens >= self._max_tokens
                if self.stopped or now < self._closed_until or spent:
                    return None
                # Until one call has shown how many tokens it takes, there is only one.
                unknown = tokens == 0 and self._max_tokens < math.inf
                if self.reserved and (unknown or tokens + self.reserved >= self._max_tokens):
                    self.turn.wait()
                elif now < self._next:
                    self.turn.wait(self._next - now)
                else:
                    break
            self._next = now + self._gap
            self.counts["calls"] += 1
            reserved = max(tokens_at_least, self._largest)
            self.reserved += reserved
            return Call(self.counts["calls"], reserved)

    def end(self, reserved: int) -> None:
        """Releases the tokens that were reserved for a call."""
        with self.turn:
            self.reserved -= reserved
            self.turn.notify_all()

    def stop(self) -> None:
        """No call begins any more in this run."""
        with self.turn:
            self.stopped = True
            self.turn.notify_all()

    def hold(self, seconds: float, said: str = "") -> None:
        """Lets no call begin for some seconds: what the server refuses to one call, it would refuse to all."""
        with self.turn:
            until = time.monotonic() + seconds
            self._next = max(self._next, until)
            if seconds > LONGEST_WAIT_SECONDS:
                self._closed_until = max(self._closed_until, until)
                self._closed_because = said

    def count(self, what: str, number: int = 1) -> None:
        """Adds to `counts`."""
        with self.turn:
            if number:
                self.counts[what] += number
            if what == "tokens":
                self._largest = max(self._largest, number)

    @property
    def closed_because(self) -> str:
        """What the server said if it asked for a pause that is too long to wait for; empty otherwise."""
        return self._closed_because if time.monotonic() < self._closed_until else ""
