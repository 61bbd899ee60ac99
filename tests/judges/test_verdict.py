import pytest

from dps_hf.judges.verdict import Case, Verdict, apply_rewrite


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
