"""Makes model cards and dataset cards from Markdown templates and measured figures.

card = model_card("model_cards/fine-tuned.md", "me/dps-sums", "outputs/sums.json", base_model="me/dps-nano", ...)

A template is written in Jinja and may extend another one. Its front matter is the metadata that its cards share.
"""

import json
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, EvalResult, ModelCard


COUNTED = ("task", "judge", "origin")  # columns of a data set whose values its card counts


def model_card(
    template: str | PathLike,
    repo_id: str,
    results: str | PathLike,
    base_results: str | PathLike | None = None,
    base_model: str | None = None,
    datasets: list[str] | None = None,
    task_types: Mapping[str, str] | None = None,
    metric_types: Mapping[str, str] | None = None,
    **fields: Any,
) -> ModelCard:
    """Makes a card with all figures of `results`, in a table and in the metadata (`model-index`).

    Args:
        template: the Markdown file, such as one of `model_cards/`.
        repo_id: name of the model on the Hub.
        results: JSON that `examples/evaluate.py` wrote.
        base_results: the results of the model before training, for another column of the table.
        base_model: name on the Hub of the model that was fine-tuned.
        datasets: names of the training data on the Hub.
        task_types: the Hub's task of each evaluation, such as `{"my_drawings": "text-to-image"}`; by default
            "any-to-any".
        metric_types: the Hub's metric of each figure, such as `{"my_drawings.exact": "accuracy"}`; by default its own
            name.
        fields: values for the other fields of the template.

    Raises:
        ValueError: there are no results, or a field of the template is missing.
    """
    report = _report(results)
    before = _report(base_results) if base_results else None
    given = {"base_model": base_model} if base_model else {}
    text = _render(
        template,
        **fields,
        **given,
        repo_id=repo_id,
        name=repo_id.rpartition("/")[2],
        parameters=f"{report['parameters'] / 1e6:.1f} million",
        command=report["command"],
        setting=", ".join(f"{name} {value}" for name, value in report["recipe"].items()),
        table=_table(figures(report), figures(before) if before else None),
    )
    card = ModelCard(text)
    if base_model:
        card.data["base_model"] = base_model
    if datasets:
        card.data["datasets"] = datasets
    card.data["model_name"] = repo_id.rpartition("/")[2]
    card.data["eval_results"] = eval_results(report, task_types or {}, metric_types or {})
    return ModelCard(card.content)  # parses the metadata from the text, as the Hub does


def dataset_card(template: str | PathLike, repo_id: str, folder: str | PathLike, **fields: Any) -> DatasetCard:
    """Makes the card of a data set that `save_to_disk` wrote, with its splits, its columns and counts of its values.

    Raises:
        ValueError: a field of the template is missing.
    """
    splits = load_splits(folder)
    counts: dict[str, Counter[str]] = {
        column: Counter() for column in COUNTED if column in next(iter(splits.values())).column_names
    }
    for split in splits.values():
        for column, counter in counts.items():
            for batch in split.select_columns([column]).iter(10_000):
                counter.update(map(str, batch[column]))
    card = DatasetCard(
        _render(
            template,
            **fields,
            repo_id=repo_id,
            name=repo_id.rpartition("/")[2],
            rows={name: len(split) for name, split in splits.items()},
            columns=next(iter(splits.values())).column_names,
            counts={column: dict(counter.most_common(20)) for column, counter in counts.items()},
        )
    )
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    card.data["configs"] = [{"config_name": "default", "data_files": files}]
    return DatasetCard(card.content)


def load_splits(folder: str | PathLike) -> Mapping[str, Any]:
    """Loads the splits of a data set that `save_to_disk` wrote. A data set without splits is called `train`."""
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(str(folder))
    return {"train": loaded} if isinstance(loaded, Dataset) else loaded


def figures(report: Mapping, prefix: str = "") -> dict[str, dict]:
    """Flattens nested results to `{"scenes_t2i.one_object": {"value": ..., "n": ..., "ci95": ...}}`."""
    found = {}
    for key, value in report.items():
        if isinstance(value, dict) and "value" in value:
            found[prefix + key] = value
        elif isinstance(value, dict):
            found |= figures(value, f"{prefix}{key}.")
    return found


def eval_results(report: Mapping, task_types: Mapping[str, str], metric_types: Mapping[str, str]) -> list[EvalResult]:
    """Converts figures to results of `model-index`, with the number of items and the confidence interval of each.

    An evaluation named `reference` is left out, because it does not measure the model.
    """
    results = []
    for name, figure in figures(report).items():
        task, _, metric = name.rpartition(".")
        if task == "reference":
            continue
        results.append(
            EvalResult(
                task_type=task_types.get(task, "any-to-any"),
                task_name=task,
                dataset_type=task,
                dataset_name=task,
                dataset_split="validation",
                metric_type=metric_types.get(name, metric),
                metric_name=name,
                metric_value=figure["value"],
                metric_args={key: figure[key] for key in ("n", "ci95") if key in figure},
            )
        )
    return results


def _report(path: str | PathLike) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"results must be a file; there is none at {path}. Make it with examples/evaluate.py.")
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    if missing := [key for key in ("parameters", "recipe", "command") if key not in report]:
        raise ValueError(f"results {path} lack {', '.join(missing)}. Make them with examples/evaluate.py.")
    if not figures(report):
        raise ValueError(f"results {path} hold no figure. Run examples/evaluate.py with at least one task.")
    return report


def _table(after: Mapping[str, dict], before: Mapping[str, dict] | None) -> str:
    titles = ["figure", *(["before"] if before is not None else []), "value", "95 % interval", "n"]
    rows = [titles]
    for name, figure in after.items():
        low, high = figure.get("ci95") or (None, None)
        row = [
            f"`{name}`",
            f"{figure['value']:.3g}",
            f"{low:.3g} – {high:.3g}" if low is not None else "",
            str(figure["n"]),
        ]
        if before is not None:
            row.insert(1, f"{before[name]['value']:.3g}" if name in before else "")
        rows.append(row)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


def _render(template: str | PathLike, **fields: Any) -> str:
    template = Path(template)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return environment.get_template(template.name).render(**fields)
    except jinja2.UndefinedError as error:
        raise ValueError(f"The card {template.name} lacks a field: {error.message}. Pass it by this name.") from None
    except jinja2.TemplateNotFound as error:
        raise ValueError(f"template must be a card such as model_cards/base.md; there is no {error.name}.") from None
