"""Runs evaluations, keeps the finished ones in a file, and prints their figures."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
import transformers

from dps_hf.evaluation.figures import Figure
from dps_hf.evaluation.subject import Subject
from dps_hf.files import write_whole
from dps_hf.inference import weights_digest
from dps_hf.resolve import resolve


Evaluation: TypeAlias = Callable[[Subject], dict[str, Figure]]
"""Measures a model and returns its figures by name."""


def find_evaluations(paths: Iterable[str]) -> dict[str, Evaluation]:
    """The evaluations at dotted paths, by name.

    Args:
        paths: each is the path of an [`Evaluation`], such as `my_package.my_evaluation`, or of a module whose
            `EVALUATIONS` lists several. The name of an evaluation is that of its function.

    Raises:
        ValueError: a path leads nowhere or to something else, two evaluations have one name, or there are none.
    """
    found: dict[str, Evaluation] = {}
    for path in paths:
        target = resolve(path, "tasks")
        if isinstance(target, ModuleType) and not hasattr(target, "EVALUATIONS"):
            raise ValueError(f"tasks names the module {path}, which has no EVALUATIONS. Name a function of it.")
        for evaluation in target.EVALUATIONS if isinstance(target, ModuleType) else (target,):
            if not callable(evaluation):
                raise ValueError(f"tasks must be dotted paths of functions; {path} is {evaluation!r}.")
            name = evaluation.__name__
            if found.setdefault(name, evaluation) is not evaluation:
                raise ValueError(f"tasks must have different names; two are called {name}. Rename one of them.")
    if not found:
        raise ValueError("tasks must name at least one evaluation, such as my_package.my_evaluation.")
    return found


def describe(subject: Subject) -> dict:
    """Everything that the figures of an evaluation depend on."""
    return {
        "weights": weights_digest(subject.model),
        "items": subject.items,
        "seed": subject.seed,
        "batch_size": subject.batch_size,
        **subject.sampling,
        "answers": "greedy",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def run_evaluations(
    subject: Subject,
    name: str,
    tasks: list[str],
    output: Path,
    fresh: bool = False,
    dataset: Mapping[str, Evaluation] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict:
    """Runs the evaluations that `output` does not hold yet, writes their figures there, and returns the report.

    Args:
        name: what the report calls the model.
        tasks: paths as in [`find_evaluations`].
        fresh: runs these evaluations again even if `output` holds them.
        dataset: evaluations by name, those of a data set; see [`~dps_hf.evaluation.held_out.HeldOut`].
        about: what else the figures of `dataset` depend on, such as its name. It is added to the recipe.

    Raises:
        ValueError: `output` holds figures of another model or of other settings, or as in [`find_evaluations`].
    """
    evaluations = find_evaluations(tasks) if tasks or not dataset else {}
    if taken := sorted(set(evaluations) & set(dataset or {})):
        raise ValueError(f"tasks must not be called like an evaluation of the dataset; got {', '.join(taken)}.")
    evaluations |= dataset or {}
    recipe = describe(subject) | dict(about or {})
    report = {"model": name, "parameters": subject.model.num_parameters(), "recipe": recipe, "seconds": {}}
    if output.exists():
        kept = json.loads(output.read_text())
        others = [task for task in kept["seconds"] if task not in evaluations]
        # Figures of tasks do not depend on a data set that is added later, or left out.
        known = {key: value for key, value in recipe.items() if key in kept["recipe"] or key not in (about or {})}
        changed = [key for key, value in known.items() if kept["recipe"].get(key) != value]
        if changed and (others or not fresh):
            raise ValueError(
                f"{output} holds figures with other {', '.join(changed)}. Give another --output, or --fresh and all "
                f"tasks that it holds: {', '.join(kept['seconds'])}."
            )
        if not changed:
            report = {key: value for key, value in kept.items() if not (fresh and key in evaluations)}
            report["recipe"] = kept["recipe"] | recipe
    if all(
        task in evaluations for task in report["seconds"]
    ):  # a task that is added later keeps the command of the rest
        report["command"] = shlex.join(["python", *sys.argv])
    for task, evaluation in evaluations.items():
        if task in report:
            continue
        print(task)
        start = time.perf_counter()
        report[task] = evaluation(subject)
        report["seconds"][task] = round(time.perf_counter() - start, 1)
        write_whole(output, json.dumps(report, indent=2) + "\n")
    return report


def print_figures(report: dict) -> None:
    """Prints every figure of a report with its interval and its number of items."""
    print(f"\n{'':36}{'value':>8}   95 % interval     n")
    for task in report["seconds"]:
        for name, figure in report[task].items():
            low, high = figure["ci95"]
            print(f"{f'{task}.{name}':36}{figure['value']:8.3f}  {low:7.3f} {high:7.3f} {figure['n']:5}")
