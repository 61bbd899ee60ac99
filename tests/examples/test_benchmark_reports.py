"""The parts that all benchmarks share."""

import json
import sys
import time
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import comparison
    import run

    yield comparison, run
    for name in ("comparison", "run"):
        sys.modules.pop(name, None)


def test_the_slower_of_two_functions_gives_the_ratio(scripts, monkeypatch, tmp_path):
    comparison, _ = scripts
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        def run():
            clock[0] += seconds

        return run

    compared = comparison.compare("drawing", takes(2.0), takes(5.0), rounds=3, goal=2.0, peer_name="Janus")
    assert (compared.ratio, compared.low, compared.high) == (2.5, 2.5, 2.5)
    assert (compared.ours_seconds, compared.peer_seconds) == (2.0, 5.0)
    comparison.write_report(tmp_path / "new" / "drawing.json", [compared], model="tiny")
    report = json.loads((tmp_path / "new" / "drawing.json").read_text())
    assert report["model"] == "tiny" and report["comparisons"][0]["peer"] == "Janus"


def test_both_functions_go_first_in_turn(scripts):
    comparison, _ = scripts
    calls = []
    comparison.compare("order", lambda: calls.append("ours"), lambda: calls.append("peer"), rounds=2)
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours"]


def test_the_plot_shows_ratios_with_and_without_goals(scripts, tmp_path):
    pytest.importorskip("matplotlib")
    _, run = scripts
    row = {"name": "drawing", "peer": "Janus", "ratio": 4.0, "low": 3.0, "high": 5.0}
    run.plot_ratios([{**row, "goal": 4.0}, {**row, "goal": None}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_benchmark_is_named_and_the_others_are_reported(scripts, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    _, run = scripts
    for name, code in (("drawing", "raise SystemExit(1)"), ("answering", "WRITE")):
        row = '[{"name": "a", "peer": "b", "ratio": 1.0, "low": 1.0, "high": 1.0, "goal": None}]'
        write = f"import json, sys; json.dump({{'comparisons': {row}}}, open(sys.argv[2], 'w'))"
        (tmp_path / f"{name}.py").write_text(write if code == "WRITE" else code)
    monkeypatch.setattr(run, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="failed: drawing"):
        run.main(run.ScriptArguments(output=tmp_path, only=["drawing", "answering"]))
    assert list(json.loads((tmp_path / "benchmarks.json").read_text())) == ["answering"]


def test_an_unknown_benchmark_is_refused_with_the_names_of_all(scripts):
    _, run = scripts
    with pytest.raises(ValueError, match=r"only must name benchmarks out of drawing, .*; got drawings"):
        run.main(run.ScriptArguments(only=["drawings"]))


def test_every_benchmark_of_the_run_is_a_file(scripts):
    _, run = scripts
    assert all((FOLDER / f"{name}.py").exists() for name in run.SCRIPTS)
