"""One call of a server of the OpenAI chat protocol: a question goes out, and a completion or a fault comes back."""

import json
import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from dps_hf.judges.cache import Reply
from dps_hf.judges.rubric import Question, has_answer, read_texts


TRANSIENT = (408, 409, 425, 429)  # statuses below 500 after which the same call may succeed

CUT = re.compile(
    "length|max_tokens|max_output_tokens|abort|error|insufficient"
)  # finish reasons of incomplete replies

SHOWN_LETTERS = 300  # of a server's message

SHORTEST_KEY = 8  # shorter keys, such as "local", are no secrets but words that a text may hold

NO_KEY = "none"


class Completion(NamedTuple):
    """kept: the reply as the cache keeps it. tokens: how many the call took."""

    kept: Reply
    tokens: int


class Fault(NamedTuple):
    """Why a call brought no reply.

    name: under which it is counted.
    said: what the server says.
    status: of HTTP, if there is one.
    refused: whether asking again is useless.
    pause: seconds for which the server asks to be left alone.
    spoke: whether the server did answer, but with an empty or cut reply.
    tokens: how many the call took.
    """

    name: str
    said: str
    status: int = 0
    refused: bool = False
    pause: float | None = None
    spoke: bool = False
    tokens: int = 0


class Transport:
    """Calls one model of a server. It does not retry, and leaves the key out of everything that it returns.

    Args:
        model: name of the model on the server.
        base_url: address of the server; OpenAI's own if it is None.
        key_variable: environment variable that holds the key.
        timeout_seconds: for one call.

    Raises:
        ImportError: openai is missing.
        ValueError: the key is missing or cannot be a key.
    """

    def __init__(self, model: str, base_url: str | None, key_variable: str, timeout_seconds: float):
        try:
            import openai
        except ImportError as error:
            raise ImportError("OpenAIJudge needs openai. Install it with `pip install dps_hf[judge]`.") from error
        self.model = model
        self._client = openai.OpenAI(
            api_key=_read_key(key_variable, needed=base_url is None),
            base_url=base_url,
            timeout=timeout_seconds,
            max_retries=0,  # retries are counted, paced and paid by the caller
        )

    def call(self, question: Question, structured: bool) -> Completion | Fault:
        """Asks once. No error of the client leaves this method, since such errors hold the request with the key.

        Args:
            structured: whether the server is asked to hold the model to the schema of the reply.
        """
        import openai

        more = {"response_format": question.response_format()} if structured else {}
        create = self._client.chat.completions.with_raw_response.create
        try:
            text = create(model=self.model, messages=question.messages(), **more).http_response.text
        except openai.APIStatusError as error:
            return self._read_refusal(error.status_code, error.body, read_retry_after(error.response.headers))
        except openai.APITimeoutError:
            return Fault("timeout", "it takes longer than timeout_seconds")
        except openai.APIConnectionError as error:
            return Fault("connection", self._without_key(f"no connection ({error.__cause__ or error})"))
        except (openai.APIError, ValueError):
            return Fault("garbled", "what it sends cannot be read")
        try:
            body = self._without_key(json.loads(text))
        except (ValueError, RecursionError):
            return Fault("garbled", f"what it sends is no JSON: {self._without_key(text)[:SHOWN_LETTERS]}")
        return self._read_completion(question, body)

    def _read_completion(self, question: Question, body: Any) -> Completion | Fault:
        try:
            choice = body["choices"][0]
            message, reason = choice["message"], str(choice.get("finish_reason")).lower()
            content = message.get("content")
        except (AttributeError, LookupError, TypeError):
            error = body.get("error") if isinstance(body, dict) else None
            code = str(error.get("code")) if isinstance(error, dict) else ""
            if re.fullmatch("[45][0-9][0-9]", code):  # of servers that pass on the error of another one
                return self._read_refusal(int(code), error)
            return Fault("garbled", f"what it sends is no completion: {json.dumps(body)[:SHOWN_LETTERS]}")
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if type(tokens) is not int or tokens <= 0:
            tokens = estimate_tokens(question, "".join(read_texts(message)))
        if reason == "content_filter":
            return Fault("filtered", f"finish_reason {reason}", refused=True, tokens=tokens)
        if CUT.search(reason):
            return Fault("cut", f"its reply is cut, finish_reason {reason}", spoke=True, tokens=tokens)
        if not has_answer(message):
            return Fault("empty", f"its reply is empty, finish_reason {reason}", spoke=True, tokens=tokens)
        # If the text cannot be read, the whole message is kept, so that a better reader need not pay for it again.
        alone = not any(value for name, value in message.items() if name not in ("role", "content"))
        if isinstance(content, str) and (alone or question.read(content) is not None):
            return Completion(content, tokens)
        return Completion(message, tokens)

    def _read_refusal(self, status: int, body: Any, pause: float | None = None) -> Fault:
        """
        Args:
            body: the error as the server sends it: usually an object with a message, but it may be anything.
        """
        error = body if isinstance(body, dict) else {}
        said = error["message"] if isinstance(error.get("message"), str) else body or "no reason given"
        said = self._without_key(said if isinstance(said, str) else json.dumps(said))
        said = " ".join(f"HTTP {status}: {said}".split())[:SHOWN_LETTERS]
        spent = "insufficient_quota" in (error.get("code"), error.get("type"))
        refused = spent or (status < 500 and status not in TRANSIENT)
        return Fault(f"http {status}", said, status, refused, pause)

    def _without_key(self, what: Any) -> Any:
        """The same without the key, which some servers repeat when they refuse it."""
        key = self._client.api_key
        if len(key) < SHORTEST_KEY:
            return what
        return json.loads(json.dumps(what).replace(json.dumps(key)[1:-1], "[key]"))


def estimate_tokens(question: Question, reply: str = "") -> int:
    """About how many tokens a question and its reply have, without pictures."""
    texts = [question.instructions, reply, *(body for _, body in question.parts if isinstance(body, str))]
    return sum(map(len, texts)) // 3


def _read_key(variable: str, needed: bool) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and needed:
        raise ValueError(
            f"The environment variable {variable} holds no key. Set it, or give the base_url of a server."
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The key in {variable} has characters that no key has. Set it again; it is not shown here.")
    return key or NO_KEY


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds for which the server asks to be left alone, given as a number or as a date; None if it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):  # a year that no clock has
            return None
    return max(0.0, seconds)
