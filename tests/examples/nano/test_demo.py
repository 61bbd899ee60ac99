"""The demo on a tiny random model: which files it writes, and what it says to a picture that is none."""

import pytest
from PIL import Image

from dps_hf.nano import emoji


@pytest.fixture(scope="module")
def demo(example):
    return example("nano/demo.py")


@pytest.fixture
def run(demo, saved_model, tmp_path):
    """Runs the demo into `tmp_path`."""

    def main(**arguments):
        demo.main(demo.ScriptArguments(model=saved_model, output=tmp_path, **arguments))
        return tmp_path

    return main


def numbered(folder):
    return sorted(path.name for path in folder.glob("[0-9][0-9].png"))


def test_demo_shows_everything_on_one_page(run, demo, capsys):
    folder = run()
    pictures = len(demo.SCENES) + len(emoji.STYLES) + 8 + 6
    assert numbered(folder) == [f"{i:02}.png" for i in range(1, pictures + 1)]
    with Image.open(folder / "page.png") as page:
        assert min(page.size) > 900
    html = (folder / "page.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") > pictures
    assert "src=" not in html.replace('src="data:', ""), "the page must not load anything"
    answers = (folder / "answers.txt").read_text(encoding="utf-8")
    for language in emoji.QUESTIONS:
        assert answers.count(f"\n    {language}: ") == 8
    assert answers.count("Question:") == answers.count("Answer:") == 6
    drawings = len(demo.SCENES) + len(emoji.STYLES)
    assert answers.count("\n    right\n") + answers.count("\n    wrong\n") == drawings
    assert "page.png" in capsys.readouterr().out


def test_own_prompt_is_drawn_four_times(run):
    folder = run(prompt="a <b>big</b> red heart")
    assert numbered(folder) == ["01.png", "02.png", "03.png", "04.png"]
    assert "&lt;b&gt;big" in (folder / "page.html").read_text(encoding="utf-8"), "words of users are no HTML"


def test_equal_drawings_are_said_to_be_alike(run, demo, monkeypatch):
    drawings = [Image.new("RGB", (64, 64), colour) for colour in ("red", "red", "blue", "red")]
    monkeypatch.setattr(demo, "draw", lambda *_, **__: drawings)
    answers = (run(prompt="a heart") / "answers.txt").read_text(encoding="utf-8")
    assert answers.count("3 of 4 alike") == 3 and answers.count("alike") == 3


def test_own_picture_is_described(run, tmp_path):
    Image.new("RGBA", (300, 20), "red").save(tmp_path / "mine.webp")
    folder = run(image=str(tmp_path / "mine.webp"))
    assert numbered(folder) == ["01.png"]
    assert "What is this?" in (folder / "answers.txt").read_text(encoding="utf-8")


def test_prompt_beside_a_picture_is_a_question_about_it(run, demo, tmp_path, monkeypatch):
    asked = []

    def ask(model, processor, questions, pictures, **options):
        asked.append((questions, [picture.size for picture in pictures]))
        return [demo.Answer("it is red", "more</think>red")]

    monkeypatch.setattr(demo, "ask", ask)
    monkeypatch.setattr(demo, "draw", lambda *_, **__: pytest.fail("a question is not drawn"))
    Image.new("RGB", (80, 60), "red").save(tmp_path / "mine.png")
    folder = run(image=str(tmp_path / "mine.png"), prompt="What colour is it?")
    assert asked == [(["What colour is it?"], [(80, 60)])]
    answers = (folder / "answers.txt").read_text(encoding="utf-8").split("\n    ")
    assert answers[-3:] == ["Question: What colour is it?", "Thinking: it is red more", "Answer: red\n"]


def test_pictures_of_the_last_run_are_removed_and_no_others(run, tmp_path):
    run(prompt="a star")
    Image.new("RGB", (300, 20), "red").save(tmp_path / "77.png")
    assert numbered(run(image=str(tmp_path / "77.png"))) == ["01.png", "77.png"]


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nnot a picture"])
def test_bad_picture_ends_in_one_sentence(run, tmp_path, content):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        run(image=str(path))
    assert isinstance(exit.value.code, str), "Python prints a string and ends with code 1"
    assert "bad.png" in exit.value.code and "\n" not in exit.value.code


def test_prompt_with_a_token_of_the_model_ends_in_one_sentence(run):
    with pytest.raises(SystemExit, match="<image>"):
        run(prompt="draw an <image>")
    with pytest.raises(SystemExit, match="whole letters"):
        run(prompt="a\udcff")  # what Python makes of a byte that is no UTF-8
