"""The benchmark of tuning memory: the measurement and its model."""

import subprocess
import sys

import pytest

from dps_hf.inference import load


@pytest.fixture(scope="module")
def benchmark(example):
    return example("benchmarks/tuning_memory.py")


def test_the_peak_is_the_most_memory_that_the_process_used(benchmark):
    size = 1200  # MiB
    held = [sys.executable, "-c", f"held = b'.' * ({size} << 20); del held"]
    # In a process of its own: a child counts the pages that its parent had when it began.
    code = f"import runpy; print(runpy.run_path({benchmark.__file__!r})['measure_peak']({held!r}))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert size < int(told.stdout) < size + 60


def test_a_failed_process_raises_an_error(benchmark):
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        benchmark.measure_peak([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_model_has_nanos_parts_and_a_decoder_of_the_sizes(benchmark, monkeypatch, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(benchmark, "SIZES", sizes)
    parameters = benchmark.save_model(tmp_path)
    model, processor = load(tmp_path)
    assert model.num_parameters() == parameters
    assert model.config.text_config.to_dict().items() >= sizes.items()
    for (name, one), other in zip(
        load()[0].model.vision_tower.named_parameters(), model.model.vision_tower.parameters()
    ):
        assert other.float().allclose(one, atol=0.05), name
    assert processor.code_ids.start == model.config.image_code_start_id
