"""A server of the OpenAI protocol on loopback that says whatever a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class ScriptedServer:
    """owner: what it calls itself in its list of models.
    reply: from a path and a request to an HTTP status and a body; a body that is no string is sent as JSON.
    requests: those it got, each with its path.
    cut: the connection breaks before the end of what was announced.
    """

    base_url: str = ""
    owner: str = "llamacpp"
    reply: Callable[[str, dict], tuple[int, object]] = lambda path, request: (200, {})
    requests: list[tuple[str, dict]] = field(default_factory=list)
    cut: bool = False

    def answer(self, path: str, request: dict) -> tuple[int, object]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "served", "object": "model", "owned_by": self.owner}]}
        self.requests.append((path, request))
        return self.reply(path, request)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A [`ScriptedServer`] that is running on loopback."""
    script = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send({})

        def do_POST(self):
            self.send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def send(self, request):
            status, body = script.answer(self.path, request)
            payload = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(payload) + script.cut))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    script.base_url = f"http://127.0.0.1:{http.server_port}/v1"
    yield script
    http.shutdown()
    http.server_close()
