"""The benchmark of generation on a tiny random model."""

import json

import pytest


def test_all_cases_are_timed_and_compared(example, saved_model, tmp_path, monkeypatch):
    benchmark = example("benchmarks/generation.py")
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(benchmark, "PREFILL", (1, 8))
    monkeypatch.setattr(benchmark, "MATMUL", 32)
    output = tmp_path / "benchmarks.json"
    benchmark.main(benchmark.ScriptArguments(model=saved_model, output=output, repeats=1))
    report = json.loads(output.read_text())
    figures, seconds = report["figures"], report["seconds"]
    assert all(value > 0 for value in seconds.values())
    for batch in (1, 2):
        guided = seconds[f"guided_{batch}"]
        assert figures[f"drawings_per_second.guided.batch_{batch}"] == pytest.approx(batch / guided, rel=1e-2)
        assert figures[f"speedup.dps_over_janus.batch_{batch}"] == pytest.approx(
            seconds[f"janus_{batch}"] / guided, rel=1e-2
        )
        two_passes = seconds[f"two_passes_{batch}"]
        assert figures[f"speedup.one_doubled_batch_over_two_passes.batch_{batch}"] == pytest.approx(
            two_passes / guided, rel=1e-2
        )
