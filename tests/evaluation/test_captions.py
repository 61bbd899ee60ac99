import pytest

from dps_hf.evaluation.captions import score_captions


@pytest.fixture(autouse=True)
def libraries():
    for name in ("sacrebleu", "rouge_score", "pycocoevalcap"):
        pytest.importorskip(name)


RIGHT = [["a red heart on the grass", "a heart that is red"], ["two blue stars in the sky"], ["a small green car"]]


def test_right_captions_get_the_highest_scores():
    figures = score_captions([own[-1] for own in RIGHT], RIGHT)
    assert figures["bleu"]["value"] == figures["chrf"]["value"] == 100
    assert figures["rouge_l"] == {"value": 1.0, "n": 3, "ci95": [1.0, 1.0]}
    wrong = score_captions([RIGHT[1][0], RIGHT[2][0], RIGHT[0][0]], RIGHT)
    for name, figure in figures.items():
        assert figure["value"] > 2 * wrong[name]["value"], name
        low, high = wrong[name]["ci95"]
        assert low <= high and figure["n"] == 3


def test_capitals_do_not_count():
    captions = ["a RED heart on the grass", "Two blue stars in the sky", "a small green car"]
    assert score_captions(captions, RIGHT) == score_captions([caption.lower() for caption in captions], RIGHT)


@pytest.mark.parametrize(
    "captions", [["красное сердце", "две синие звезды"], ["一颗红心", "两颗蓝色的星星"], ["लाल दिल", "दो नीले तारे"]]
)
def test_captions_in_other_scripts_are_scored(captions):
    right = score_captions(captions, [[caption] for caption in captions])
    wrong = score_captions(captions[::-1], [[caption] for caption in captions])
    assert right["rouge_l"]["value"] == 1 and right["bleu"]["value"] == 100
    assert wrong["rouge_l"]["value"] < 0.5 and wrong["cider"]["value"] < right["cider"]["value"]


def test_one_caption_or_an_empty_one_can_be_scored():
    assert score_captions(["a red heart"], [["a red heart"]])["bleu"]["value"] == 100
    assert score_captions([""], [["a red heart"]])["rouge_l"]["value"] == 0


def test_the_error_without_the_libraries_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"need sacrebleu. Run: pip install .dps_hf\[metrics\]"):
        score_captions(["a"], [["a"]])
