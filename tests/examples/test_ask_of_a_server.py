"""`serve/ask.py`: draws with a server, asks about the drawing, and says what came back."""

import sys

import pytest
from PIL import Image

from dps_hf.inference import Answer
from dps_hf.serving.client import ServerError


@pytest.fixture
def script(example, monkeypatch, tmp_path):
    module = example("serve/ask.py")
    calls: list[tuple] = []

    class Client:
        server = "llama.cpp"

        def __init__(self, url, checkpoint):
            calls.append(("connect", url))

        def draw(self, prompt, guidance_scale):
            calls.append(("draw", prompt, guidance_scale))
            return Image.new("RGB", (64, 64), "red")

        def ask(self, question, pictures):
            calls.append(("ask", question, pictures[0].getpixel((0, 0))))
            return Answer("", "a red heart")

    monkeypatch.setattr(module, "Client", Client)

    def run(*words):
        monkeypatch.setattr(
            sys, "argv", ["ask.py", "http://there/v1", *words, "--output", str(tmp_path / "a" / "b.png")]
        )
        module.main()
        return calls, tmp_path / "a" / "b.png"

    run.Client = Client
    return run


def test_the_drawing_is_saved_and_asked_about(script, capsys):
    calls, path = script("--prompt", "a blue star", "--guidance", "1.5", "--question", "What is it?")
    assert calls == [("connect", "http://there/v1"), ("draw", "a blue star", 1.5), ("ask", "What is it?", (255, 0, 0))]
    with Image.open(path) as saved:
        assert saved.size == (64, 64)
    printed = capsys.readouterr().out
    assert "llama.cpp: " in printed and "What is it? a red heart" in printed


def test_nothing_is_saved_if_the_server_does_not_draw(script, monkeypatch, tmp_path):
    def fail(self, prompt, guidance_scale):
        raise ServerError("the server cannot be reached")

    monkeypatch.setattr(script.Client, "draw", fail)
    with pytest.raises(ServerError):
        script()
    assert not (tmp_path / "a" / "b.png").exists()
