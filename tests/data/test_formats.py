"""Data sets in the forms in which people have them, from files on disk to records."""

import base64
import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from PIL import Image

from dps_hf.data.formats import Captions, guess_form, guess_preferences
from dps_hf.data.sources import read_records
from dps_hf.training.collator import RecordCollator


COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures as people have them: a JPEG, a PNG with alpha, one in a subfolder."""
    path = tmp_path / "mine"
    (path / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(path / "red.jpg", quality=95)
    Image.new("RGBA", (8, 6), (0, 128, 0, 255)).save(path / "green.png")
    Image.new("RGB", (8, 6), "blue").save(path / "sub" / "blue.png")
    return path


def lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def whole(path: Path, rows) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def said(record: dict) -> list[str]:
    """Each message as a role and its parts, with `*` for a picture."""
    return [
        f"{message['role']}: "
        + "|".join("*" if part["type"] == "image" else part["text"] for part in message["content"])
        for message in record["messages"]
    ]


def colours(record: dict) -> list[str]:
    """The name of the colour of each picture."""
    names = {(254, 0, 0): "red", (255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}
    return [names.get(picture.convert("RGB").getpixel((1, 1)), "other") for picture in record["images"]]


def asked(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize("write, name", [(lines, "mine.jsonl"), (whole, "mine.json")])
def test_llava_conversations(folder, capsys, write, name):
    rows = [
        {
            "id": 1,
            "image": "red.jpg",
            "conversations": asked("<image>\nWhat colour?", "Red.") + asked("Sure?", "Yes."),
        },
        {"id": "2", "image": ["green.png", "sub/blue.png"], "conversations": asked("<image> and <image>?", "Both.")},
        {"id": "3", "conversations": [{"from": "system", "value": "Be kind."}, *asked("Hi", "Ho")]},
        {"id": "4", "image": "sub/blue.png", "conversations": asked("No mark?", "None.")},
        {"id": "5", "image": None, "conversations": [{"from": "gpt", "value": "Hello!"}, *asked("Hi", "Ho")]},
    ]
    one, two, three, four, five = read_records(write(folder / name, rows))
    assert said(one) == ["user: *|What colour?", "assistant: Red.", "user: Sure?", "assistant: Yes."]
    assert colours(one) == ["red"] and one["images"][0].size == (8, 6)
    assert said(two) == ["user: *|and|*|?", "assistant: Both."] and colours(two) == ["green", "blue"]
    assert said(three) == ["system: Be kind.", "user: Hi", "assistant: Ho"] and three["images"] == []
    assert said(four) == ["user: *|No mark?", "assistant: None."]
    assert said(five)[0] == "assistant: Hello!" and five["num_prompt_messages"] == 1
    assert f"dataset {name}: 5 rows, LLaVA conversations (messages: conversations, images: image)" in (
        capsys.readouterr().out
    )


def test_sharegpt_conversations_of_text(folder, capsys):
    rows = [{"conversations": asked("Hi", "Ho"), "system": "Be brief."}, {"conversations": asked("A", "B")}]
    one, two = read_records(lines(folder / "share.jsonl", rows))
    assert said(one) == ["system: Be brief.", "user: Hi", "assistant: Ho"]
    assert said(two) == ["user: A", "assistant: B"]
    assert "ShareGPT conversations (messages: conversations, system: system)" in capsys.readouterr().out


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def test_messages_with_contents_of_text_or_parts(folder):
    answer = {"role": "assistant", "content": "It is."}
    rows = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, answer]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Which?"},
                        {"type": "image_url", "image_url": {"url": data_url(folder / "green.png")}},
                        {"type": "image", "image": "red.jpg"},
                        {"type": "image_url", "image_url": "sub/blue.png"},
                    ],
                },
                answer,
            ]
        },
    ]
    one, two = read_records(lines(folder / "chat.jsonl", rows))
    assert said(one) == ["system: Be kind.", "user: Hi", "assistant: It is."]
    assert said(two) == ["user: Which?|*|*|*", "assistant: It is."] and colours(two) == ["green", "red", "blue"]


@pytest.mark.parametrize("images", ["red.jpg", ["red.jpg"]])
def test_messages_with_a_column_of_pictures(folder, images):
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red."}]
    typed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}, chat[1]]
    for messages in (chat, typed):
        (one,) = read_records(lines(folder / "chat.jsonl", [{"messages": messages, "images": images}]))
        assert said(one) == ["user: *|Which?", "assistant: Red."] and colours(one) == ["red"]


def test_the_cauldrons_texts(folder):
    rows = [{"images": ["red.jpg"], "texts": [{"user": "Which?", "assistant": "Red.", "source": "x"}]}]
    (one,) = read_records(lines(folder / "texts.jsonl", rows))
    assert said(one) == ["user: *|Which?", "assistant: Red."]


def only(direction: str) -> dict:
    return {direction: {"share": 1}}


def test_a_folder_of_pictures_with_metadata_in_json_lines(folder, capsys):
    lines(
        folder / "metadata.jsonl",
        [{"file_name": "red.jpg", "text": "Red, all red"}, {"file_name": "sub/blue.png", "text": "Blue"}],
    )
    records = read_records({"path": str(folder), "captions": only("describe")})
    assert sorted(said(one)[1] for one in records) == ["assistant: Blue", "assistant: Red, all red"]
    assert sorted(colours(one)[0] for one in records) == ["blue", "red"]
    assert "dataset mine: 2 rows, captions (images: image, caption: text)" in capsys.readouterr().out


def test_a_folder_of_pictures_with_metadata_in_a_table_with_commas(folder):
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "caption"], ["red.jpg", 'a "red", flat thing'], ["green.png", "green, too"]]
        )
    records = read_records({"path": str(folder), "captions": only("draw")})
    assert {said(one)[1] for one in records} == {"assistant: *"}
    assert any('a "red", flat thing' in said(one)[0] for one in records)


def test_subfolders_that_are_classes_with_the_column_said(folder):
    for name in ("a_cat", "a_dog"):
        (folder / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "blue").save(folder / "pets" / name / "1.png")
    records = read_records(
        {"path": str(folder / "pets"), "columns": {"caption": "label"}, "captions": only("describe")}
    )
    assert sorted(said(one)[1] for one in records) == ["assistant: a cat", "assistant: a dog"]


def test_a_json_file_beside_its_pictures_names_the_folder(folder):
    lines(folder / "train.jsonl", [{"image": "red.jpg", "question": "Which?", "answer": "Red."}])
    lines(folder / "test.jsonl", [{"image": "green.png", "question": "Which?", "answer": "Green."}])
    (train,) = read_records(str(folder))
    (test,) = read_records({"path": str(folder), "split": "test"})
    assert (said(train)[1], said(test)[1]) == ("assistant: Red.", "assistant: Green.")


def test_a_table_of_questions_and_answers_with_paths(folder, capsys):
    with open(folder / "vqa.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "question", "answer"], ["red.jpg", "One, two?", "3"]])
    (one,) = read_records(str(folder / "vqa.csv"))
    assert said(one) == ["user: *|One, two?", "assistant: 3"] and one["num_prompt_messages"] == 1
    assert "questions and answers (prompt: question, completion: answer, images: image)" in capsys.readouterr().out


def tar(path: Path, samples: dict[str, dict[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_of_web_datasets(folder, streaming):
    red, green = (folder / "red.jpg").read_bytes(), (folder / "green.png").read_bytes()
    tar(folder / "a-000.tar", {"01": {"jpg": red, "txt": b"Red, yes"}, "02": {"jpg": red, "txt": b"More red"}})
    tar(folder / "a-001.tar", {"03": {"jpg": red, "txt": b"The last"}})
    records = [*read_records({"path": str(folder / "a-*.tar"), "captions": only("describe"), "streaming": streaming})]
    assert [said(one)[1] for one in records] == ["assistant: Red, yes", "assistant: More red", "assistant: The last"]
    fields = json.dumps({"caption": "Green"}).encode()
    path = tar(folder / "b.tar", {"01": {"png": green, "json": fields}})
    (one,) = read_records({"path": path, "captions": only("describe"), "streaming": streaming})
    assert said(one)[1] == "assistant: Green" and colours(one) == ["green"]


def test_shards_of_parquet_with_pictures_or_their_bytes(folder):
    red = (folder / "red.jpg").read_bytes()
    rows = {"image": [{"bytes": red, "path": None}], "prompt": ["Which?"], "response": ["Red."]}
    for i in range(2):
        Dataset.from_dict(rows).to_parquet(folder / f"shard-{i}.parquet")
    records = read_records(str(folder / "shard-*.parquet"))
    assert len(records) == 2 and said(records[1]) == ["user: *|Which?", "assistant: Red."]
    assert colours(records[0]) == ["red"]
    Dataset.from_dict({"image": [red], "text": ["Red"]}).to_parquet(folder / "raw.parquet")
    assert [colours(one) for one in read_records(str(folder / "raw.parquet"))] == [["red"], ["red"]]


def test_captions_of_coco(folder, capsys):
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "val2017" / "01.jpg")
    coco = {
        "info": {"year": 2017},
        "images": [{"id": 7, "file_name": "01.jpg", "height": 8}, {"id": 8, "file_name": "02.jpg", "height": 8}],
        "annotations": [{"id": i, "image_id": 7, "caption": text} for i, text in enumerate(("A red.", "Reds."))],
    }
    path = whole(folder / "annotations" / "captions_val2017.json", coco)
    (one,) = read_records({"path": path, "captions": only("describe")})
    assert said(one)[1] in ("assistant: A red.", "assistant: Reds.") and colours(one) == ["red"]
    assert "1 rows, COCO captions (images: image, caption: caption)" in capsys.readouterr().out
    (folder / "elsewhere").mkdir()
    (folder / "val2017" / "01.jpg").rename(folder / "elsewhere" / "01.jpg")
    (one, _) = read_records({"path": path, "image_folder": str(folder / "elsewhere")})
    assert colours(one) == ["red"]


def test_prompts_and_completions_of_texts_or_messages(folder):
    chat = {"prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]}
    rows = [{**chat, "completion": [{"role": "assistant", "content": "Ho"}]}]
    (one,) = read_records(lines(folder / "chat.jsonl", rows))
    assert said(one) == ["system: Be.", "user: Hi", "assistant: Ho"] and one["num_prompt_messages"] == 2
    (two,) = read_records(lines(folder / "text.jsonl", [{"prompt": "Hi", "completion": "Ho"}]))
    assert said(two) == ["user: Hi", "assistant: Ho"] and two["num_prompt_messages"] == 1


def test_instructions_with_inputs(folder):
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "Hi"},
    ]
    one, two = read_records(whole(folder / "alpaca.json", rows))
    assert said(one) == ["user: Add.\n\n1, 2", "assistant: 3"] and said(two) == ["user: Say hi.", "assistant: Hi"]


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.txt"])
def test_texts_are_learned_whole(folder, name):
    if name.endswith("txt"):
        (folder / name).write_text("One.\n\nTwo.")
    else:
        lines(folder / name, [{"text": "One."}, {"text": "Two."}])
    one, _ = read_records(str(folder / name))
    assert said(one) == ["assistant: One."] and one["num_prompt_messages"] == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_texts_gives_its_paragraphs(tmp_path, streaming):
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("One,\ntwo.\n\nThree.\n\n\n\n")
    (tmp_path / "texts" / "sub" / "b.txt").write_text("\n\nFour.")
    records = read_records({"path": str(tmp_path / "texts"), "streaming": streaming}, max_skipped=0)
    assert [said(one)[0].strip() for one in records] == [
        "assistant: One,\ntwo.",
        "assistant: Three.",
        "assistant: Four.",
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_of_a_folder_are_captions(folder, streaming):
    for name in ("cat", "big_dog"):
        (folder / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (8, 6), "red").save(folder / "classes" / name / "1.png")
    records = read_records(
        {"path": str(folder / "classes"), "streaming": streaming, "captions": {"describe": {"share": 1}}}
    )
    assert sorted(said(one)[1] for one in records) == ["assistant: big dog", "assistant: cat"]


def test_pictures_are_found_where_the_first_rows_have_none(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "images" / "red.png")
    rows = [{"conversations": asked("Hi", "Ho")}, {"image": "red.png", "conversations": asked("Which?", "Red.")}]
    assert colours(read_records(whole(tmp_path / "llava.json", rows), max_skipped=0)[1]) == ["red"]


def test_files_of_one_value_are_read_whole_where_they_are_to_be_streamed(folder):
    rows = [{"question": "Hi", "answer": "Ho"}]
    coco = {
        "images": [{"id": 1, "file_name": "red.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A red picture."}],
    }
    for name, value in (("rows", rows), ("wrapped", {"version": 1, "data": rows}), ("captions_mine", coco)):
        one = next(iter(read_records({"path": whole(folder / f"{name}.json", value), "streaming": True})))
        assert said(one)[0] == "user: Hi" or colours(one) == ["red"]
    (folder / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    assert isinstance(read_records({"path": str(folder / "lines.json"), "streaming": True}), IterableDataset)


def test_developers_are_the_system_and_calls_of_tools_are_left_out(folder, tmp_path):
    answer = {"role": "assistant", "content": "Ho"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    tool = {"role": "tool", "content": "sunny"}
    rows = [
        {"messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}, answer]},
        {"messages": [{"role": "user", "content": "Hi"}, call, tool, answer]},
    ]
    records = read_records(lines(folder / "mine.jsonl", rows), skipped=tmp_path / "skipped.jsonl")
    assert said(records[0]) == ["system: Be kind.", "user: Hi", "assistant: Ho"] == said(records[1])
    assert "messages[1] calls a tool" in json.loads((tmp_path / "skipped.jsonl").read_text())["reason"]


def test_saved_sets_with_splits_take_the_one_for_training(folder):
    rows = [Dataset.from_dict({"question": [f"{name}?"], "answer": ["Yes."]}) for name in ("a", "b")]
    DatasetDict(train=rows[0], validation=rows[1]).save_to_disk(folder / "saved")
    assert said(read_records(str(folder / "saved"))[0])[0] == "user: a?"
    assert said(read_records({"path": str(folder / "saved"), "split": "validation"})[0])[0] == "user: b?"
    with pytest.raises(ValueError, match=r"saved has the splits train, validation; got other.* split: train"):
        read_records({"path": str(folder / "saved"), "split": "other"})


def test_columns_that_cannot_be_guessed_are_said(folder):
    path = lines(folder / "odd.jsonl", [{"photo": "red.jpg", "q": "Which?", "a": "Red.", "image": "no.jpg"}])
    (one,) = read_records({"path": path, "columns": {"images": "photo", "prompt": "q", "completion": "a"}})
    assert said(one) == ["user: *|Which?", "assistant: Red."] and colours(one) == ["red"]
    with pytest.raises(
        ValueError, match=r"odd.jsonl .*it has photo, q, a, image\. Write, for example, columns: \{mess"
    ):
        read_records(path)
    with pytest.raises(
        ValueError, match=r"columns.prompt of odd.jsonl must be one of its columns, photo, q, a, image"
    ):
        read_records({"path": path, "columns": {"prompt": "question"}})
    with pytest.raises(ValueError, match=r"must name fields out of messages, images, prompt.*got 'questions'"):
        read_records({"path": path, "columns": {"questions": "q"}})


def test_pictures_as_completions_are_drawings(folder):
    red = {"bytes": (folder / "red.jpg").read_bytes(), "path": None}
    green = {"bytes": (folder / "green.png").read_bytes(), "path": None}
    Dataset.from_dict({"before": [green], "words": ["Redder!"], "after": [red]}).to_parquet(folder / "edit.parquet")
    columns = {"images": "before", "prompt": "words", "completion": "after"}
    (one,) = read_records({"path": str(folder / "edit.parquet"), "columns": columns})
    assert said(one) == ["user: *|Redder!", "assistant: *"] and colours(one) == ["green", "red"]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "I;16", "1"])
def test_pictures_of_any_mode_are_opened_in_colours(folder, mode):
    name = "odd.tif" if mode in ("CMYK", "I;16") else "odd.png"
    Image.new(mode, (8, 8)).save(folder / name)
    (one,) = read_records(lines(folder / "odd.jsonl", [{"image": name, "question": "What?", "answer": "Black."}]))
    assert one["images"][0].mode == "RGB"


def test_captions_give_both_directions_in_any_language_by_seed_and_row(folder):
    rows = [{"image": "red.jpg", "caption": [f"roja {i}", f"red {i}"]} for i in range(200)]
    path = lines(folder / "captions.jsonl", rows)
    captions = {
        "describe": {"share": 0.25, "prompts": ["¿Qué se ve?"]},
        "draw": {"share": 0.75, "prompts": ["Dibuja {caption}", "{caption}"]},
    }
    setting = {"path": path, "captions": captions}
    records = [said(one) for one in read_records(setting, seed=3)]
    assert records == [said(one) for one in read_records(setting, seed=3)]
    assert records != [said(one) for one in read_records(setting, seed=4)]
    described = [one for one in records if one[0] == "user: *|¿Qué se ve?"]
    drawn = [one for one in records if one[1] == "assistant: *"]
    assert len(described) + len(drawn) == 400 and 60 < len(described) < 140
    assert {one[0].startswith("user: Dibuja ") for one in drawn} == {True, False}
    assert {one[1].split()[1] for one in described} == {"roja", "red"}


def test_by_default_each_captioned_picture_is_described_once_and_drawn_once(folder):
    rows = [{"image": "red.jpg", "caption": f"red {i}"} for i in range(30)]
    records = [said(one) for one in read_records(lines(folder / "captions.jsonl", rows))]
    described = sorted(one[1] for one in records if one[0].startswith("user: *"))
    drawn = [one for one in records if one[1] == "assistant: *"]
    assert described == sorted(f"assistant: red {i}" for i in range(30))
    assert len(drawn) == 30 and all(any(one[0].endswith(f"red {i}") for one in drawn) for i in range(30))


@pytest.mark.parametrize(
    "captions, message",
    [
        ({"draw": {"prompts": ["Draw it"]}}, r"captions.draw.prompts must be prompts with \{caption\}"),
        ({"describe": {"share": -1}}, "captions.describe.share must be a number of 0 or more; got -1"),
        ({"draw": {"share": 2}}, "captions.draw.share must be from 0 to 1 where it is the only one; got 2"),
        ({"describe": {"share": 0}, "draw": {"share": 0}}, "must give describe or draw a share above 0"),
        ({"paint": {}}, "must have describe, draw or both"),
        ({"draw": {"shares": 1}}, r"captions.draw must have share, prompts or both"),
    ],
)
def test_wrong_settings_of_captions_are_refused_with_an_example(captions, message):
    with pytest.raises(ValueError, match=message):
        Captions.read(captions)


def test_one_share_leaves_the_rest_to_the_other_direction():
    captions = Captions.read({"draw": {"share": 0.2}})
    assert (captions.describe, captions.draw) == (0.8, 0.2)
    assert Captions.read({"draw": {"prompts": "{caption}!"}}).draw == 0.5


@pytest.mark.parametrize(
    "columns, kind",
    [
        (["image", "prompt"], "captions"),
        (["image", "text"], "captions"),
        (["id", "text"], "text"),
        (["question", "context", "answer"], "questions and answers"),
        (["input", "output"], "prompts and completions"),
        (["messages", "prompt", "completion"], "messages"),
        (["image", "question", "multiple_choice_answer", "answers"], "questions and answers"),
    ],
)
def test_forms_are_known_by_their_columns(columns, kind):
    assert guess_form(columns).kind == kind


@pytest.mark.parametrize("columns", [["image"], ["image", "question"], ["id", "label"], ["prompt"]])
def test_columns_that_say_too_little_are_refused(columns):
    with pytest.raises(ValueError, match=f"cannot be guessed; it has {', '.join(columns)}"):
        guess_form(columns)
    with pytest.raises(ValueError, match=r"Write, for example, columns: \{prompt: my_questions, chosen:"):
        guess_preferences(columns)


BAD = [
    ("llava", {"image": "no.jpg", "conversations": asked("<image>?", "Red.")}, "unreadable picture: there is no file"),
    ("llava", {"image": "red.jpg", "conversations": asked("<image><image>?", "Red.")}, "wrong number of pictures"),
    ("llava", {"conversations": asked("<image>?", "Red.")}, "wrong number of pictures"),
    ("llava", {"conversations": [{"from": "gpt", "value": "Red."}]}, "wrong roles"),
    ("llava", {"conversations": [{"from": "tool", "value": "x"}, *asked("Hi", "Ho")]}, "wrong roles: messages[0]"),
    ("llava", {"conversations": []}, "'conversations' has no messages"),
    ("messages", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}, "messages[1] has no text"),
    ("messages", {"messages": [{"role": "user", "content": "Hi"}]}, "wrong roles"),
    ("vqa", {"image": "broken.jpg", "question": "What?", "answer": "Red."}, "unreadable picture"),
    ("vqa", {"image": "empty.png", "question": "What?", "answer": "Red."}, "unreadable picture"),
    ("vqa", {"image": "red.jpg", "question": "", "answer": "Red."}, "no text"),
    ("vqa", {"image": "red.jpg", "question": "What?", "answer": None}, "no text"),
    ("vqa", {"image": "http://localhost:9/x.png", "question": "What?", "answer": "Red."}, "URLs are not fetched"),
    ("vqa", {"image": "../secret.png", "question": "What?", "answer": "Red."}, "paths must lie in"),
    ("vqa", {"image": "/etc/hostname", "question": "What?", "answer": "Red."}, "paths must lie in"),
    ("captions", {"image": None, "caption": "Red."}, "wrong number of pictures"),
    ("captions", {"image": "red.jpg", "caption": []}, "no text"),
    ("captions", {"image": ["red.jpg", "red.jpg"], "caption": "Red."}, "wrong number of pictures"),
    ("text", {"text": " "}, "no text"),
    ("text", {"text": "a <image> b"}, "the text has the token <image>"),
]
GOOD = {
    "llava": {"image": "red.jpg", "conversations": asked("<image>Good?", "Red.")},
    "messages": {"messages": [{"role": "user", "content": "Good?"}, {"role": "assistant", "content": "Red."}]},
    "vqa": {"image": "red.jpg", "question": "Good?", "answer": "Red."},
    "captions": {"image": "red.jpg", "caption": "Good."},
    "text": {"text": "Good."},
}


@pytest.mark.parametrize("kind, row, reason", BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_rows_are_skipped_and_listed(folder, tmp_path, kind, row, reason):
    (folder / "broken.jpg").write_bytes((folder / "red.jpg").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = lines(folder / "rows.jsonl", [GOOD[kind], row, GOOD[kind]])
    setting = {"path": path, "captions": {"describe": {"share": 1}}} if kind == "captions" else path
    records = read_records(setting, skipped=tmp_path / "run" / "skipped.jsonl")
    first, second, third = map(said, records)
    assert "Good" in first[0] + first[-1] and second == third
    (listed,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert (listed["source"], listed["row"]) == (path, 1) and reason in listed["reason"]


def test_arrays_of_numbers_are_pictures(folder):
    red = np.full((8, 6, 3), (255, 0, 0), dtype=np.uint8).tolist()
    (one,) = read_records(lines(folder / "a.jsonl", [{"images": [red], "question": "Which?", "answer": "Red."}]))
    assert colours(one) == ["red"]


def test_records_of_all_forms_are_learned_in_one_batch(folder, tiny_model, tiny_processor):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    paths = [
        lines(
            folder / "llava.jsonl", [{"image": "red.jpg", "conversations": asked("<image>?", "R") + asked("b", "c")}]
        ),
        lines(folder / "chat.jsonl", [{"messages": chat}]),
        lines(folder / "text.jsonl", [{"text": "Words alone."}]),
        lines(folder / "alpaca.jsonl", [{"instruction": "Add.", "input": "1, 2", "output": "3"}]),
    ]
    pictures = lines(folder / "captions.jsonl", [{"image": "green.png", "caption": "Green"}])
    both = [{"path": pictures, "captions": only(direction)} for direction in ("describe", "draw")]
    records = [*read_records([*paths, *both])]
    labels = RecordCollator(tiny_model, tiny_processor)(records)["labels"]
    learned = [tiny_processor.tokenizer.decode(row[row != -100]) for row in labels]
    assert learned[0].replace("<|im_end|>", "") == "Rc" and learned[1].startswith("Ho")
    assert learned[2].startswith("Words alone.") and learned[3].startswith("3") and learned[4].startswith("Green")
    assert learned[5].count("<img_") == tiny_processor.num_codes
