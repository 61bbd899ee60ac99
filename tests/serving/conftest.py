"""A checkpoint that llama.cpp would take, and a server on loopback that says whatever a test wants."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dps_hf.model.processing_dps import DPSProcessor


@pytest.fixture(scope="session")
def merging_processor(tiny_processor, tiny_config) -> DPSProcessor:
    """As `tiny_processor`, with a tokenizer that merges."""
    spec = json.loads(tiny_processor.tokenizer.backend_tokenizer.to_str())
    unused = spec["model"]["vocab"].pop("Ń")  # of a byte that no text has
    spec["model"]["vocab"]["he"], spec["model"]["merges"] = unused, [["h", "e"]]
    tokenizer = type(tiny_processor.tokenizer)(
        tokenizer_object=type(tiny_processor.tokenizer.backend_tokenizer).from_str(json.dumps(spec)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    return DPSProcessor.from_components(tokenizer, tiny_config)


@pytest.fixture(scope="session")
def checkpoint(tiny_model, merging_processor, tmp_path_factory):
    """The folder of a tiny DPS."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_model.save_pretrained(folder)
    merging_processor.save_pretrained(folder)
    return folder


@dataclass
class ScriptedServer:
    """owner: what it calls itself in its list of models.
    reply: from a path and a request to an HTTP status and a body; a body that is no string is sent as JSON.
    requests: those it got, each with its path.
    """

    base_url: str = ""
    owner: str = "llamacpp"
    reply: Callable[[str, dict], tuple[int, object]] = lambda path, request: (200, {})
    requests: list[tuple[str, dict]] = field(default_factory=list)

    def answer(self, path: str, request: dict) -> tuple[int, object]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "served", "object": "model", "owned_by": self.owner}]}
        self.requests.append((path, request))
        return self.reply(path, request)


@pytest.fixture
def server():
    """A [`ScriptedServer`] that is running."""
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
            self.send_header("Content-Length", str(len(payload)))
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
