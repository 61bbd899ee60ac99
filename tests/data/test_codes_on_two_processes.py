"""Drawings are encoded ahead by the main process, and the others read them."""

import os
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from two_processes import run_on_two

from dps_hf.data import codes
from dps_hf.data.record import record


def encode_on(rank: int, checkpoint: str, cache: str) -> tuple:
    import datasets

    from dps_hf.inference import load

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in places.items()}
    PartialState._reset_state()  # loading a model may have made one, before there were two processes
    assert PartialState(cpu=True).num_processes == 2
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    model, processor = load(checkpoint, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    records = [record("t", ["noise"], [picture]) for picture in map(Image.fromarray, pixels)]
    calls, encode = [], codes._encode

    def count(*arguments):
        calls.append(1)
        return encode(*arguments)

    codes._encode = count
    encoded = codes.encode_ahead(records, model, processor, batch_size=2)
    return len(calls), [encoded[i]["codes"] for i in range(6)]


@pytest.mark.slow
def test_the_main_process_encodes_and_the_other_reads(saved_model, tmp_path):
    (calls, found), (others, read) = run_on_two(encode_on, tmp_path, saved_model, str(tmp_path / "cache"))
    assert calls == 3 and others == 0
    assert read == found and all(len(drawings[0]) == 4 for drawings in found)
