"""Sampling, and judges' verdicts on what was sampled."""

import re

import pytest
import torch
from PIL import Image

from dps_hf.inference import decode
from dps_hf.judges.verdict import Case, Verdict
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response, compare_responses, group_votes, judge_responses, sample_responses


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@pytest.fixture
def drawn(tiny_model, tiny_processor):
    def draw(prompts, **options):
        return sample_responses(tiny_model, tiny_processor, prompts, 3, seed=5, **options)

    return draw


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
    again = sample_responses(tiny_model, tiny_processor, prompts[2:], 3, seed=6)
    assert [response.text for response in again[0]] == [response.text for response in groups[2]]
    other = sample_responses(tiny_model, tiny_processor, prompts[2:], 3, seed=9)
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
    (first, none), (last,) = judge_responses(judge, prompts, groups)
    assert (first.verdict.score, none.verdict, last.verdict.score) == (3 / 9, None, 2 / 9)
    assert asked == [[Case("one", "aaa", (RED,), ("x",)), Case("one", "b", (RED,), ("x",)), Case("two", "cc")]]


class Refiner:
    """Likes long answers, and rewrites short ones."""

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
    (group,) = judge_responses(
        Refiner(), [Prompt("one")], [[Response("ab", "ab", 2), Response("long", "long", 2)]], 0.1
    )
    assert [response.text for response in group] == ["ab", "ababab", "long"]
    assert group[1].origin == "rewrite by refiner" and group[1].verdict.score == 0.6


def test_only_a_judge_that_rewrites_can_refine():
    with pytest.raises(TypeError, match="refine_margin needs a judge with a method refine"):
        judge_responses(lambda cases: [None] * len(cases), [Prompt("one")], [[Response("a", "a", 1)]], 0.1)


class Comparer:
    """Likes the longer one; has no verdict on "?"."""

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
    first, *others = compare_responses(judge, [Prompt(str(i)) for i in range(3)], answers)
    assert [answer.text for answer in first] == groups[0]
    assert [answer.verdict.score for answer in first] == pytest.approx([0, 1, 0.5, 0.5, 0])
    assert [answer.verdict for group in others for answer in group] == [None] * 4
    assert len(judge.pairs) == 6 + 1, "equal ones are one"


def test_votes_on_one_prompt_come_together_and_pictures_become_codes(tiny_model, tiny_processor):
    def vote(score):
        return Verdict({"thumb": score}, "", "users", "votes:1")

    votes = [(Case("a star", RED), vote(1.0)), (Case("Which?", "this"), vote(0.0)), (Case("a star", BLUE), vote(0.0))]
    prompts, groups = group_votes(votes, tiny_model, tiny_processor)
    assert [prompt.text for prompt in prompts] == ["a star", "Which?"]
    assert [len(group) for group in groups] == [2, 1]
    assert groups[0][0].text.startswith("<begin_of_image><img_") and groups[0][0].verdict.score == 1.0


def test_votes_on_drawings_are_votes_on_the_codes_that_were_drawn(tiny_model, tiny_processor):
    text = tiny_processor.drawing_text([0, 1, 2, 3])
    drawing = decode(tiny_model, tiny_processor, text)
    [[response]] = group_votes(
        [(Case("a star", drawing), Verdict({"thumb": 1.0}, "", "users", "votes:1"))], tiny_model, tiny_processor
    )[1]
    assert response.text == text
