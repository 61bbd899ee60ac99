"""Sampling, and judges' verdicts on what was sampled."""

import re
from io import BytesIO

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from dps_hf.data.record import record
from dps_hf.inference import decode
from dps_hf.judges.openai import OpenAIJudge
from dps_hf.judges.verdict import Case, Verdict
from dps_hf.preferences.responses import Prompt, Response, compared, judged, prompts_of, read_prompts, sample, voted


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def drawn(tiny_model, tiny_processor):
    def draw(prompts, **options):
        return sample(tiny_model, tiny_processor, prompts, 3, seed=5, **options)

    return draw


def test_prompts_are_asked_once_and_know_their_answers():
    records = [
        record("t2i", ["a star"], [RED]), record("i2t", [RED, "What?"], ["red"]),
        record("t2i", ["a star"], [BLUE]), record("i2t", [BLUE, "What?"], ["blue"]),
    ]  # fmt: skip
    star, red, blue = prompts_of(records, think=["i2t"])
    assert star == Prompt("a star", draw=True, task="t2i")
    assert red == Prompt("What?", (RED,), ("red",), think=True, task="i2t")
    assert blue.images == (BLUE,)


def test_prompts_end_where_nothing_new_comes():
    endless = iter(lambda: record("t", ["again"], ["and again"]), None)
    assert len(list(prompts_of(endless))) == 1


def test_a_file_of_prompts_asks_for_each_line_once(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a star\n\n  une étoile \na star\n", encoding="utf-8")
    lines = ("a star", "une étoile")
    assert list(read_prompts(path)) == [Prompt(text, draw=True, task="mine") for text in lines]
    assert list(read_prompts(path, think=["mine"])) == [Prompt(text, (), (), True, True, "mine") for text in lines]


def test_control_tokens_in_prompts_are_named_with_their_place(tmp_path):
    (tmp_path / "mine.txt").write_text("a star\na <image> star\n")
    with pytest.raises(ValueError, match=r"line 2 of .*mine.txt must not hold control tokens; got '<image>'"):
        list(read_prompts(tmp_path / "mine.txt"))
    asked = record("mine", ["a <|im_end|> star"], ["yes"])
    with pytest.raises(
        ValueError, match=r"record 0 of .*: a question must not hold control tokens; got '<\|im_end\|>'"
    ):
        list(read_prompts(save([asked], tmp_path / "records")))


def test_a_file_of_prompts_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "mine.txt").write_bytes("ein großer Stern".encode("latin1"))
    with pytest.raises(ValueError, match=r"prompts must name a file in UTF-8; .*mine.txt is not"):
        list(read_prompts(tmp_path / "mine.txt"))


def test_a_file_without_prompts_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "none.txt"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"none\.txt has none"):
        next(read_prompts(path))


def save(records, path, columns=("messages", "images")):
    Dataset.from_dict({name: [one[name] for one in records] for name in columns}).save_to_disk(path)
    return path


def test_a_folder_of_records_asks_each_question_once_and_knows_the_answers(tmp_path):
    records = [record("i2t", [RED, "What?"], ["red"], steps="I see."), record("t2i", ["a star"], [BLUE])]
    red, star = read_prompts(save(records * 2, tmp_path / "mine"), think=["mine"])
    assert red.steps == ""
    assert (red.text, red.answers, red.draw, red.think, red.task) == ("What?", ("red",), False, True, "mine")
    assert red.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert (star.text, star.images, star.answers, star.draw) == ("a star", (), (), True)
    with_tasks = read_prompts(save(records, tmp_path / "more", ("messages", "images", "task", "steps")), think=["i2t"])
    assert [(p.task, p.think, p.steps) for p in with_tasks] == [("i2t", True, "I see."), ("t2i", False, "")]


@pytest.mark.parametrize("decode", [True, False])
def test_prompts_of_a_folder_have_their_pictures_however_these_were_kept(tmp_path, decode):
    RED.save(tmp_path / "red.png")
    asked, plain = record("t", [RED, "What?"], ["red"]), record("t", ["Say yes."], ["yes"])
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": List(part)}),
            "images": List(ImageFeature(decode=decode)),
        }
    )
    kept = {"bytes": None, "path": str(tmp_path / "red.png")}
    rows = {"messages": [asked["messages"], plain["messages"]], "images": [[kept], None]}
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "mine")
    what, say = read_prompts(tmp_path / "mine")
    assert what.images[0].getpixel((0, 0)) == (255, 0, 0) and say.images == ()
    rows["images"][0] = [None]
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"record 0 of .*missing: 'images'\[0\] holds no picture"):
        list(read_prompts(tmp_path / "missing"))


def test_steps_that_stand_in_an_answer_are_steps_and_no_part_of_it(tmp_path):
    worked = record("i2t", [RED, "What?"], ["<think>I see red.</think>red"])
    (prompt,) = read_prompts(save([worked], tmp_path / "mine"))
    assert (prompt.answers, prompt.steps) == (("red",), "I see red.")
    (prompt,) = read_prompts(
        save([{**worked, "steps": "Better."}], tmp_path / "more", ("messages", "images", "steps"))
    )
    assert (prompt.answers, prompt.steps) == (("red",), "Better.")


@pytest.mark.parametrize("mode", ["CMYK", "F", "LA", "P", "I;16"])
def test_pictures_of_any_mode_come_to_the_trainer_in_colours(mode):
    picture = Image.new(mode, (8, 8))
    prompt = Prompt("What?", (picture,))
    assert len(prompt.key) == 64
    (encoded,) = prompt.encoded_images
    assert Image.open(BytesIO(encoded["bytes"])).mode == "RGB"


def test_a_question_whose_answer_nobody_knows_is_asked_too(tmp_path):
    one = record("i2t", [RED, "What?"], ["red"])
    (prompt,) = read_prompts(save([{**one, "messages": one["messages"][:1]}], tmp_path / "mine"))
    assert (prompt.text, len(prompt.images), prompt.answers) == ("What?", 1, ())


def test_the_last_question_of_a_conversation_has_its_own_pictures(tmp_path):
    first, last = record("t", [RED, "What?"], ["red"]), record("t", [BLUE, "And this?"], ["blue"])
    both = {"messages": first["messages"] + last["messages"], "images": first["images"] + last["images"], "task": "t"}
    assert list(prompts_of([both])) == [Prompt("And this?", (BLUE,), ("blue",), task="t")]


def test_a_wrong_record_in_a_folder_is_named_by_its_number(tmp_path):
    right = record("i2t", [RED, "What?"], ["red"])
    with pytest.raises(ValueError, match=r"record 1 of .*mine: .*mention 1 image\(s\) but 'images' holds 0"):
        list(read_prompts(save([right, {**right, "images": []}], tmp_path / "mine")))
    with pytest.raises(ValueError, match=r"record 0 of .*mute: 'messages' must end with a question of the user"):
        list(read_prompts(save([{"messages": right["messages"][1:], "images": []}], tmp_path / "mute")))
    cut = {"bytes": png_of(RED)[:-30], "path": None}
    features = Features({"messages": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}), "images": List(ImageFeature())})  # fmt: skip
    broken = Dataset.from_dict({"messages": [right["messages"]], "images": [[cut]]}, features)
    broken.save_to_disk(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"record 0 of .*cut: "):
        list(read_prompts(tmp_path / "cut"))
    DatasetDict(train=broken, test=broken).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"one set of records; .*both has train, test"):
        list(read_prompts(tmp_path / "both"))


def png_of(image):
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_drawing_is_its_codes_for_trainers_and_a_picture_for_judges(drawn, tiny_model, tiny_processor):
    (group,) = drawn([Prompt("a star", draw=True)])
    assert len(group) == 3
    for response in group:
        codes = [int(code) for code in re.findall(r"<img_(\d+)>", response.text)]
        assert response.text == tiny_processor.drawing_text(codes)
        pixels = tiny_model.decode_image_tokens(torch.tensor([codes]))
        again = tiny_processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
        assert response.content.tobytes() == again.tobytes()
        assert response.tokens == len(tiny_processor.tokenizer(response.text)["input_ids"])


def test_the_seed_that_is_recorded_gives_the_same_responses_again(tiny_model, tiny_processor, drawn):
    prompts = [Prompt("a", draw=True), Prompt("b", draw=True), Prompt("c", draw=True)]
    groups = drawn(prompts, batch_size=2)
    assert [group[0].seed for group in groups] == [5, 5, 6]
    again = sample(tiny_model, tiny_processor, prompts[2:], 3, seed=6)
    assert [response.text for response in again[0]] == [response.text for response in groups[2]]
    other = sample(tiny_model, tiny_processor, prompts[2:], 3, seed=9)
    assert [response.text for response in other[0]] != [response.text for response in groups[2]]


def test_prompts_of_all_kinds_are_answered_in_their_places(drawn):
    prompts = [
        Prompt("a star", draw=True),
        Prompt("What?", (RED,)),
        Prompt("Which?"),
        Prompt("make it blue", (RED,), draw=True),
    ]
    groups = drawn(prompts, max_new_tokens=3)
    assert [isinstance(group[0].content, Image.Image) for group in groups] == [True, False, False, True]
    assert [len(group) for group in groups] == [3, 3, 3, 3]


def test_thinking_and_plans_stand_before_answers_and_drawings(drawn):
    ((answer, *_),) = drawn([Prompt("Which?", think=True)], max_new_tokens=3)
    assert answer.text.startswith("<think>")
    ((*drawings,),) = drawn([Prompt("a star", draw=True, think=True)], max_new_tokens=60)
    for response in drawings:  # as many as came to their drawing
        assert response.text.startswith("<think>") and response.text.endswith("<end_of_image>")
        assert isinstance(response.content, Image.Image)


def test_a_judge_is_asked_once_and_its_verdicts_stay_with_their_responses():
    asked = []

    def judge(cases):
        asked.append(cases)
        return [None if c.response == "b" else Verdict({"a": len(c.response) / 9}, "", "j", c.origin) for c in cases]

    prompts = [Prompt("one", (RED,), ("x",)), Prompt("two")]
    groups = [[Response("aaa", "aaa", 1), Response("b", "b", 1)], [Response("cc", "cc", 1)]]
    (first, none), (last,) = judged(judge, prompts, groups)
    assert (first.verdict.score, none.verdict, last.verdict.score) == (3 / 9, None, 2 / 9)
    assert asked == [[Case("one", "aaa", (RED,), ("x",)), Case("one", "b", (RED,), ("x",)), Case("two", "cc")]]


class Refiner(OpenAIJudge):
    """Rewrites short answers, with no server behind it."""

    def __init__(self):
        self.name = "refiner"

    def __call__(self, cases):
        return [Verdict({"a": min(1, len(case.response) / 10)}, "", self.name, case.origin) for case in cases]

    def refine(self, cases, margin=0.1):
        rewrites = [case.response * 3 if len(case.response) < 3 else None for case in cases]
        return [
            Verdict(verdict.scores, "", self.name, verdict.origin, rewrite)
            for verdict, rewrite in zip(self(cases), rewrites)
        ]


def test_a_rewrite_that_proved_better_becomes_a_response_with_its_origin():
    (group,) = judged(Refiner(), [Prompt("one")], [[Response("ab", "ab", 2), Response("long", "long", 2)]], 0.1)
    assert [response.text for response in group] == ["ab", "ababab", "long"]
    assert group[1].origin == "rewrite by refiner" and group[1].verdict.score == 0.6


def test_only_a_judge_that_rewrites_can_refine():
    with pytest.raises(TypeError, match="OpenAIJudge"):
        judged(lambda cases: [None] * len(cases), [Prompt("one")], [[Response("a", "a", 1)]], 0.1)


class Comparer(OpenAIJudge):
    """Likes the longer one, with no server behind it; has nothing to say of "?"."""

    def __init__(self):
        self.name, self.pairs = "comparer", []

    def compare(self, first, second):
        def verdicts(a, b):
            self.pairs.append((a.response, b.response))
            if "?" in (a.response, b.response):
                return None
            won = (len(a.response) > len(b.response)) + 0.5 * (len(a.response) == len(b.response))
            return tuple(Verdict({"a": s}, "why", self.name, c.origin) for s, c in ((won, a), (1 - won, b)))

        return [verdicts(a, b) for a, b in zip(first, second, strict=True)]


def test_compared_responses_are_scored_by_the_share_that_they_win():
    groups = [["a", "bbb", "cc", "dd", "a"], ["x", "?"], ["y", "y"]]
    answers = [[Response(text, text, 1) for text in group] for group in groups]
    judge = Comparer()
    first, *others = compared(judge, [Prompt(str(i)) for i in range(3)], answers)
    assert [answer.text for answer in first] == groups[0]
    assert [answer.verdict.score for answer in first] == pytest.approx([0, 1, 0.5, 0.5, 0])
    assert [answer.verdict for group in others for answer in group] == [None] * 4
    assert len(judge.pairs) == 6 + 1, "equal ones are one"


def test_votes_on_one_prompt_come_together_and_pictures_become_codes(tiny_model, tiny_processor):
    def vote(score):
        return Verdict({"thumb": score}, "", "users", "votes:1")

    votes = [(Case("a star", RED), vote(1.0)), (Case("Which?", "this"), vote(0.0)), (Case("a star", BLUE), vote(0.0))]
    prompts, groups = voted(votes, tiny_model, tiny_processor)
    assert [prompt.text for prompt in prompts] == ["a star", "Which?"]
    assert [len(group) for group in groups] == [2, 1]
    assert groups[0][0].text.startswith("<begin_of_image><img_") and groups[0][0].verdict.score == 1.0


def test_votes_on_drawings_are_votes_on_the_codes_that_were_drawn(tiny_model, tiny_processor):
    text = tiny_processor.drawing_text([0, 1, 2, 3])
    drawing = decode(tiny_model, tiny_processor, text)
    [[response]] = voted(
        [(Case("a star", drawing), Verdict({"thumb": 1.0}, "", "users", "votes:1"))], tiny_model, tiny_processor
    )[1]
    assert response.text == text
