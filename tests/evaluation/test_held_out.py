"""A data set of one's own is measured: which figures apply, what they say, and what is kept."""

import json

import pytest
import torch
from datasets import Dataset
from PIL import Image

from dps_hf.data.record import record
from dps_hf.data.sources import read_records
from dps_hf.evaluation.held_out import HeldOut, choose_records, score_drawings
from dps_hf.evaluation.metrics import normalize_answer
from dps_hf.evaluation.runner import run_evaluations
from dps_hf.evaluation.subject import Subject
from dps_hf.evaluation.turns import split_turns
from dps_hf.judges.verdict import Verdict


COLOURS = ("red", "blue", "green", "black", "white", "yellow", "pink", "grey")
PICTURES = {name: Image.new("RGB", (16, 16), name) for name in COLOURS}
CAPTIONS = [record("describe", [picture, "What is this?"], [f"a {name} square"]) for name, picture in PICTURES.items()]
DRAWINGS = [record("draw", [f"a {name} square"], [picture]) for name, picture in PICTURES.items()]
QUESTIONS = [record("ask", [picture, f"Is it {name}?"], ["yes"]) for name, picture in PICTURES.items()]


@pytest.fixture
def subject(tiny_model, tiny_processor):
    return Subject(tiny_model, tiny_processor, 100, 0, {"guidance_scale": 1.0, "do_sample": False}, 3)


@pytest.fixture
def answer_with(monkeypatch):
    """Makes the model answer with these, in the order of the turns."""

    def use(responses):
        monkeypatch.setattr("dps_hf.evaluation.held_out.respond", lambda *_, **__: responses)

    return use


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (CAPTIONS, ["captions", "retrieval"]),
        (QUESTIONS, ["questions"]),
        (DRAWINGS, ["drawings", "retrieval", "right_words"]),
        (CAPTIONS + DRAWINGS, ["captions", "drawings", "retrieval", "right_words"]),
        (DRAWINGS[:1], ["drawings"]),
    ],
)
def test_what_the_records_hold_decides_what_is_measured(records, expected):
    held_out = HeldOut(records)
    assert list(held_out.list_evaluations()) == expected
    assert f"Measured: {', '.join(expected)}." in held_out.describe()


def test_records_without_answers_are_refused():
    with pytest.raises(ValueError, match="records with answers by the assistant"):
        HeldOut([{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "images": []}])


def test_all_captions_of_a_picture_are_right(subject, answer_with):
    pytest.importorskip("pycocoevalcap")
    more = [record("describe", [PICTURES["red"], "What is this?"], ["something that is red all over"])]
    held_out = HeldOut(CAPTIONS + more)
    said = [f"a {name} square" for name in COLOURS]
    answer_with([*said, "not asked"])
    assert held_out.captions(subject)["bleu"] == {"value": 100.0, "n": 8, "ci95": [100.0, 100.0]}


def test_an_answer_is_exact_or_contained_once_normalised(subject, answer_with):
    answer_with(["Yes!", "yes, it is", "no", "The yes", "eyes", "", "no", "no"])
    figures = HeldOut(QUESTIONS).questions(subject)
    assert (figures["exact"]["value"], figures["contained"]["value"]) == (2 / 8, 3 / 8)
    again = record("ask", [PICTURES["green"], "Is it green?"], ["no"])
    answer_with(["no"] * 9)
    assert HeldOut([*QUESTIONS, again]).questions(subject)["exact"] == {
        "value": 0.125,
        "n": 8,
        "ci95": [0.0224, 0.4709],
    }


def test_answers_are_normalised_as_in_squad_and_vqa():
    assert normalize_answer("  The two   Hearts, isn't it? ") == "2 hearts isnt it"
    assert normalize_answer("¡Un corazón!") == "un corazón" and normalize_answer("लाल दिल।") == "लाल दिल"


def test_a_drawing_is_found_among_the_wanted_pictures(subject, answer_with):
    answer_with(list(PICTURES.values()))
    assert HeldOut(DRAWINGS).drawings(subject)["r1"]["value"] == 1
    answer_with([*PICTURES.values()][1:] + [PICTURES["red"]])
    assert HeldOut(DRAWINGS).drawings(subject)["r1"]["value"] == 0


def test_retrieval_goes_both_ways_and_an_embedding_model_would_be_right(subject, monkeypatch):
    """Features that are one-hot by colour find each other; the model's own are used in the second part."""
    held_out = HeldOut(CAPTIONS + [record("describe", [PICTURES["red"], "What is this?"], ["all red"])])
    real = held_out.retrieval(subject)
    assert set(real) == {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    assert (real["image_to_text_r1"]["n"], real["text_to_image_r1"]["n"]) == (8, 9), "a picture counts once"
    eye = torch.eye(len(COLOURS))
    pixels = {picture.getpixel((0, 0)): i for i, picture in enumerate(PICTURES.values())}
    find = {name: i for i, name in enumerate(COLOURS)}
    monkeypatch.setattr(
        "dps_hf.evaluation.held_out.embed_pictures", lambda _, some: eye[[pixels[p.getpixel((0, 0))] for p in some]]
    )
    monkeypatch.setattr(
        "dps_hf.evaluation.held_out.embed_texts", lambda _, some: eye[[find[t.split()[1]] for t in some]]
    )
    assert all(figure["value"] == 1 for figure in held_out.retrieval(subject).values())


def test_the_likelihood_of_a_drawing_is_that_of_its_codes_after_its_prompt(subject):
    model, processor = subject.model, subject.processor
    turns = [turn for one in DRAWINGS[:2] for turn in split_turns(one)]
    codes = [[1, 5, 9, 2], [3, 3, 0, 15]]
    losses = score_drawings(subject, turns, [processor.drawing_text(row) for row in codes])
    for turn, row, loss in zip(turns, codes, losses):
        chat = [{"role": "user", "content": turn.prompt}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = processor(text=prompt + processor.drawing_text(row), return_tensors="pt")["input_ids"]
        start = model.config.image_code_start_id
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :, start : start + model.config.codebook_size]
        begin = int((ids[0] == model.config.boi_token_id).nonzero()[-1])
        logits = logits[begin : begin + 4].log_softmax(-1)
        expected = -logits[torch.arange(4), torch.tensor(row)].mean()
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_drawings_are_compared_after_right_and_shuffled_words(subject, monkeypatch):
    figures = HeldOut(DRAWINGS).right_words(subject)
    assert figures["likelier"]["n"] == 8 and -5 < figures["gap"]["value"] < 5
    scores = iter([[0.0] * 8, [1.0] * 6 + [-1.0] * 2])
    monkeypatch.setattr("dps_hf.evaluation.held_out.score_drawings", lambda *_: next(scores))
    assert HeldOut(DRAWINGS).right_words(subject)["likelier"]["value"] == 0.75


def test_a_judge_scores_each_kind_and_what_it_passes_over_does_not_count(subject, capsys):
    seen = []

    def judge(cases):
        seen.extend(cases)
        return [
            Verdict({"size": 0.25 if isinstance(case.response, str) else 1.0}, "", "size", case.origin) if i else None
            for i, case in enumerate(cases)
        ]

    figures = HeldOut(CAPTIONS + DRAWINGS, judge=judge).judgements(subject)
    assert {kind: (figure["value"], figure["n"]) for kind, figure in figures.items()} == {
        "captions": (0.25, 7),
        "drawings": (1.0, 7),
    }
    assert "a verdict on 7 of 8 drawings" in capsys.readouterr().out
    assert seen[0].answers == ("a red square",) and len(seen[0].images) == 1 and seen[8].answers == ()


def test_answers_are_generated_once_for_figures_judge_and_sheet(subject, monkeypatch):
    from dps_hf.evaluation import held_out as module

    calls, own = [], module.respond

    def count(*args, **kwargs):
        calls.append(len(args[2]))
        return own(*args, **kwargs)

    monkeypatch.setattr(module, "respond", count)
    held_out = HeldOut(QUESTIONS, judge=lambda cases: [None] * len(cases))
    held_out.questions(subject)
    assert held_out.judgements(subject) == {}
    page = held_out.draw_sheet(subject)
    assert calls == [8] and page.width > 1000
    assert HeldOut(CAPTIONS + DRAWINGS).draw_sheet(subject).height > 400


def test_a_data_set_and_tasks_share_one_report(subject, tmp_path, monkeypatch):
    (tmp_path / "my_own_task.py").write_text(
        "from dps_hf.evaluation.figures import share\ndef mine(subject):\n    return {'all': share([True])}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    output, tasks = tmp_path / "figures.json", ["my_own_task.mine"]
    run_evaluations(subject, "tiny", tasks, output)
    own, about = HeldOut(QUESTIONS).list_evaluations(), {"dataset": "squares", "dataset_fingerprint": "1"}
    report = run_evaluations(subject, "tiny", tasks, output, dataset=own, about=about)
    assert list(report["seconds"]) == ["mine", "questions"] and report["recipe"]["dataset"] == "squares"
    assert run_evaluations(subject, "tiny", tasks, output)["questions"] == report["questions"]
    assert json.loads(output.read_text())["recipe"]["dataset"] == "squares"
    other = about | {"dataset_fingerprint": "2"}
    with pytest.raises(ValueError, match="with other dataset_fingerprint"):
        run_evaluations(subject, "tiny", [], output, dataset=own, about=other)


def test_a_random_part_of_a_large_set_is_measured(subject):
    rows = Dataset.from_dict({"number": range(1000)})
    numbers = [row["number"] for row in choose_records(rows, subject)]
    assert len(set(numbers)) == 100 and numbers != list(range(100))
    assert numbers == [row["number"] for row in choose_records(rows, subject)]
    assert [row["number"] for row in choose_records(rows.to_iterable_dataset(), subject)] == list(range(100))


def test_captioned_pictures_are_described_and_drawn_unless_shares_are_set(subject, tmp_path):
    for name in COLOURS:
        PICTURES[name].save(tmp_path / f"{name}.png")
    rows = [json.dumps({"file_name": f"{name}.png", "text": f"a {name} square"}) for name in COLOURS]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    both = HeldOut(choose_records(read_records(str(tmp_path)), subject))
    assert {kind: len(turns) for kind, turns in both.turns.items()} == {"captions": 8, "drawings": 8}
    drawn = {"path": str(tmp_path), "captions": {"draw": {"share": 1}}}
    assert list(HeldOut(choose_records(read_records(drawn), subject)).turns) == ["drawings"]
