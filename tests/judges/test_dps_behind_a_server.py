"""The judge over real HTTP with dps-nano itself behind `transformers serve`, which needs `transformers[serving]`."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from dps_hf import NANO
from dps_hf.judges.openai import OpenAIJudge
from dps_hf.judges.verdict import Case
from dps_hf.nano.scenes import Scene, Thing, render


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    pytest.importorskip("fastapi", reason="needs `pip install transformers[serving]`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log.txt").open("w+")
    command = ["serve", NANO, "--trust-remote-code", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *command],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
                log.seek(0)
                assert server.poll() is None, log.read()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_a_model_too_small_to_judge_gives_no_verdict_and_is_not_asked_again(url, tmp_path):
    drawing = render(Scene((Thing("circle", "red", "big", 32, 32),)))
    answers = [Case("What is the capital of France?", "Paris."), Case("Name this.", "a circle", images=(drawing,))]
    asked = {"answer": answers, "drawing": [Case("a red circle", drawing)]}
    for rubric, cases in asked.items():
        options = {"base_url": url, "timeout_seconds": 120, "retries": 1, "concurrency": 2, "progress": False}
        first = OpenAIJudge(NANO, rubric, tmp_path / "cache.jsonl", **options)
        assert first(cases) == [None] * len(cases)
        assert first.counts["unreadable"] == len(cases) == first.counts["calls"], first.counts
        assert first.counts["tokens"] > 100
        again = OpenAIJudge(NANO, rubric, tmp_path / "cache.jsonl", **options)
        assert again(cases) == [None] * len(cases)
        assert again.counts["calls"] == 0 and again.counts["from cache"] == len(cases)
