"""Which responses are paired, and the rows that come of it."""

import json
from collections import Counter

import pytest
from trl import apply_chat_template

from dps_hf.judges.verdict import Verdict
from dps_hf.preferences.pairs import PAIRED, UNPAIRED, Selection, make_paired_rows, make_pairs, make_unpaired_rows
from dps_hf.preferences.prompts import Prompt
from dps_hf.preferences.responses import Response


def response(text: str, score: float | None, tokens: int = 4) -> Response:
    verdict = None if score is None else Verdict({"exact": score}, "", "a judge", "model")
    return Response(text, text, tokens, seed=7, verdict=verdict)


def texts(pairs) -> list[tuple[str, str]]:
    return [(chosen.text, rejected.text) for chosen, rejected in pairs]


def test_the_better_response_is_chosen():
    assert texts(make_pairs([response("bad", 0.1), response("good", 0.9)], Selection())) == [("good", "bad")]


def test_a_pair_needs_the_margin_and_reaches_it_in_spite_of_rounding():
    nearly, enough = [response("a", 0.6), response("b", 0.69)], [response("a", 0.6), response("b", 0.7)]
    assert make_pairs(nearly, Selection(margin=0.1)) == []
    assert texts(make_pairs(enough, Selection(margin=0.1))) == [("b", "a")]


def test_what_became_of_each_response_is_counted():
    counts = Counter()
    group = [response(*r) for r in (("a", 0.5), ("b", 0.5), ("a", 0.5), ("c", None), ("d", 1.0), ("long", 0.0, 40))]
    make_pairs(group, Selection(max_length_ratio=2.0), counts)
    assert counts == {
        "responses": 6, "unjudged": 1, "duplicates": 1, "ties": 1, "unequal lengths": 3, "pairs": 2,
    }  # fmt: skip


def test_equal_texts_make_no_pair_whatever_they_were_scored():
    assert make_pairs([response("same", 0.0), response("same", 1.0)], Selection()) == []


def test_each_of_several_verdicts_on_one_text_counts():
    votes = [response("liked once", 1.0), *[response("liked once", 0.0)] * 9, response("liked", 1.0)]
    assert texts(make_pairs(votes, Selection())) == [("liked", "liked once")]
    rows = make_unpaired_rows(Prompt("Draw."), votes, Selection())
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("liked once", False),
        ("liked", True),
    ]
    assert rows[0]["score"] == pytest.approx(0.1) and json.loads(rows[0]["aspects"]) == {"exact": 0.1}


def test_each_vote_counts_alike_whatever_it_was_given_with():
    def vote(aspect, score):
        return Response("Paris.", "Paris.", 4, verdict=Verdict({aspect: score}, "", "users", "votes"))

    votes = [*[vote("thumb", 1.0)] * 9, vote("rating", 0.0)]
    (row,) = make_unpaired_rows(Prompt("France?"), votes, Selection())
    assert row["label"] and row["score"] == pytest.approx(0.9)
    assert json.loads(row["aspects"]) == {"thumb": 1.0, "rating": 0.0}
    pairs = make_paired_rows(Prompt("France?"), [*votes, response("Rome.", 0.0)], Selection())
    assert [round(pair["score_chosen"], 6) for pair in pairs] == [0.9]


def test_an_answer_that_thinks_is_not_paired_with_one_that_does_not():
    group = [response("<think>a</think>b", 1.0), response("c", 0.0), response("<think>d</think>e", 0.0)]
    counts = Counter()
    assert texts(make_pairs(group, Selection(), counts)) == [("<think>a</think>b", "<think>d</think>e")]
    assert counts["one thinks"] == 2
    rows = make_unpaired_rows(Prompt("Why?"), group, Selection())
    assert [row["chat_template_kwargs"]["enable_thinking"] for row in rows] == [True, False, True]


def test_choices_between_two_become_an_order_of_all():
    a_over_b = [response("a", 1.0), response("b", 0.0)]
    c_over_a = [response("c", 1.0), response("a", 0.0)]
    assert set(texts(make_pairs(a_over_b + c_over_a, Selection()))) == {("c", "b"), ("c", "a"), ("a", "b")}


def test_what_counts_as_good_is_reached_in_spite_of_rounding():
    nearly = 0.1 + 0.7 + 0.1 - 1e-17  # 0.8999999999999999
    rows = make_unpaired_rows(Prompt("Draw."), [response("a", nearly), response("b", 0.1 * 3 + 0.2)], Selection())
    assert [row["label"] for row in rows] == [True, False]


def test_pairs_use_every_response_before_any_is_used_again_and_wide_margins_first():
    group = [response(name, score) for name, score in (("a", 1.0), ("b", 0.8), ("c", 0.2), ("d", 0.0))]
    assert texts(make_pairs(group, Selection(max_pairs=2))) == [("a", "d"), ("b", "c")]
    assert len(make_pairs(group, Selection(max_pairs=99))) == 6
    one_good = [response("good", 1.0), *(response(f"bad {i}", 0.0) for i in range(5))]
    assert texts(make_pairs(one_good, Selection(max_pairs=3))) == [("good", f"bad {i}") for i in range(3)]


def test_a_longer_response_may_be_better_but_not_many_times_longer():
    group = [response("short", 0.0, tokens=10), response("long", 1.0, tokens=25)]
    assert make_pairs(group, Selection(max_length_ratio=2.0)) == []
    assert len(make_pairs(group, Selection(max_length_ratio=2.5))) == 1


def test_one_aspect_may_count_alone():
    def scored(text, exact, likeness):
        return Response(text, text, 1, verdict=Verdict({"exact": exact, "likeness": likeness}, "", "j", "model"))

    group = [scored("a", 0.0, 1.0), scored("b", 1.0, 0.0)]
    assert make_pairs(group, Selection()) == []
    assert texts(make_pairs(group, Selection(aspect="exact"))) == [("b", "a")]
    assert make_pairs(group, Selection(aspect="missing")) == []


def test_rows_have_what_trl_and_a_reader_want():
    (row,) = make_paired_rows(Prompt("Which?", task="t"), [response("a", 0.0), response("b", 1.0)], Selection())
    assert set(row) == set(PAIRED)
    assert row["prompt"] == [{"role": "user", "content": "Which?"}]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("b", "a")
    assert (row["score_chosen"], row["score_rejected"], row["seed"], row["judge"]) == (1.0, 0.0, 7, "a judge")
    assert json.loads(row["aspects_chosen"]) == {"exact": 1.0}


def test_trl_asks_for_thinking_as_generation_does_and_learns_what_comes_after(tiny_processor):
    thought = [response("<think>I see.</think>red", 1.0), response("<think>Hm.</think>blue", 0.0)]
    direct = [response("red", 1.0), response("blue", 0.0)]
    for group, thinks, chosen in ((thought, True, "I see.</think>red"), (direct, False, "red")):
        (row,) = make_paired_rows(Prompt("Which?"), group, Selection())
        asked = tiny_processor.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False, enable_thinking=thinks
        )
        rendered = apply_chat_template(row, tiny_processor)
        assert rendered["prompt"] == asked and rendered["chosen"].startswith(chosen + "<|im_end|>")
        labelled = apply_chat_template(make_unpaired_rows(Prompt("Which?"), group, Selection())[0], tiny_processor)
        assert (labelled["prompt"], labelled["completion"]) == (asked, rendered["chosen"])


def test_what_is_neither_good_nor_bad_gets_no_label():
    group = [response("a", 1.0), response("b", 0.7), response("c", 0.2), response("c", 0.2), response("d", None)]
    rows = make_unpaired_rows(Prompt("Which?"), group, Selection(good=0.9, bad=0.5))
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [("a", True), ("c", False)]
    assert all(set(row) == set(UNPAIRED) for row in rows)


@pytest.mark.parametrize("wrong", [{"margin": 0}, {"max_pairs": 0}, {"max_length_ratio": 0.5}, {"good": 0.5}])
def test_a_selection_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Selection(**wrong)


def test_where_only_good_ones_are_chosen_the_better_of_two_bad_ones_is_not():
    group, counts = [response("bad", 0.1), response("better", 0.6), response("good", 0.9)], Counter()
    assert set(texts(make_pairs(group, Selection(only_good=True), counts))) == {("good", "bad"), ("good", "better")}
    assert counts["none good"] == 1 and counts["pairs"] == 2
