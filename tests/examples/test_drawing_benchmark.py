"""The benchmark of drawing runs on a tiny random model, and reports what it says."""

import json
import sys
from pathlib import Path

import pytest
import torch


FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def drawing(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import drawing

    yield drawing
    for name in ("drawing", "comparison"):
        sys.modules.pop(name, None)


def test_drawing_is_compared_with_janus_and_with_one_code_at_a_time(drawing, saved_model, tmp_path):
    file = tmp_path / "drawing.json"
    drawing.main(drawing.ScriptArguments(model=saved_model, output=file, rounds=1, batch_sizes=[1, 3]))
    comparisons = json.loads(file.read_text())["comparisons"]
    assert [(one["name"], one["peer"]) for one in comparisons] == [
        (f"drawing, {kind}, batch {batch}", peer)
        for batch in (1, 3)
        for kind in ("guided", "unguided")
        for peer in ("Janus", "one code at a time")
    ]
    assert [one["goal"] for one in comparisons] == [4.0, None] * 2 + [None] * 4
    assert all(one["ratio"] > 0 for one in comparisons)


def test_janus_has_the_decoder_of_the_model(drawing, tiny_model):
    janus = drawing.make_janus(tiny_model).model
    for name, weight in tiny_model.model.language_model.state_dict().items():
        assert torch.equal(janus.language_model.state_dict()[name], weight)
    assert janus.generation_head.vision_head.out_features == tiny_model.config.codebook_size
