"""`nano/parity.py`, which compares a server with transformers, on a server that says what a test wants."""

import json
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def parity(example):
    return example("nano/parity.py")


def test_half_of_the_pictures_are_scenes_and_every_fifth_is_oblong(parity):
    questions, pictures = zip(*parity.make_pictures(10))
    assert questions == ("Describe the picture.", "What is this?") * 5
    assert [i for i, picture in enumerate(pictures) if picture.size != (64, 64)] == [4, 9]


def test_the_first_token_that_differs_is_named_with_its_gap(parity):
    logprobs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log()
    reference = parity.Reference(torch.tensor([0, 1]), logprobs)
    found = parity.find_divergence(reference, [0, 2])
    assert found["token"] == 1 and found["logprob_gap"] == pytest.approx(0.6931, abs=1e-3)
    assert parity.find_divergence(reference, [0]) == {"token": 1, "logprob_gap": None}, "the server stops earlier"


def test_figures_are_added_to_those_of_other_servers(parity, monkeypatch, saved_model, tmp_path):
    class Client:
        def __init__(self, url, checkpoint):
            assert (url, checkpoint) == ("http://there/v1", saved_model)

    output = tmp_path / "serving.json"
    output.write_text(json.dumps({"old": {"answers": 1}}))
    asked = []
    monkeypatch.setattr(parity, "Client", Client)
    monkeypatch.setattr(parity, "compare", lambda *given: asked.append(given[-3:]) or {"divergences": ["where"]})
    words = ["parity.py", "new=http://there/v1", "--checkpoint", saved_model, "--items", "3", "--note", "on a laptop"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    parity.main()
    results = json.loads(output.read_text())
    assert asked == [(3, 0, 4)] and results["old"] == {"answers": 1}
    assert results["new"]["note"] == "on a laptop" and results["new"]["command"].startswith("python parity.py new=")
