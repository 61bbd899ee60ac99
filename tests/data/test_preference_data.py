"""Preferences in the forms in which people have them, from files on disk to what trl takes."""

import io
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from dps_hf.data.preferences import TEXTS, read_preferences
from dps_hf.preferences.datasets import unpair
from dps_hf.preferences.drawings import write_drawings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def picture(colour: str) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def codes_of_colours(monkeypatch):
    """Codes by colour, since random weights give all pictures the same."""
    code = {(255, 0, 0): 1, (0, 0, 255): 2}
    monkeypatch.setattr(
        "dps_hf.preferences.drawings.encode",
        lambda model, processor, pictures: torch.tensor([[code[one.getpixel((0, 0))]] * 4 for one in pictures]),
    )
    return {name: f"<begin_of_image>{f'<img_{code}>' * 4}<end_of_image>" for name, code in (("red", 1), ("blue", 2))}


def lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def words(chat: list | str) -> str:
    """A chat as one line, with `*` for a picture."""
    if isinstance(chat, str):
        return chat
    return " ".join(
        f"{message['role']}: "
        + (
            message["content"]
            if isinstance(message["content"], str)
            else "".join("*" if part["type"] == "image" else part["text"] for part in message["content"])
        )
        for message in chat
    )


def test_trls_texts_and_messages_stay_as_they_are(tmp_path, capsys):
    texts = {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}
    rows = read_preferences(lines(tmp_path / "texts.jsonl", [texts]))
    assert rows[0] == texts
    assert (
        "dataset texts.jsonl: 1 rows, pairs (prompt: prompt, chosen: chosen, rejected: rej" in capsys.readouterr().out
    )
    chats = {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in texts.items()
    }
    assert read_preferences(lines(tmp_path / "chats.jsonl", [chats]))[0] == chats
    whole = {name: chats["prompt"] + chats[name] for name in ("chosen", "rejected")}
    assert read_preferences(lines(tmp_path / "implicit.jsonl", [whole]))[0] == whole  # trl finds the prompt


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_and_messages_of_trl_are_the_same_when_they_are_streamed(tmp_path, streaming):
    texts = {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}
    setting = {"path": lines(tmp_path / "texts.jsonl", [texts]), "streaming": streaming}
    assert next(iter(read_preferences(setting))) == texts


@pytest.mark.parametrize("streaming", [False, True])
def test_ultrafeedbacks_prompt_is_not_seen_twice(tmp_path, streaming):
    prompt = {"role": "user", "content": "Hi"}
    chosen, rejected = ([prompt, {"role": "assistant", "content": text}] for text in ("Ho", "No"))
    row = {"prompt": "Hi", "prompt_id": "x", "chosen": chosen, "rejected": rejected, "messages": chosen}
    pair = next(iter(read_preferences({"path": lines(tmp_path / "ultra.jsonl", [row]), "streaming": streaming})))
    assert [words(pair[name]) for name in ("prompt", "chosen", "rejected")] == [
        "user: Hi", "assistant: Ho", "assistant: No",
    ]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
def test_system_prompts_of_pairs_are_kept(tmp_path, streaming):
    row = {"system": "Be brief.", "question": "Hi", "chosen": "Ho", "rejected": "No"}
    path = lines(tmp_path / "orca.jsonl", [row, row | {"system": ""}])
    first, second = read_preferences({"path": path, "streaming": streaming})
    assert words(first["prompt"]) == "system: Be brief. user: Hi" and words(second["prompt"]) == "user: Hi"


def rlaif(tmp_path, colours=("red", "blue"), **change) -> str:
    count = len(colours)
    columns = {
        "ds_name": ["x"] * count,
        "image": [picture(colour) for colour in colours],
        "question": [f"Which {i}?" for i in range(count)],
        "chosen": list(colours),
        "rejected": ["none"] * count,
    } | change
    features = Features({name: Value("string") for name in columns} | {"image": ImageFeature()})
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "rlaif.parquet")
    return str(tmp_path / "rlaif.parquet")


def test_rlaif_vs_columns(tmp_path, capsys):
    rows = read_preferences(rlaif(tmp_path))
    assert set(rows.column_names) == {"prompt", "chosen", "rejected", "images"}
    assert [words(rows[1][name]) for name in ("prompt", "chosen", "rejected")] == [
        "user: *Which 1?", "assistant: blue", "assistant: none",
    ]  # fmt: skip
    (shown,) = rows[1]["images"]
    assert shown.getpixel((0, 0)) == (0, 0, 255)
    assert "pairs (prompt: question, chosen: chosen, rejected: rejected, images: image)" in capsys.readouterr().out


def test_pictures_of_prompts_by_path_and_whole_conversations(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    chosen = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red."}]
    rejected = [chosen[0], {"role": "assistant", "content": "Blue."}]
    path = lines(tmp_path / "pairs.jsonl", [{"images": ["red.png"], "chosen": chosen, "rejected": rejected}])
    (row,) = read_preferences(path)
    assert [words(row[name]) for name in ("prompt", "chosen", "rejected")] == [
        "user: *Which?", "assistant: Red.", "assistant: Blue.",
    ]  # fmt: skip
    assert row["images"][0].getpixel((0, 0)) == (255, 0, 0)


def test_pictures_within_the_messages_of_prompts(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    asked = [{"type": "text", "text": "Which?"}, {"type": "image", "image": "red.png"}]
    answers = {"chosen": "Red.", "rejected": "Blue."}
    answers = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    path = lines(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": [{"role": "user", "content": asked}], **answers},
            {"prompt": [{"role": "user", "content": "No picture?"}], **answers},
        ],
    )
    first, second = read_preferences(path)
    assert words(first["prompt"]) == "user: Which?*" and len(first["images"]) == 1
    assert words(second["prompt"]) == "user: No picture?" and second["images"] == []


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("question, expected", [("Is <image>\nred?", "user: Is*red?"), ("Red?", "user: *Red?")])
def test_pictures_belong_where_marks_say_or_first(tmp_path, implicit, question, expected):
    prompt = [{"role": "user", "content": question}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    row = {name: prompt + answer for name, answer in answers.items()} if implicit else {"prompt": prompt, **answers}
    chat = List({"role": Value("string"), "content": Value("string")})
    features = Features({**dict.fromkeys(row, chat), "images": List(ImageFeature())})
    rows = {**{name: [chat] for name, chat in row.items()}, "images": [[picture("red")]]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "pairs.parquet")
    (read,) = read_preferences(str(tmp_path / "pairs.parquet"))
    assert len(read["images"]) == 1 and words(read["chosen"]) == "assistant: chosen"
    shown = prepare_multimodal_messages(read["prompt"], read["images"])  # as trl does
    assert words(shown) == expected


def test_labelled_answers(tmp_path):
    rows = [{"question": "Hi", "answer": "Ho", "label": 1}, {"question": "Hi", "answer": "No", "label": 0}]
    good, bad = read_preferences(lines(tmp_path / "kto.jsonl", rows))
    assert (good["label"], bad["label"]) == (True, False)
    assert (words(good["prompt"]), words(bad["completion"])) == ("user: Hi", "assistant: No")


def pick_a_pic(tmp_path, labels=((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)), **change) -> str:
    count = len(labels)
    columns = {
        "caption": [f"a square {i}" for i in range(count)],
        "jpg_0": [picture("red")["bytes"]] * count,
        "jpg_1": [picture("blue")["bytes"]] * count,
        "label_0": [first for first, _ in labels],
        "label_1": [second for _, second in labels],
        "has_label": [True] * count,
    } | change
    Dataset.from_dict(columns).to_parquet(tmp_path / "pick.parquet")
    return str(tmp_path / "pick.parquet")


def test_pick_a_pics_pictures_become_drawings_and_ties_are_left_out(
    tmp_path, tiny_model, tiny_processor, codes_of_colours, capsys
):
    pairs = read_preferences(pick_a_pic(tmp_path), skipped=tmp_path / "skipped.jsonl")
    assert (
        "1 rows of pick.parquet are left out" in capsys.readouterr().out and not (tmp_path / "skipped.jsonl").exists()
    )
    red_first, blue_first = write_drawings(pairs, tiny_model, tiny_processor)
    texts = [words(row[name]) for row in (red_first, blue_first) for name in ("chosen", "rejected")]
    assert texts == [f"assistant: {codes_of_colours[name]}" for name in ("red", "blue", "blue", "red")]
    assert words(red_first["prompt"]) == "user: a square 0" and set(red_first) == {"prompt", "chosen", "rejected"}


def test_columns_of_pictures_as_answers_beside_pictures_of_prompts(
    tmp_path, tiny_model, tiny_processor, codes_of_colours
):
    columns = {"before": [picture("red")], "wish": ["Bluer!"], "good": [picture("blue")], "bad": [picture("red")]}
    features = Features(dict.fromkeys(columns, ImageFeature()) | {"wish": Value("string")})
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "edits.parquet")
    setting = {
        "path": str(tmp_path / "edits.parquet"),
        "columns": {"images": "before", "prompt": "wish", "chosen": "good", "rejected": "bad"},
    }
    (row,) = write_drawings(read_preferences(setting), tiny_model, tiny_processor)
    assert words(row["prompt"]) == "user: *Bluer!" and row["images"][0].getpixel((0, 0)) == (255, 0, 0)
    assert words(row["chosen"]) == f"assistant: {codes_of_colours['blue']}"
    assert words(row["rejected"]) == f"assistant: {codes_of_colours['red']}"


def test_an_unreadable_drawing_is_left_out_and_listed(tmp_path, tiny_model, tiny_processor):
    path = pick_a_pic(tmp_path, jpg_1=[picture("blue")["bytes"], b"broken", b""])
    with pytest.raises(ValueError, match="unreadable picture"):
        write_drawings(read_preferences(path), tiny_model, tiny_processor)
    listed = tmp_path / "skipped.jsonl"
    pairs = write_drawings(read_preferences(path), tiny_model, tiny_processor, skipped=listed)
    assert len(pairs) == 1 and "unreadable picture" in json.loads(listed.read_text())["reason"]


def test_preferences_without_drawings_stay_the_same_object(tmp_path, tiny_model, tiny_processor):
    pairs = read_preferences(rlaif(tmp_path))
    assert write_drawings(pairs, tiny_model, tiny_processor) is pairs


def test_several_sets_are_mixed_by_weight(tmp_path, tiny_model, tiny_processor):
    texts = lines(tmp_path / "texts.jsonl", [{"prompt": "Hi", "chosen": "Ho", "rejected": "No"}] * 4)
    mixed = read_preferences([{"path": texts, "weight": 3}, {"path": rlaif(tmp_path), "weight": 1}], seed=1)
    assert {words(row["prompt"])[-1] for row in mixed} == {"i", "?"}
    assert [len(row["images"] or []) for row in mixed] == [0 if "Hi" in words(row["prompt"]) else 1 for row in mixed]
    assert len(read_preferences([texts, rlaif(tmp_path)])) == 6


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "Hi", "chosen": "", "rejected": "No"}, "no text"),
        ({"prompt": None, "chosen": "Ho", "rejected": "No"}, "no text in prompt"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": None}, "no text in rejected"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "No", "images": ["no.png"]}, "there is no file"),
        ({"prompt": "Hi <image>", "chosen": "Ho", "rejected": "No"}, "wrong number of pictures"),
    ],
)
def test_bad_rows_are_left_out_and_listed_or_refused(tmp_path, row, reason):
    good = {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}
    path = lines(tmp_path / "pairs.jsonl", [good, row])
    rows = read_preferences(path, skipped=tmp_path / "skipped.jsonl")
    assert [words(one["chosen"])[-2:] for one in rows] == ["Ho"]
    listed = json.loads((tmp_path / "skipped.jsonl").read_text())
    assert (listed["source"], listed["row"]) == (path, 1) and reason in listed["reason"]
    with pytest.raises(ValueError, match=r"record 1 of .*pairs.jsonl: .*" + reason):
        read_preferences(path)


def test_an_unreadable_picture_of_a_prompt_gives_another_row(tmp_path):
    path = rlaif(tmp_path, ("red", "blue", "green"), image=[picture("red"), {"bytes": b"broken"}, picture("green")])
    rows = read_preferences(path, skipped=tmp_path / "skipped.jsonl", max_skipped=0.5)
    seen = [words(row["prompt"]) for row in rows]
    assert len(seen) == 3 and "user: *Which 1?" not in seen and seen == [words(row["prompt"]) for row in rows]
    (listed,) = map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert "unreadable picture" in listed["reason"] and listed["row"] == 1 and listed["source"] == path
    with pytest.raises(ValueError, match="corrupt"):
        read_preferences(path)[1]


@pytest.mark.parametrize("make", [rlaif, pick_a_pic])
def test_trl_trains_on_them(tmp_path, make_model, tiny_processor, make):
    from trl import DPOConfig, DPOTrainer

    model = make_model()
    path = make(tmp_path)
    pairs = write_drawings(read_preferences(path, skipped=tmp_path / "skipped.jsonl"), model, tiny_processor)
    training = DPOConfig(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to="none", max_length=None,
        use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=1e-3,
    )  # fmt: skip
    trainer = DPOTrainer(model, make_model(), training, train_dataset=pairs, processing_class=tiny_processor)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("make", [rlaif, pick_a_pic])
def test_streamed_preferences_are_those_that_are_read_at_once(
    tmp_path, tiny_model, tiny_processor, codes_of_colours, make
):
    path = make(tmp_path)
    streamed = read_preferences({"path": path, "streaming": True}, skipped=tmp_path / "skipped.jsonl")
    assert isinstance(streamed, IterableDataset)
    for one, other in zip(
        write_drawings(streamed, tiny_model, tiny_processor),
        write_drawings(read_preferences(path), tiny_model, tiny_processor),
        strict=True,
    ):
        assert set(one) == set(other)
        assert [words(one[name]) for name in TEXTS if name in one] == [
            words(other[name]) for name in TEXTS if name in other
        ]
        assert [list(image.get_flattened_data()) for image in one.get("images", [])] == [
            list(image.get_flattened_data()) for image in other.get("images", [])
        ]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("make", [rlaif, pick_a_pic])
def test_each_pair_becomes_a_good_and_a_bad_answer_about_the_same_pictures(
    tmp_path, tiny_model, tiny_processor, codes_of_colours, make, streams
):
    setting = {"path": make(tmp_path), "streaming": streams}
    pairs = write_drawings(read_preferences(setting, skipped=tmp_path / "skipped.jsonl"), tiny_model, tiny_processor)
    answers = list(unpair(pairs))
    assert [answer["label"] for answer in answers] == [True, False] * (len(answers) // 2)
    for i, pair in enumerate(pairs):
        for answer, name in zip(answers[2 * i : 2 * i + 2], ("chosen", "rejected"), strict=True):
            assert answer["completion"] == pair[name] and answer["prompt"] == pair["prompt"]
            assert [list(image.get_flattened_data()) for image in answer.get("images", [])] == [
                list(image.get_flattened_data()) for image in pair.get("images", [])
            ]
    assert unpair(read_preferences(lines(tmp_path / "own.jsonl", [LABELLED]))).column_names == [*LABELLED]


LABELLED = {"prompt": "Is it?", "completion": "Yes.", "label": True}


def test_streamed_labels_are_true_or_false(tmp_path):
    rows = [{"question": "Hi", "answer": "Ho", "label": 1}, {"question": "Hi", "answer": "No", "label": 0}]
    path = lines(tmp_path / "kto.jsonl", rows)
    assert [row["label"] for row in read_preferences({"path": path, "streaming": True})] == [True, False]


def test_several_streams_are_mixed_and_bad_rows_are_left_out_and_listed(tmp_path):
    good = {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}
    texts = lines(tmp_path / "texts.jsonl", [good, good | {"chosen": ""}] * 2)
    pictures = rlaif(tmp_path, ("red", "blue"), image=[picture("red"), {"bytes": b"broken"}])
    settings = [{"path": texts, "streaming": True}, pictures]
    rows = read_preferences(settings, skipped=tmp_path / "skipped.jsonl", max_skipped=0.6)
    for _ in range(2):
        assert sorted((words(row["prompt"]), len(row["images"])) for row in rows) == [
            ("user: *Which 0?", 1), ("user: Hi", 0), ("user: Hi", 0),
        ]  # fmt: skip
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted((Path(one["source"]).name, one["row"]) for one in listed) == [
        ("rlaif.parquet", 1), ("texts.jsonl", 1), ("texts.jsonl", 3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"record 1 of .*texts.jsonl: no text in chosen"):
        list(read_preferences({"path": texts, "streaming": True}))


@pytest.mark.parametrize("order", [1, -1])
def test_streams_with_drawings_and_streams_with_pictures_are_mixed(
    tmp_path, tiny_model, tiny_processor, codes_of_colours, order
):
    settings = [{"path": rlaif(tmp_path), "streaming": True}, {"path": pick_a_pic(tmp_path), "streaming": True}]
    pairs = [*write_drawings(read_preferences(settings[::order], skipped=tmp_path / "s"), tiny_model, tiny_processor)]
    seen = sorted(words(pair["chosen"]) for pair in pairs)
    drawings = [f"assistant: {codes_of_colours[name]}" for name in ("red", "blue")]
    assert seen == sorted([*drawings, "assistant: red", "assistant: blue"])
    assert {len(pair["images"]) for pair in pairs} == {0, 1} and "jpg_0" not in pairs[0]


def test_streams_are_mixed_by_weight(tmp_path):
    sets = []
    for name, weight in (("often", 3), ("seldom", 1)):
        rows = [{"prompt": name, "chosen": "Ho", "rejected": "No"}] * 40
        sets.append({"path": lines(tmp_path / f"{name}.jsonl", rows), "weight": weight, "streaming": True})
    seen = [words(row["prompt"]) for row in read_preferences(sets, seed=1)]
    assert 2 < seen.count("user: often") / seen.count("user: seldom") < 4.5


@pytest.mark.parametrize("make", [rlaif, pick_a_pic])
def test_trl_trains_on_streams_of_them(tmp_path, make_model, tiny_processor, make):
    from trl import DPOConfig, DPOTrainer

    model = make_model()
    setting = {"path": make(tmp_path), "streaming": True}
    pairs = write_drawings(read_preferences(setting, skipped=tmp_path / "skipped.jsonl"), model, tiny_processor)
    training = DPOConfig(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to="none", max_length=None,
        use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=1e-3,
    )  # fmt: skip
    trainer = DPOTrainer(model, make_model(), training, train_dataset=pairs, processing_class=tiny_processor)
    assert trainer.train().training_loss > 0


def test_the_same_words_about_other_pictures_are_told_apart(tmp_path):
    pictures = [picture("red"), {"bytes": b"broken"}, picture("green")]
    path = rlaif(tmp_path, ("red",) * 3, image=pictures, question=["Which?"] * 3)
    rows = read_preferences(path, skipped=tmp_path / "skipped.jsonl", max_skipped=0.5)
    assert [row["images"][0].getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 128, 0), (0, 128, 0)]
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["row"] == 1
