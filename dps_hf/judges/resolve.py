"""Judges as recipes name them: "openai", or the dotted path of anybody's function or class."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from dps_hf.judges.verdict import Judge
from dps_hf.resolve import resolve


NAMES = {"openai": "dps_hf.judges.openai.OpenAIJudge"}
"""Short names of judges."""

SUPPLIED = ("model", "processor", "cache", "other_caches")
"""Arguments that a script passes to a judge whose signature has them."""

PACE = (
    "cache", "other_caches", "key_variable", "concurrency", "retries", "timeout_seconds", "requests_per_minute",
    "max_calls", "max_tokens", "progress",
)  # fmt: skip
"""Options that say where replies are kept, how fast a judge works and what it may spend, and change no verdict."""


def find_judge(name: str, options: Mapping[str, Any]) -> Any:
    """The class or function behind the name of a judge, without making a judge of it.

    Args:
        name: one of `NAMES`, or a dotted path such as `my_package.my_judge`.
        options: keyword arguments that the judge is to have.

    Raises:
        ValueError: there is no such class or function, it takes no such option, or it needs one that is not there.
    """
    found = resolve(NAMES.get(name, name), "judge")
    if not callable(found):
        raise ValueError(f"judge must be a function or a class; {name} is {found!r}.")
    parameters = _list_parameters(found)
    if unknown := sorted(set(options) - set(parameters)):
        known = ", ".join(parameters) or "nothing"
        raise ValueError(f"judge_options must have only {known} for the judge {name}; got {', '.join(unknown)}.")
    required = [one for one, parameter in parameters.items() if parameter.default is parameter.empty]
    needed = [one for one in required if one not in _list_supplied(found)]
    if missing := [one for one in needed if not options.get(one)]:
        raise ValueError(
            f"judge_options must have {' and '.join(needed)} for the judge {name}; {', '.join(missing)} missing."
        )
    return found


def make_judge(
    name: str,
    options: Mapping[str, Any],
    load: Callable[[], tuple[Any, Any]] | None = None,
    **supplied: Any,
) -> Judge:
    """The judge of a name: a class is instantiated, a function is the judge itself.

    Both get `options` as keyword arguments. If the signature has parameters `model` and `processor`, they get those of
    `load`, too; likewise `cache` and `other_caches` from `supplied`. Options go before what is supplied.

    Args:
        name, options: see [`find_judge`], which raises the same errors.
        load: returns the model and its processor; called only for a judge that asks for them.
        supplied: what else is passed where the signature has it, for example `cache`.
    """
    found = find_judge(name, options)
    wanted = _list_supplied(found)
    own = {key: value for key, value in supplied.items() if key in wanted}
    if "processor" in wanted and load is not None:
        own["model"], own["processor"] = load()
    arguments = {**own, **options}
    if inspect.isclass(found):
        return cast(Judge, found(**arguments))
    return partial(found, **arguments) if arguments else found


def _list_parameters(found: Any) -> dict[str, inspect.Parameter]:
    """The parameters that options may set: those of a class, or those of a function after the cases."""
    parameters = dict(inspect.signature(found).parameters)
    if not inspect.isclass(found):
        parameters.pop(next(iter(parameters)), None)
    return parameters


def _list_supplied(found: Any) -> set[str]:
    """The parameters that scripts supply. A `model` without a `processor` is another thing: the name of a server's."""
    names = set(SUPPLIED) & set(_list_parameters(found))
    return names if {"model", "processor"} <= names else names - {"model", "processor"}


def keep_verdict_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options on which verdicts depend: all but those in `PACE`. Work may go on after a change of the others."""
    return {name: options[name] for name in sorted(options) if name not in PACE}
