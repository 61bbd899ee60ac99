"""The benchmarks of answers and of pictures run, and report what they say."""

import json
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import answering
    import pictures

    yield answering, pictures
    for name in ("answering", "comparison", "pictures"):
        sys.modules.pop(name, None)


def test_the_benchmark_of_answers_compares_with_smolvlm_and_with_a_copy(scripts, tmp_path):
    answering, _ = scripts
    file = tmp_path / "answering.json"
    answering.main(answering.ScriptArguments(file, rounds=1, layers=1, words=2, precisions=["float32"]))
    comparisons = json.loads(file.read_text())["comparisons"]
    assert [one["name"] for one in comparisons] == [
        "answers, float32, batch 1",
        "answers, float32, batch 8",
        "answers, float32, batch 8, one picture",
        "words of a 135M decoder, float32",
        "words of dps-nano, float32",
    ]
    assert {one["peer"] for one in comparisons} == {"SmolVLM", "a copy of its bytes"}
    assert all(one["ratio"] > 0 for one in comparisons)


def test_the_benchmark_of_pictures_names_the_backend_of_its_peer(scripts, tmp_path):
    _, pictures = scripts
    file = tmp_path / "pictures.json"
    pictures.main(pictures.ScriptArguments(file, rounds=1, photographs=2, side=32))
    report = json.loads(file.read_text())
    assert report["janus"] in ("pil", "torchvision") and len(report["comparisons"]) == 5
