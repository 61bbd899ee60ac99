"""Reading data sets from folders and functions, and the errors for wrong ones."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from dps_hf.data.record import record
from dps_hf.data.rows import Setting, read_rows
from dps_hf.data.sources import compute_fingerprint, make_lazy_dataset, read_records, split_off


sys.path.append(str(Path(__file__).parents[1] / "hub"))
from hub_server import Commit, HubServer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


ROWS = Dataset.from_dict({"text": ["one", "two"]})


def read(path):
    return read_rows(Setting(str(path)))


def test_what_was_saved_is_read(tmp_path):
    ROWS.save_to_disk(tmp_path)
    assert read(tmp_path).to_dict() == ROWS.to_dict()


@pytest.mark.parametrize("rows", [Dataset.from_dict({"text": []}), ROWS.select([])])
def test_a_folder_without_records_is_refused_by_name(tmp_path, rows):
    rows.save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"dataset must name a set with records; .*mine has none"):
        read(tmp_path / "mine")


def test_several_splits_without_train_are_refused_by_name(tmp_path):
    DatasetDict(valid=ROWS, test=ROWS).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"dataset .*both has the splits valid, test; got none"):
        read(tmp_path / "both")


def test_nothing_there_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read(tmp_path / "nothing-here")


MINE = """
from datasets import Dataset
from PIL import Image

from dps_hf.data.record import record

calls = []


def my_records():
    calls.append(1)
    return [record("mine", [Image.new("RGB", (8, 8), "red"), "What colour?"], ["red"]), record("mine", ["Hi"], ["Ho"])]


def my_dataset():
    return Dataset.from_list(my_records())


def my_number():
    return 7


def my_share(share):
    return []
"""


@pytest.mark.parametrize("name", ["my_records", "my_dataset"])
def test_a_dataset_may_be_anybodys_function(tmp_path, monkeypatch, name):
    module = f"module_of_{name}"
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        first, second = read_records(f"{module}.{name}")
        assert first["images"][0].getpixel((0, 0)) == (255, 0, 0) and second["images"] == []
        assert [part["type"] for part in first["messages"][0]["content"]] == ["image", "text"]
    assert len(sys.modules[module].calls) == 1, "it may be slow"
    with pytest.raises(ValueError, match=rf"dataset must name one set of records; {module}.my_number has int"):
        read(f"{module}.my_number")
    with pytest.raises(ValueError, match=rf"called without arguments; {module}.my_share needs some"):
        read(f"{module}.my_share")
    with pytest.raises(ValueError, match=rf"dataset must be the dotted path of a function.*'{module}.no_such'"):
        read(f"{module}.no_such")


def saved(tmp_path, *records):
    columns = {name: [one[name] for one in records] for name in ("messages", "images")}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "mine")
    return tmp_path / "mine"


def test_records_to_learn_from_are_read_with_their_pictures(tmp_path):
    red = Image.new("RGB", (8, 8), "red")
    path = saved(tmp_path, record("mine", [red, "What colour?"], ["red"]), record("mine", ["Say yes."], ["yes"]))
    first, second = read_records(path)
    assert first["images"][0].getpixel((0, 0)) == (255, 0, 0) and second["images"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["messages"].pop(), "record 1 of .*mine: 'messages' must end with a question and its answer"),
        (lambda one: one["messages"].append(one["messages"][0]), "record 1 of .*mine: 'messages' mention 2 image"),
        (
            lambda one: one["images"].clear(),
            r"record 1 of .*mine: 'messages' mention 1 image\(s\) but 'images' holds 0",
        ),
    ],
)
def test_a_record_that_nothing_can_be_learned_from_is_named(tmp_path, change, message):
    red = Image.new("RGB", (8, 8), "red")
    right, wrong = (record("mine", [red, "What colour?"], ["red"]) for _ in range(2))
    change(wrong)
    with pytest.raises(ValueError, match=message):
        read_records(saved(tmp_path, right, wrong))


def png(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


PART = {"type": Value("string"), "text": Value("string")}
MESSAGES = List({"role": Value("string"), "content": List(PART)})


@pytest.mark.parametrize("kind", ["decoded", "undecoded", "bytes", "paths", "paths alone", "arrays"])
def test_pictures_of_records_are_opened_however_they_were_saved(tmp_path, kind):
    rng = np.random.default_rng(0)
    one = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
    one.save(tmp_path / "one.png")
    kept, feature = {
        "decoded": (one, ImageFeature()),
        "undecoded": ({"bytes": png(one), "path": None}, ImageFeature(decode=False)),
        "bytes": (png(one), Value("binary")),
        "paths": (str(tmp_path / "one.png"), Value("string")),
        "paths alone": ({"bytes": None, "path": str(tmp_path / "one.png")}, ImageFeature(decode=False)),
        "arrays": (np.asarray(one).tolist(), List(List(List(Value("uint8"))))),
    }[kind]
    messages = [record("t", [one, "What?"], ["noise"])["messages"], record("t", ["Hi"], ["Ho"])["messages"]]
    rows = {"messages": messages, "images": [[kept], None]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(feature)})).save_to_disk(tmp_path / "mine")
    first, second = read_records(tmp_path / "mine")
    assert np.array_equal(np.asarray(first["images"][0]), np.asarray(one)) and second["images"] == []


def test_odd_exif_tags_do_not_make_a_record_unreadable(tmp_path):
    tags = struct.pack("<HHI", 0x0100, 2, 4) + b"abc\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a width as text
    odd = png(Image.new("RGB", (8, 6)), exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    one = record("t", [Image.new("RGB", (8, 6)), "What?"], ["nothing"])
    rows = {"messages": [one["messages"]], "images": [[{"bytes": odd, "path": None}]]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(ImageFeature())})).save_to_disk(tmp_path)
    assert read_records(tmp_path)[0]["images"][0].size == (6, 8)  # turned


@pytest.mark.parametrize("feature", [ImageFeature(), ImageFeature(decode=False)])
def test_a_missing_picture_is_named_with_its_record(tmp_path, feature):
    red = {"bytes": png(Image.new("RGB", (8, 8), "red")), "path": None}
    messages = [record("t", [Image.new("RGB", (8, 8))] * 2, ["no"])["messages"]] * 2
    rows = {"messages": messages, "images": [[red, red], [red, None]]}
    Dataset.from_dict(rows, Features({"messages": MESSAGES, "images": List(feature)})).save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"record 1 of .*mine: 'images'\[1\] holds no picture"):
        read_records(tmp_path / "mine")


def asked(number: int, **fields) -> dict:
    return {"question": f"{number}?", "answer": f"{number}!", **fields}


def lines(path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(records) -> list[str]:
    return [one["messages"][0]["content"][-1]["text"] for one in records]


@pytest.fixture
def sets(tmp_path) -> tuple[str, str]:
    """Two files: 40 questions from 0, and 10 from 100."""
    return (
        lines(tmp_path / "many.jsonl", [asked(i) for i in range(40)]),
        lines(tmp_path / "few.jsonl", [asked(i) for i in range(100, 110)]),
    )


def test_several_sets_without_weights_are_seen_once_each(sets):
    assert questions(read_records([*sets])) == [f"{i}?" for i in (*range(40), *range(100, 110))]


def test_weights_give_shares_and_every_row_is_seen(sets):
    many, few = ({"path": path, "weight": weight} for path, weight in zip(sets, (1, 3)))
    seen = questions(read_records([many, few], seed=1))
    assert len(seen) == 160 and sum(len(one) == 4 for one in seen) == 120
    assert {*seen} == {f"{i}?" for i in (*range(40), *range(100, 110))}
    assert seen == questions(read_records([many, few], seed=1)) != questions(read_records([many, few], seed=2))
    assert 10 < sum(len(one) == 4 for one in seen[:20]) < 20, "they are mixed"


def test_streamed_sets_are_read_one_row_at_a_time_and_mixed_by_weight(sets):
    streamed = [{"path": path, "weight": weight, "streaming": True} for path, weight in zip(sets, (1, 3))]
    records = read_records(streamed, seed=1)
    assert isinstance(records, IterableDataset)
    seen = questions(records)
    assert {*seen} == {f"{i}?" for i in (*range(40), *range(100, 110))} and seen == questions(records)
    assert 0.6 < sum(len(one) == 4 for one in seen) / len(seen) < 0.9
    both = questions(read_records([sets[0], {"path": sets[1], "streaming": True}]))
    assert sorted(both) == sorted(f"{i}?" for i in (*range(40), *range(100, 110)))


@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_bad_rows_stop_with_number_reason_and_file(tmp_path, streaming):
    rows = [asked(i, image="no.png" if i % 5 == 0 else None) for i in range(100)]
    setting = {"path": lines(tmp_path / "rows.jsonl", rows), "streaming": streaming}
    listed = tmp_path / "skipped.jsonl"
    with pytest.raises(
        ValueError,
        match=r"(?s)\d of the first \d+ rows are bad, more than max_skipped, 0.1.*The most frequent reason, \d times: "
        r"unreadable picture. All are listed in .*skipped.jsonl",
    ):
        list(read_records(setting, skipped=listed))
    assert 3 <= len(listed.read_text().splitlines()) < 10, "it stops early"
    seen = questions(read_records(setting, skipped=listed, max_skipped=0.5))
    assert len({*seen}) == 80 and (streaming or len(seen) == 100)
    assert [json.loads(line)["row"] for line in listed.read_text().splitlines()] == [*range(0, 100, 5)], "each once"


@pytest.mark.parametrize("weight", [None, 1])
def test_several_streams_of_pictures_are_mixed(tmp_path, weight):
    settings = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
        path = lines(tmp_path / f"{name}.jsonl", [asked(name, image=f"{name}.png")] * 6)
        settings.append({"path": path, "streaming": True, "weight": weight})
    seen = [one["images"][0].getpixel((0, 0)) for one in read_records(settings)]
    assert {*seen} == {(255, 0, 0), (0, 0, 255)} and (weight or len(seen) == 12)


@pytest.mark.parametrize("streaming", [False, True])
def test_each_row_counts_once_however_often_it_is_read(tmp_path, streaming):
    # Each bad row is followed by a good one, which takes its place and is read again in its own.
    rows = [asked(i, image="no.png" if i % 4 == 0 else None) for i in range(40)]
    setting = {"path": lines(tmp_path / "rows.jsonl", rows), "streaming": streaming}
    records = read_records(setting, skipped=tmp_path / "skipped.jsonl", max_skipped=0.4)
    for _ in range(3):
        list(records)
    if not streaming:
        assert (records.skips.seen, records.skips.reasons.total()) == (40, 10)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 10


def test_the_share_of_bad_rows_is_not_lowered_by_those_that_take_their_place(tmp_path):
    rows = [asked(i, image="no.png" if i % 3 else None) for i in range(30)]
    with pytest.raises(ValueError, match="13 of the first 20 rows are bad"):
        list(read_records(lines(tmp_path / "rows.jsonl", rows), max_skipped=0.64))


def test_no_bad_row_is_allowed_with_a_share_of_zero(tmp_path):
    path = lines(tmp_path / "rows.jsonl", [asked(0), asked(1, image="no.png")])
    with pytest.raises(ValueError, match="1 of the first 2 rows are bad"):
        list(read_records(path, max_skipped=0))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_without_a_good_row_is_an_error(tmp_path, streaming):
    path = lines(tmp_path / "rows.jsonl", [asked(0, image="no.png")] * 3)
    with pytest.raises(
        ValueError,
        match=r"No row of .*rows.jsonl is good. The most frequent reason, 3 times: unread.* The last: .*no file",
    ):
        read_records({"path": path, "streaming": streaming})[0]


def test_workers_of_a_loader_list_bad_rows_once(tmp_path):
    rows = [asked(i, image="no.png" if i % 20 == 0 else None) for i in range(100)]
    listed = tmp_path / "run" / "skipped.jsonl"
    records = make_lazy_dataset(read_records(lines(tmp_path / "rows.jsonl", rows), 0, listed, max_skipped=0.5))
    loader = DataLoader(records, batch_size=5, num_workers=2, collate_fn=list)
    for _ in range(2):
        assert len(questions(one for batch in loader for one in batch)) == 100
    found = sorted(json.loads(line)["row"] for line in listed.read_text().splitlines())
    assert found == [0, 20, 40, 60, 80]


def test_records_go_to_other_processes(sets):
    records = read_records([*sets])
    assert questions(pickle.loads(pickle.dumps(records))) == questions(records)


def test_a_part_split_off_for_evaluation_has_no_row_of_training(sets):
    records = read_records([{"path": path, "weight": weight} for path, weight in zip(sets, (1, 3))])
    training, held_out = split_off(records, 0.2, seed=1)
    assert len(held_out) == 10 and not {*questions(training)} & {*questions(held_out)}
    assert len({*questions(training)} | {*questions(held_out)}) == 50
    assert questions(held_out) == questions(split_off(records, 0.2, seed=1)[1])
    assert questions(held_out) != questions(split_off(records, 0.2, seed=2)[1])
    with pytest.raises(ValueError, match=r"evaluation_share must be between 0 and 1; got 1.5"):
        split_off(records, 1.5)
    with pytest.raises(ValueError, match=r"not streamed. Give an evaluation_dataset"):
        split_off(read_records({"path": sets[0], "streaming": True}), 0.1)


def test_fingerprints_change_with_contents_and_settings(sets, tmp_path):
    first, again = compute_fingerprint(sets[0]), compute_fingerprint(sets[0])
    assert first == again != compute_fingerprint({"path": sets[0], "columns": {"prompt": "answer"}})
    assert compute_fingerprint([*sets]) != first
    records = read_records(sets[0])
    assert records.fingerprint != split_off(records, 0.5)[0].fingerprint
    captions = [{"path": sets[0], "streaming": streaming} for streaming in (False, True)]
    before = [compute_fingerprint(one) for one in captions]
    lines(tmp_path / "many.jsonl", [asked(7)])
    assert not {*before} & {compute_fingerprint(one) for one in captions}


def test_600_000_rows_are_not_opened_until_they_are_requested(tmp_path):
    number = 600_000
    rows = {"image": ["no.png"] * number, "text": [f"picture {i}" for i in range(number)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    begin = time.perf_counter()
    records = read_records(str(tmp_path / "rows.parquet"))
    assert len(make_lazy_dataset(records)) == 2 * number and time.perf_counter() - begin < 30
    with pytest.raises(ValueError, match="20 of the first 20 rows are bad"):
        records[number - 1]


class PictureServer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        body = png(Image.new("RGB", (8, 8), "red"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_urls_are_fetched_only_if_the_data_set_says_so(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), PictureServer)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        path = lines(tmp_path / "rows.jsonl", [asked(0, image=f"http://127.0.0.1:{server.server_port}/red.png")])
        with pytest.raises(ValueError, match=r"No row of .* is good"):
            read_records(path, max_skipped=1)[0]
        assert not server.asked
        assert read_records({"path": path, "fetch_urls": True})[0]["images"][0].getpixel((0, 0)) == (255, 0, 0)
        assert server.asked == ["/red.png"]
        saved_records = record("mine", [Image.new("RGB", (8, 8)), "What?"], ["red"])
        urls = {"messages": [saved_records["messages"]], "images": [[f"http://127.0.0.1:{server.server_port}/2.png"]]}
        Dataset.from_dict(urls).save_to_disk(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"URLs are not fetched|No row"):
            read_records(tmp_path / "saved")[0]
        assert server.asked == ["/red.png"]
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    "setting, error, message",
    [
        ("no.jsonl", FileNotFoundError, r"there is no file or folder no.jsonl"),
        ("./no", FileNotFoundError, r"there is no file or folder ./no"),
        ("no/*.parquet", FileNotFoundError, r"there is no file or folder no/\*.parquet"),
        ("runs/none/paired", FileNotFoundError, r"runs/none/paired is no file or folder here, and cannot be had"),
        ("empty", FileNotFoundError, r"the folder empty has no files of rows or pictures"),
        (
            {"path": "x.jsonl", "colums": {}},
            ValueError,
            r"dataset has no field colums. Its fields are path, name",
        ),
        ({"name": "x"}, ValueError, r"must be a path or a name, or a mapping with path"),
        ([], ValueError, r"must name at least one data set"),
        ({"path": "x.jsonl", "weight": 0}, ValueError, r"dataset.weight must be a number above 0; got 0"),
        ({"path": "x.jsonl", "weight": "2"}, ValueError, r"dataset.weight must be a number above 0; got '2'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, monkeypatch, setting, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        read_records(setting)


def test_metadata_of_a_folder_go_before_other_files_in_it(tmp_path):
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    lines(tmp_path / "metadata.jsonl", [{"file_name": f"{name}.png", "text": name} for name in ("red", "blue")])
    (tmp_path / "captions_train.json").write_text('{"images": [], "annotations": []}')
    records = read_records({"path": str(tmp_path), "captions": {"describe": {"share": 1}}})
    assert {record["messages"][-1]["content"][0]["text"] for record in records} == {"red", "blue"}


def test_metadata_without_names_of_files_are_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    lines(tmp_path / "metadata.jsonl", [{"file": "0.png", "text": "black"}])
    with pytest.raises(ValueError, match=rf"dataset {tmp_path} cannot be read: .*file_name"):
        read_records(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"question": "1?", "answer": "1"}\n{"question": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl cannot be read: .*JSON parse error"):
        read_records(str(tmp_path / "broken.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"image_folder must be a folder; there is none at .*nowhere"):
        read_records({"path": lines(tmp_path / "a.jsonl", [asked(0)]), "image_folder": str(tmp_path / "nowhere")})


def test_columns_that_begin_late_in_a_large_file_are_read(tmp_path):
    rows = [asked(i, filler="x" * 1000) for i in range(11_000)]  # more than one chunk of `datasets`
    path = lines(tmp_path / "large.jsonl", [*rows, asked(-1, system="Be kind.")])
    assert [one["role"] for one in read_records(path)[11_000]["messages"]] == ["system", "user", "assistant"]


@pytest.mark.slow
def test_a_set_on_the_hub_with_pictures_beside_its_rows(tmp_path):
    picture = png(Image.new("RGB", (8, 8), "red"))
    rows = "".join(json.dumps(asked(i, image="pictures/red.png")) + "\n" for i in range(3)).encode()
    described = b'{"file_name": "red.png", "text": "all red"}\n'
    configs = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    files = {
        "me/rows": {"train.jsonl": rows, "pictures/red.png": picture},
        "me/folder": {"metadata.jsonl": described, "red.png": picture},
        "me/two": {"README.md": configs, "a.jsonl": rows, "b.jsonl": b'{"text": "b"}\n'},
    }
    settings = [
        {"path": "me/rows", "data_files": "train.jsonl"},
        "me/folder",
        {"path": "me/folder", "streaming": True},
        {"path": "me/two", "name": "b", "revision": "main"},
    ]
    code = (
        "import sys\nfrom dps_hf.data.sources import read_records\n"
        "for setting in eval(sys.argv[1]):\n"
        "    records = list(read_records(setting))\n"
        "    print(len(records), [image.getpixel((0, 0)) for image in records[0]['images']])\n"
    )
    with HubServer() as server:
        for name, content in files.items():
            server.commits["datasets", name] = [Commit(content)]
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", code, repr(settings)], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    counts = [line for line in done.stdout.splitlines() if not line.startswith("dataset")]
    assert counts == ["3 [(255, 0, 0)]", "1 [(255, 0, 0)]", "1 [(255, 0, 0)]", "1 []"]


def test_a_record_can_be_looked_at_without_its_picture(tmp_path):
    records = read_records(lines(tmp_path / "rows.jsonl", [asked(0, image="no.png")]))
    one = records.peek(0)
    assert one["images"] == ["no.png"] and one["messages"][1]["content"][0]["text"] == "0!"


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_is_named(tmp_path, streaming):
    with pytest.raises(ValueError, match=r"must name a set with records; .*empty.jsonl has none"):
        read_records({"path": lines(tmp_path / "empty.jsonl", []), "streaming": streaming})


@pytest.mark.parametrize("whole", [{"data": [asked(0), asked(1)]}, {"version": 1, "data": [asked(0), asked(1)]}])
def test_rows_within_one_object_are_found(tmp_path, whole):
    (tmp_path / "rows.json").write_text(json.dumps(whole))
    assert questions(read_records(str(tmp_path / "rows.json"))) == ["0?", "1?"]
