"""A server of the OpenAI chat protocol on loopback that does whatever a test wants, faults included."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


KEY = "sk-secret-0123456789"


@dataclass
class Reply:
    """A completion that says `content`, unless it is told to fail."""

    content: str | list | dict | None = None
    message: dict = field(default_factory=dict)  # beside the content
    finish_reason: str | None = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of a completion
    cut: bool = False  # the connection breaks in the middle of the body
    late: bool = False  # comes when the client has given up


@dataclass
class Request:
    """What the judge was asked."""

    payload: dict
    authorization: str
    earlier: int  # requests of the same case before this one

    @property
    def parts(self) -> list[dict]:
        content = self.payload["messages"][1]["content"]
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def pictures(self) -> list[str]:
        return [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]

    @property
    def mark(self) -> str:
        return re.match(r"The mark of this case is (\w+)\.", self.text)[1]

    def body(self, label: str) -> str:
        """What stands between the tags with the right mark."""
        return re.search(rf"<{label} {self.mark}>\n(.*?)\n</{label} {self.mark}>", self.text, re.DOTALL)[1]


class ScriptedServer(ThreadingHTTPServer):
    """Does what `script` says for each request, and remembers them all."""

    daemon_threads = True
    request_queue_size = 64
    script: Callable[[Request], Reply | str]

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.seen: dict[str, int] = {}
        self.answered: list[str] = []  # marks of the cases that got a completion
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that gave up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Request(payload, self.headers["Authorization"], 0)
        with self.server.lock:
            request.earlier = self.server.seen.get(request.mark, 0)
            self.server.seen[request.mark] = request.earlier + 1
            self.server.requests.append(request)
        reply = self.server.script(request)
        reply = Reply(reply) if isinstance(reply, str) else reply
        if reply.late:
            self.server.closing.wait(5)
            return
        body = reply.body
        if body is None:
            message = {"role": "assistant", "content": reply.content, **reply.message}
            completion = {"id": "1", "object": "chat.completion", "created": 1, "model": payload["model"]}
            completion["choices"] = [{"index": 0, "finish_reason": reply.finish_reason, "message": message}]
            completion["usage"] = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
            body = json.dumps(completion).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if reply.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if reply.status == 200 and reply.body is None:
            with self.server.lock:
                self.server.answered.append(request.mark)
        self.wfile.write(body)


def refusal(status: int, message: str, **error) -> Reply:
    """A server that does not do what it is asked, and says why."""
    return Reply(status=status, body=json.dumps({"error": {"message": message, **error}}).encode())


def scores(correct, complete, clear, rationale: str = "because") -> str:
    """A reply in the form that the rubric "answer" asks for."""
    return json.dumps({"rationale": rationale, "correct": correct, "complete": complete, "clear": clear})
