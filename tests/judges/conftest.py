"""A judge that asks a scripted server."""

import threading

import pytest
from judge_server import KEY, ScriptedServer, scores

from dps_hf.judges import server as server_module
from dps_hf.judges.openai import OpenAIJudge


@pytest.fixture
def server():
    server = ScriptedServer()
    server.script = lambda request: scores(7, 7, 7)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def make_judge(server, tmp_path, monkeypatch):
    """Builds a judge that asks the scripted server; the cache is the same each time."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(server_module, "BACKOFF_SECONDS", 0.01)

    def make(**options) -> OpenAIJudge:
        fixed = {"model": "judge-1", "rubric": "answer", "cache": tmp_path / "cache.jsonl", "base_url": server.url}
        fixed |= {"key_variable": "JUDGE_KEY", "progress": False}
        return OpenAIJudge(**(fixed | options))

    return make
