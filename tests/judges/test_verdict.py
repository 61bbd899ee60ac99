from functools import partial

import pytest
from PIL import Image

from dps_hf.judges.verdict import Case, Verdict, apply_rewrite, ask_judge


def test_the_score_is_the_mean_of_the_aspects():
    assert Verdict({"true": 1.0, "clear": 0.5}, "", "me", "model").score == 0.75


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [({}, "scores is empty"), ({"true": 1.5}, r"scores\['true'\] .* got 1.5"), ({"true": float("nan")}, "got nan")],
)
def test_a_verdict_without_a_readable_score_cannot_be_made(scores, complaint):
    with pytest.raises(ValueError, match=complaint):
        Verdict(scores, "", "me", "model")


def test_a_rewrite_says_where_it_comes_from():
    case, verdict = Case("What?", "Eh."), Verdict({"true": 0.0}, "vague", "gpt", "model", rewrite="That.")
    assert apply_rewrite(case, verdict) == Case("What?", "That.", origin="rewrite by gpt")
    with pytest.raises(ValueError, match="no rewrite proved better"):
        apply_rewrite(case, Verdict({"true": 1.0}, "", "gpt", "model"))


def likes_grey(cases, share=0.0):
    return [
        Verdict({"grey": float(case.response.convert("L").size > (0, share))}, "", "grey", "model") for case in cases
    ]


@pytest.mark.parametrize("judge", [likes_grey, partial(likes_grey, share=0.5)])
def test_a_judge_of_drawings_that_is_given_text_is_named(judge):
    drawing = Case("a star", Image.new("RGB", (8, 8)))
    assert ask_judge(judge, [drawing])[0].score == 1
    wanted = r"judge .*test_verdict.likes_grey takes every response for a drawing: .* has no attribute 'convert'"
    with pytest.raises(ValueError, match=f"{wanted}. A response may be text"):
        ask_judge(judge, [drawing, Case("What?", "A star.")])


def test_another_fault_of_a_judge_keeps_its_own_error():
    with pytest.raises(AttributeError, match="rating"):
        ask_judge(lambda cases: [case.rating for case in cases], [Case("What?", "A star.")])
