"""BLEU, chrF, ROUGE-L and CIDEr of captions, computed by sacrebleu, rouge-score and pycocoevalcap."""

from collections.abc import Sequence
from importlib import import_module

from dps_hf.evaluation.figures import Figure, mean


LIBRARIES = ("sacrebleu", "rouge_score", "pycocoevalcap.cider")
BOOTSTRAPS = 1000  # resamples of the items for the interval of BLEU and chrF


def check_libraries() -> None:
    """Raises an `ImportError` that says what to install, if a library for figures of captions is missing."""
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"Figures of captions need {name}. Run: pip install 'dps_hf[metrics]'") from error


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Figure]:
    """BLEU and chrF (0 to 100), the F-measure of ROUGE-L (0 to 1) and CIDEr (0 to 10), all ignoring case.

    ROUGE-L is that of the best reference. CIDEr gives a word more weight if the references of fewer pictures have it,
    so pictures need different references. Words are split as for BLEU; COCO's own script uses a Java program.

    Args:
        references: the right captions of each picture, one or more.

    Raises:
        ImportError: the extra `metrics` is not installed.
    """
    check_libraries()
    from pycocoevalcap.cider.cider import Cider
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    # Words in any script: Chinese characters one by one, all else as sacrebleu's "13a" does. rouge-score's own way
    # drops everything but Latin letters.
    split = TokenizerZh()

    def write_words(text: str) -> str:
        return split(text.casefold())

    class Words:
        tokenize = staticmethod(lambda text: write_words(text).split())

    figures: dict[str, Figure] = {}
    # `effective_order`: captions of fewer than four words have no four of them in a row.
    most = max(map(len, references))
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    for name, metric in (
        ("bleu", BLEU(tokenize="zh", lowercase=True, effective_order=True)),
        ("chrf", CHRF(lowercase=True)),
    ):
        figures[name] = _bootstrap(metric, list(captions), streams)
    rouge = RougeScorer(["rougeL"], tokenizer=Words())
    figures["rouge_l"] = mean(
        rouge.score_multi(list(own), caption)["rougeL"].fmeasure for own, caption in zip(references, captions)
    )
    wanted = {index: [write_words(text) for text in own] for index, own in enumerate(references)}
    given = {index: [write_words(caption)] for index, caption in enumerate(captions)}
    figures["cider"] = mean(Cider().compute_score(wanted, given)[1])
    return figures


def _bootstrap(metric, captions: list[str], streams: list[list[str | None]]) -> Figure:
    """A figure of sacrebleu with the interval of its bootstrap, whose random numbers are always the same."""
    if len(captions) == 1:
        score = metric.corpus_score(captions, streams).score
        return {"value": round(score, 4), "n": 1, "ci95": [round(score, 4)] * 2}
    score = metric.corpus_score(captions, streams, n_bootstrap=BOOTSTRAPS)
    low, high = max(0.0, score._mean - score._ci), min(100.0, score._mean + score._ci)
    return {"value": round(score.score, 4), "n": len(captions), "ci95": [round(float(low), 4), round(float(high), 4)]}
