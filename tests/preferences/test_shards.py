"""Files: parts, what they add up to, and what that costs."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from datasets import load_dataset, load_from_disk
from PIL import Image

from dps_hf.contact_sheet import strip_accents
from dps_hf.judges.verdict import Verdict
from dps_hf.preferences.pairs import Selection
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response
from dps_hf.preferences.shards import draw_sheet, is_written, join_parts, write_part


RED = Image.new("RGB", (16, 16), "red")


def judged_group(number: int, images=()):
    responses = [
        Response(text, text, 2, verdict=Verdict({"exact": score}, "", "j", "model"))
        for text, score in ((f"good {number}", 1.0), (f"bad {number}", 0.0))
    ]
    return Prompt(f"prompt {number}", images, task="t"), responses


def test_parts_add_up_to_datasets_and_figures(tmp_path):
    for part in (1, 0):
        write_part(tmp_path / "parts", part, [judged_group(2 * part), judged_group(2 * part + 1)], Selection())
    statistics = join_parts(tmp_path / "parts", 2, tmp_path)
    paired = load_from_disk(tmp_path / "paired")
    assert [row["content"] for (row,) in paired["prompt"]] == [f"prompt {i}" for i in range(4)]
    assert "images" not in paired.column_names, "trl would take it for a dataset of pictures"
    assert load_from_disk(tmp_path / "unpaired")["label"] == [True, False] * 4
    assert statistics == json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["counts"]["pairs"] == 4 and statistics["paired"]["means"]["score_chosen"] == 1.0
    assert statistics["unpaired"] == {
        "rows": 8, "rows of each task": {"t": 8}, "means": {"label": 0.5, "score": 0.5, "tokens": 2.0},
    }  # fmt: skip


def test_machines_that_finish_together_join_one_after_the_other(tmp_path):
    write_part(tmp_path / "parts", 0, [judged_group(number) for number in range(40)], Selection())
    with ThreadPoolExecutor(4) as machines:
        joins = [machines.submit(join_parts, tmp_path / "parts", 1, tmp_path) for _ in range(4)]
    assert [join.result() for join in joins] == [json.loads((tmp_path / "statistics.json").read_text())] * 4
    assert len(load_from_disk(tmp_path / "paired")) == 40


def test_pictures_survive_pixel_by_pixel(tmp_path):
    write_part(tmp_path / "parts", 0, [judged_group(0, (RED,)), judged_group(1)], Selection())
    join_parts(tmp_path / "parts", 1, tmp_path)
    with_picture, without = load_from_disk(tmp_path / "paired")
    assert with_picture["images"][0].tobytes() == RED.tobytes()
    assert without["images"] == []


def test_parts_stream_before_all_are_there(tmp_path):
    write_part(tmp_path, 3, [judged_group(3, (RED,))], Selection())
    streamed = load_dataset("parquet", data_files=str(tmp_path / "*.paired.parquet"), split="train", streaming=True)
    (row,) = streamed
    assert row["chosen"][0]["content"] == "good 3" and row["images"][0].size == (16, 16)


def test_a_part_is_written_only_when_all_of_it_is(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("dps_hf.preferences.shards.json.dumps", killed)
        write_part(tmp_path, 0, [judged_group(0)], Selection())
    assert not is_written(tmp_path, 0)
    write_part(tmp_path, 0, [judged_group(0)], Selection())
    assert is_written(tmp_path, 0)


def test_a_dataset_without_rows_is_left_out(tmp_path):
    write_part(tmp_path / "parts", 0, [(Prompt("prompt"), [])], Selection())
    statistics = join_parts(tmp_path / "parts", 1, tmp_path)
    assert set(statistics) == {"counts"} and not (tmp_path / "paired").exists()


def test_a_sheet_shows_both_responses(tmp_path):
    write_part(tmp_path / "parts", 0, [judged_group(i) for i in range(3)], Selection())
    join_parts(tmp_path / "parts", 1, tmp_path)
    shown = []
    page = draw_sheet(tmp_path / "paired", lambda text: shown.append(text) or RED, number=2)
    assert shown == ["good 0", "bad 0", "good 1", "bad 1"]
    assert RED.getpixel((0, 0)) in page.get_flattened_data()


def test_a_sheet_shows_the_label_of_a_response_in_another_script(tmp_path, monkeypatch):
    prompt, (good, bad) = judged_group(0)
    write_part(tmp_path / "parts", 0, [(prompt, [good, replace(bad, text="绿", content="绿")])], Selection())
    join_parts(tmp_path / "parts", 1, tmp_path)
    monkeypatch.setattr("dps_hf.preferences.shards.draw_page", lambda sections: sections[0].items[0].lines)
    lines = list(filter(None, map(strip_accents, draw_sheet(tmp_path / "paired", lambda text: None))))
    assert [line.split(" (")[0] for line in lines] == ["prompt 0", "chosen", "good 0", "rejected"]


TEN_THOUSAND = """
import resource, sys
from pathlib import Path
import numpy as np
from datasets import load_from_disk
from PIL import Image
from dps_hf.judges.verdict import Verdict
from dps_hf.preferences.pairs import Selection
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response
from dps_hf.preferences.shards import join_parts, write_part

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)

def group(number):
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    codes = ["".join(f"<img_{code}>" for code in rng.integers(0, 4096, 64)) for _ in range(8)]
    verdicts = [Verdict({"exact": i / 8}, "", "j", "model") for i in range(8)]
    return Prompt(f"prompt {number}", (picture,)), [Response(c, c, 66, verdict=v) for c, v in zip(codes, verdicts)]

for part in range(50):
    write_part(folder / "parts", part, map(group, range(part * 50, part * 50 + 50)), Selection())
join_parts(folder / "parts", 50, folder)
rows = sum(len(row["images"]) == 1 for row in load_from_disk(folder / "paired"))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_ten_thousand_pairs_with_pictures_take_less_than_a_gigabyte(tmp_path):
    command = [sys.executable, "-c", TEN_THOUSAND, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    rows, megabytes = map(int, result.stdout.split())
    print(f"{rows} pairs, at most {megabytes} MiB")
    assert rows == 10_000 and megabytes < 1024
