import pytest
from PIL import Image

from dps_hf.inference import Answer
from dps_hf.judges.verdict import Case
from dps_hf.nano import self_judge
from dps_hf.nano.self_judge import SelfJudge


@pytest.fixture
def white() -> Image.Image:
    return Image.new("RGB", (64, 64), "white")


@pytest.fixture
def judge_seeing(monkeypatch):
    """Builds a judge whose model sees what it is told to; `asked` holds the questions."""

    def make(*descriptions: str) -> SelfJudge:
        judge = SelfJudge(None, None)
        judge.asked = []

        def ask(model, processor, questions, pictures, batch_size):
            judge.asked += questions
            assert len(questions) == len(pictures) == len(descriptions)
            return [Answer("", text) for text in descriptions]

        monkeypatch.setattr(self_judge, "ask", ask)
        return judge

    return make


def test_scenes_are_compared_thing_by_thing(judge_seeing, white):
    judge = judge_seeing("a big red star", "a big red circle", "two small blue hearts", "stars and stars")
    same, near, far, unreadable = judge([Case("Draw a red star.", white, origin="round 2")] * 4)
    assert same.score == 1 > near.score > far.score == 0
    assert unreadable is None
    assert (same.judge, same.origin, same.rationale) == ("self", "round 2", "I see: a big red star")
    assert "star" not in "".join(judge.asked)


def test_a_scene_may_be_asked_for_in_any_language(judge_seeing, white):
    prompts = ["画一个红色的星形。", "links ein roter Stern, rechts ein blauer Kreis"]
    one, both = judge_seeing("a big red star", "ein kleiner roter Stern und ein kleiner blauer Kreis")(
        [Case(prompt, white) for prompt in prompts]
    )
    assert one.score == both.score == 1


def test_emoji_are_asked_for_in_the_language_of_the_prompt(judge_seeing, white):
    judge = judge_seeing("Green apple.", "grüner Apfel", "cat", "")
    prompts = [
        "green apple, noto style",
        "grüner Apfel, noto style",
        "green apple, twemoji style",
        "green apple, noto style",
    ]
    right, german, wrong, nothing = judge([Case(prompt, white) for prompt in prompts])
    assert right.scores == german.scores == {"words": 1.0}
    assert wrong.scores == {"words": 0.0} and nothing is None
    assert judge.asked[:2] == ["What is this?", "Was ist das?"]


def test_only_drawings_have_verdicts_and_they_keep_their_places(judge_seeing, white):
    texts, drawing = Case("Why?", "Because."), Case("a nice view", white)
    verdicts = judge_seeing("a view")([texts, drawing, texts])
    assert verdicts[0] is verdicts[2] is None
    assert verdicts[1].scores == pytest.approx({"words": 0.8})


def test_a_real_model_judges_its_drawing(tiny_model, tiny_processor):
    picture = Image.new("RGB", (16, 16), "red")
    [verdict] = SelfJudge(tiny_model, tiny_processor)([Case("something", picture)])
    assert verdict is None or set(verdict.scores) == {"words"}
