"""`examples/benchmarks/serving.py`, on a server that says what a test wants."""

import json
import sys
from pathlib import Path

import pytest

from dps_hf.serving.client import Client


FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import serving

    yield serving
    for name in ("serving", "comparison"):
        sys.modules.pop(name, None)


def test_servers_that_are_missing_are_left_out(script, tmp_path, capsys):
    output = tmp_path / "serving.json"
    script.main(script.ScriptArguments(output=output, llama_server="", vllm_python=str(tmp_path / "python")))
    assert json.loads(output.read_text())["comparisons"] == []
    assert "No server is installed" in capsys.readouterr().err


def test_a_server_that_stops_at_once_is_named_with_what_it_said(script, tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(RuntimeError, match="llama-server does not start: no such model"),
        script.start_server("llama-server", command, 9, tmp_path / "log", "model"),
    ):
        pass


def test_answers_are_compared_with_and_without_the_ban(script, server, checkpoint):
    def reply(path, request):
        choice = {"index": 0, "text": "<img_1>" * 4, "message": {"content": "a bar"}}
        return 200, {"id": "1", "choices": [{**choice, "index": i} for i in range(request.get("n", 1))]}

    server.reply, server.owner = reply, "vllm"
    client = Client(server.base_url, checkpoint)
    compared = script.compare_server("vLLM", client, client, script.ScriptArguments(rounds=1, drawings=2))
    assert [one.peer for one in compared] == [
        "vLLM, one by one",
        "vLLM, all tokens allowed",
        *["vLLM, one code at a time"] * 2,
    ]
    answers = [request for path, request in server.requests if "chat" in path]
    allowed = [request["allowed_token_ids"] is not None for request in answers]
    assert allowed == ([True] * 4 + [False] * 4) * 2
