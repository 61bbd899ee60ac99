import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from dps_hf.data.guidance import Schedule
from dps_hf.data.mixture import Mixture, ShuffledWords
from dps_hf.data.record import record
from dps_hf.nano.tasks import TASKS, validate


def same(a, b) -> bool:
    return (
        a["messages"] == b["messages"]
        and a["task"] == b["task"]
        and [image.tobytes() for image in a["images"]] == [image.tobytes() for image in b["images"]]
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_task_gives_valid_records_under_its_own_name(task, split):
    for example in islice(Mixture({f"dps_hf.nano.tasks.{task}": 1}, split=split).stream(), 5):
        validate(example)
        assert example["task"] == task


def test_a_record_depends_on_seed_and_index_alone():
    weights = {"dps_hf.nano.tasks.scenes_t2i": 1, "dps_hf.nano.tasks.scenes_cot": 2, "dps_hf.nano.tasks.facts": 1}
    forwards, again = Mixture(weights, seed=5), Mixture(weights, seed=5, length=50)
    records = [forwards[i] for i in range(20)]
    assert all(same(again[i], records[i]) for i in reversed(range(20)))
    assert not all(same(Mixture(weights, seed=6)[i], records[i]) for i in range(20))


def test_a_stream_resumes_anywhere():
    mixture = Mixture({"dps_hf.nano.tasks.scenes_t2i": 1, "dps_hf.nano.tasks.facts": 1})
    for i, example in enumerate(islice(mixture.stream(start=1000), 10)):
        assert same(example, mixture[1000 + i])


def test_tasks_come_as_often_as_their_weights_say():
    mixture = Mixture(
        {"dps_hf.nano.tasks.scenes_t2i": 3, "dps_hf.nano.tasks.facts": 1, "dps_hf.nano.tasks.emoji_t2i": 0}
    )
    counts = Counter(mixture.task(i) for i in range(2000))
    assert counts["scenes_t2i"] / 2000 == pytest.approx(0.75, abs=0.04)
    assert counts["facts"] / 2000 == pytest.approx(0.25, abs=0.04)


def test_a_block_shares_a_task_but_no_record():
    mixture = Mixture({"dps_hf.nano.tasks.scenes_i2t": 1, "dps_hf.nano.tasks.facts": 1}, block=8)
    blocks = [{mixture.task(i) for i in range(start, start + 8)} for start in range(0, 160, 8)]
    assert all(len(block) == 1 for block in blocks)
    assert len(set.union(*blocks)) == 2
    start = 8 * blocks.index({"facts"})
    assert len({str(mixture[i]["messages"]) for i in range(start, start + 8)}) > 4


def test_few_records_come_again_while_their_guidance_changes():
    guidance = {"scenes_cot": Schedule({"steps": 1}, {"none": 1})}
    mixture = Mixture(
        {"dps_hf.nano.tasks.scenes_cot": 1, "dps_hf.nano.tasks.facts": 1}, 0, 20, guidance=guidance, num_records=4
    )
    for i in range(4):
        passes = [mixture[j] for j in range(i, 20, 4)]
        assert len({(m["task"], str(m["messages"][0]["content"])) for m in passes}) == 1
        if passes[0]["task"] == "scenes_cot":
            thought = ["<think>" in m["messages"][-1]["content"][0]["text"] for m in passes]
            assert thought == sorted(thought, reverse=True) and thought[0] and not thought[-1]
    assert len({mixture.task(i) for i in range(4)}) == 2


def test_it_is_a_sequence():
    mixture = Mixture({"dps_hf.nano.tasks.facts": 1}, length=3)
    assert len(mixture) == 3
    assert len(list(mixture)) == 3
    with pytest.raises(IndexError, match=r"index must be in \[0, 3\); got 3"):
        mixture[3]


def test_it_travels_to_worker_processes():
    mixture = Mixture({"dps_hf.nano.tasks.facts": 1, "dps_hf.nano.tasks.scenes_i2t": 1}, seed=4)
    assert same(pickle.loads(pickle.dumps(mixture))[7], mixture[7])


def test_a_task_may_be_anybodys_function(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(
        "from dps_hf.data.record import record\n"
        "def greet(rng, split):\n"
        "    return record('greet', ['Hello'], [f'Hello, {split} {rng.integers(100)}.'])\n"
    )
    monkeypatch.chdir(tmp_path)
    mixture = Mixture({"my_tasks.greet": 1}, split="validation", guidance={"greet": Schedule({"none": 1})})
    assert mixture[0]["messages"][1]["content"][0]["text"].startswith("Hello, validation ")
    assert mixture.task(3) == "greet"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"weights": {"scenes": 1}}, "weights must be the dotted path of a function.*got 'scenes'"),
        ({"weights": {"dps_hf.nano.tasks.no_such": 1}}, "got 'dps_hf.nano.tasks.no_such'"),
        ({"weights": {"dps_hf.nano.tasks.facts": 1, "dps_hf.nano.facts.facts": 1}}, "tasks with different names"),
        (
            {"weights": {"dps_hf.nano.tasks.facts": 1}, "guidance": {"fact": None}},
            "guidance names fact, which weights do not",
        ),
        (
            {"weights": {"dps_hf.nano.tasks.facts": -1}},
            r"weights\['dps_hf.nano.tasks.facts'\] must be 0 or more.*got -1",
        ),
        (
            {"weights": {"dps_hf.nano.tasks.facts": np.nan}},
            r"weights\['dps_hf.nano.tasks.facts'\] must be 0 or more.*got nan",
        ),
        ({"weights": {"dps_hf.nano.tasks.facts": 0}}, "at least one task a weight above 0"),
        ({"weights": {}}, "at least one task a weight above 0"),
        ({"weights": {"dps_hf.nano.tasks.facts": 1}, "block": 0}, "block must be at least 1; got 0"),
        ({"weights": {"dps_hf.nano.tasks.facts": 1}, "num_records": 0}, "num_records must be at least 1; got 0"),
        (
            {"weights": {"dps_hf.nano.tasks.facts": 1}, "split": "test"},
            "split must be 'train' or 'validation'; got 'test'",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Mixture(**arguments)


def test_shuffled_words_keep_the_drawings():
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    records = [record("t", ["red"], [red]), record("t", ["blue"], [blue])]
    shuffled = ShuffledWords(records)[0]
    assert shuffled["messages"][0]["content"][0]["text"] == "blue"
    assert shuffled["images"] == [red]
