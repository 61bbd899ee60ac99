"""Judges by the names that recipes call them: a new one has its line here."""

from collections.abc import Callable, Mapping
from inspect import signature

from dps_hf.judges.openai import OpenAIJudge
from dps_hf.judges.verdict import Judge
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.nano.exact_judge import exact_judge
from dps_hf.nano.self_judge import SelfJudge


JUDGES = ("exact", "self", "openai")


def check_judge(name: str, options: Mapping) -> None:
    """
    Raises:
        ValueError: no judge is called so, or "openai" lacks an option or knows none of that name.
    """
    if name not in JUDGES:
        raise ValueError(f"judge must be one of {', '.join(JUDGES)}; got {name!r}.")
    if name != "openai":
        return
    known = signature(OpenAIJudge).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"judge_options must have only {', '.join(known)}; got {', '.join(unknown)}.")
    if missing := [one for one in ("model", "rubric") if not options.get(one)]:
        raise ValueError(
            f"judge_options must have model and rubric for the judge openai; {', '.join(missing)} missing."
        )


def named_judge(
    name: str, options: Mapping, own: Callable[[], tuple[DPSForConditionalGeneration, DPSProcessor]]
) -> Judge:
    """One of `JUDGES`.

    Args:
        options: arguments of `OpenAIJudge`, if it is "openai".
        own: gives the model that describes its own drawings, and its processor, if it is "self".
    """
    if name == "self":
        return SelfJudge(*own())
    return OpenAIJudge(**options) if name == "openai" else exact_judge


def counted(judge: Judge, what: str) -> int:
    """How often something has happened so far that an `OpenAIJudge` counts, `NO_REPLY` or `REFUSED` for instance."""
    return judge.counts[what] if isinstance(judge, OpenAIJudge) else 0


def last_fault(judge: Judge) -> str:
    """What its server said when it last left a case without a reply, where it has a server and that said something."""
    return getattr(judge, "fault", "")
