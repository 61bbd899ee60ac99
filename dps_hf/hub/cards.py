"""Makes model cards and dataset cards from Markdown templates and measured figures.

card = model_card("model_cards/fine-tuned.md", "me/dps-sums", "outputs/sums.json", base_model="me/dps-nano", ...)
card = model_card("model_cards/base.md", "me/dps-cats", "outputs/cats.json", folder="runs/cats", trained="runs/cats")

A template is written in Jinja and may extend another one. Its front matter is the metadata that its cards share.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import jinja2
from huggingface_hub import DatasetCard, EvalResult, ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from jinja2 import meta


PARTS = {"decoder": "text_config", "vision tower": "vision_config", "image tokenizer": "image_tokenizer_config"}
"""The published parts of a model, and where its config says which they are."""

HELD_OUT = {
    "captions": "image-to-text",
    "questions": "visual-question-answering",
    "drawings": "text-to-image",
    "right_words": "text-to-image",
}
"""The Hub's tasks of the evaluations of a data set."""

MEANINGS = {
    "captions": "What the model says of a picture, against all right captions: BLEU and chrF reach 100, ROUGE-L 1, "
    "CIDEr 10.",
    "questions": "Answers that are a right one (`exact`) or hold one (`contained`), without regard to capitals, "
    "punctuation and articles.",
    "drawings": "Drawings whose wanted picture is the nearest of all wanted ones (`r1`), or one of the five nearest "
    "(`r5`), by the features of the model's vision tower.",
    "retrieval": "Pictures and captions that find each other by their features, as the first (`r1`) or among the "
    "first five (`r5`).",
    "right_words": "Wanted pictures that the model finds likelier after their own prompt than after another one "
    "(`likelier`, 0.5 by chance), and by how much (`gap`, nats for one code).",
    "judgements": "The mean score of a judge, from 0 to 1.",
}
"""What the figures of a data set mean."""

OF_DATASET = tuple(MEANINGS)

# Settings of a training that its card shows, as far as they are set.
SHOWN = (
    "train", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed", "loss_type", "beta",
    "use_peft", "lora_r", "lora_alpha", "load_in_8bit", "load_in_4bit", "dataset", "tasks", "prompt_dropout",
)  # fmt: skip

COUNTED = ("task", "judge", "origin")  # columns of a data set whose values its card counts


def model_card(
    template: str | PathLike,
    repo_id: str,
    results: str | PathLike,
    base_results: str | PathLike | None = None,
    base_model: str | list[str] | None = None,
    datasets: list[str] | None = None,
    task_types: Mapping[str, str] | None = None,
    metric_types: Mapping[str, str] | None = None,
    folder: str | PathLike | None = None,
    parts: Mapping[str, Mapping[str, str]] | None = None,
    trained: str | PathLike | None = None,
    samples: Sequence[str | PathLike] = (),
    **fields: Any,
) -> ModelCard:
    """Makes a card with all figures of `results`, in a table and in the metadata (`model-index`).

    Args:
        template: the Markdown file, such as one of `model_cards/`.
        repo_id: name of the model on the Hub.
        results: JSON that `examples/evaluate.py` wrote.
        base_results: the results of the model before training, for another column of the table.
        base_model: name on the Hub of the model that was fine-tuned, or of the models that it was built from. By
            default the parts that are on the Hub.
        datasets: names of the training data on the Hub.
        task_types: the Hub's task of each evaluation, such as `{"my_drawings": "text-to-image"}`; by default
            "any-to-any".
        metric_types: the Hub's metric of each figure, such as `{"my_drawings.exact": "accuracy"}`; by default its own
            name.
        folder: the saved model, for a list of its published parts; see [`find_parts`].
        parts: what [`find_parts`] cannot know, such as `{"decoder": {"licence": "mit"}}`.
        trained: `output_dir` of its training, for the number of steps and the settings.
        samples: pictures to show, such as the page of `examples/evaluate.py`. Push them with `beside`.
        fields: values for the other fields of the template, such as `language=["en"]`. Without `license`, it is that
            of the parts if they have one, and "apache-2.0" without `folder` and `parts`.

    Raises:
        ValueError: there are no results, a field of the template is missing, a field is given that it has not, nobody
            knows the name or the licence of a part, or `base_model` is a path.
    """
    _check_fields(template, fields)
    report = _read_report(results)
    before = _read_report(base_results) if base_results else None
    if folder is not None or parts:
        fields["parts"] = find_parts(folder, parts)
        fields["license"] = fields.get("license") or _find_common_licence(fields["parts"])
        names = [row["name"] for row in fields["parts"]]
        base_model = base_model or list(dict.fromkeys(name for name in names if name.count("/") == 1)) or None
    if trained is not None:
        fields["settings"] = describe_training(trained)
        fields.setdefault("training", "")
    for index, row in enumerate(fields.get("data", ())):
        if missing := [field for field in ("data", "what", "licence") if not row.get(field)]:
            raise ValueError(f"data[{index}] lacks {' and '.join(missing)}; got {dict(row)}. Give {missing[0]}.")
    for name in [base_model] if isinstance(base_model, str) else base_model or []:
        if _is_path(name):
            raise ValueError(f"base_model must be a name on the Hub such as me/dps; got the path {name}.")
    named = " and ".join(base_model) if isinstance(base_model, list) else base_model
    text = _render(
        template,
        **fields,
        **({"base_model": named} if named else {}),
        repo_id=repo_id,
        name=repo_id.rpartition("/")[2],
        parameters=f"{report['parameters'] / 1e6:.1f} million",
        command=_hide_paths(report["command"]),
        setting=", ".join(f"{name} {value}" for name, value in report["recipe"].items() if name != "weights"),
        table=_write_table(flatten_figures(report), flatten_figures(before) if before else None),
        samples=[Path(picture).name for picture in samples],
        meanings={task: text for task, text in MEANINGS.items() if task in report and "dataset" in report["recipe"]},
    )
    card = ModelCard(text)
    if base_model:
        card.data["base_model"] = base_model
    if datasets:
        card.data["datasets"] = datasets
    card.data["model_name"] = repo_id.rpartition("/")[2]
    card.data["eval_results"] = list_eval_results(report, task_types or {}, metric_types or {})
    return ModelCard(card.content)  # parses the metadata from the text, as the Hub does


def find_parts(
    folder: str | PathLike | None, given: Mapping[str, Mapping[str, str]] | None = None
) -> list[dict[str, str]]:
    """The published parts of a model: `part`, `name` and `licence` of each.

    The config of the model says where a part comes from. Its licence is read from the card in its folder or in the
    cache of the Hub; nothing is downloaded. A part that comes from nowhere, because it was trained with the model, is
    left out.

    Args:
        folder: the saved model. Without it, the parts are those in `given`.
        given: `name` and `licence` by part ("decoder", "vision tower", "image tokenizer"); they go before what is
            found.

    Raises:
        ValueError: there is no config, `given` names another part or field, or the name or the licence of a part is
            not known.
    """
    given = given or {}
    for part, fields in given.items():
        if part not in PARTS or not set(fields) <= {"name", "licence"}:
            raise ValueError(
                f"parts must be of {', '.join(PARTS)}, each with name and licence; got {part}: {dict(fields)}."
            )
    config = {}
    if folder is not None:
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"folder must be a saved model; {folder} has no config.json.")
        config = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for part, section in PARTS.items():
        source = (config.get(section) or {}).get("_name_or_path") or ""
        row = {"part": part, **_look_up(source), **given.get(part, {})}
        if not source and part not in given:
            continue
        if missing := [field for field in ("name", "licence") if not row.get(field)]:
            example = {part: {field: "..." for field in missing}}
            raise ValueError(
                f"parts lack the {' and the '.join(missing)} of the {part}{f' {source}' if source else ''}: there is "
                f"no card of it on this machine that says so. Give parts={example}."
            )
        rows.append(row)
    return rows


def _look_up(source: str) -> dict[str, str]:
    """The name of a part without folders of this machine, and its licence if a card here has it."""
    if not source:
        return {}
    if Path(source).is_dir():
        card: Any = Path(source) / "README.md"
        name = Path(source).resolve().name
    else:
        name = "" if _is_path(source) else source
        try:
            card = try_to_load_from_cache(source, "README.md")
        except HFValidationError:
            card = None
    found = {"name": name} if name else {}
    if isinstance(card, (str, Path)) and Path(card).is_file():
        licence = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
        found |= {"licence": str(licence)} if licence else {}
    return found


def _find_common_licence(parts: list[dict[str, str]]) -> str:
    licences = sorted({row["licence"] for row in parts})
    if len(licences) != 1:
        got = f"they have {', '.join(licences)}" if licences else "there are no published parts"
        raise ValueError(f"license must be given where the parts do not all have the same one; {got}.")
    return licences[0]


def describe_training(folder: str | PathLike) -> dict[str, str]:
    """The length and the settings of a finished training by name, without folders of this machine.

    Args:
        folder: `output_dir` of the training.

    Raises:
        ValueError: the folder has no `trainer_state.json`.
    """
    state = Path(folder) / "trainer_state.json"
    if not state.is_file():
        raise ValueError(f"trained must be the output_dir of a finished training; {folder} has no {state.name}.")
    reached = json.loads(state.read_text(encoding="utf-8"))
    described = {"steps": f"{reached['global_step']:,}"}
    if reached.get("epoch"):
        described["epochs"] = f"{reached['epoch']:.3g}"
    settings = Path(folder) / "settings.json"
    kept = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    for name in SHOWN:
        if kept.get(name) not in (None, "None", "", "{}", "False", "[]"):
            described[name] = _hide_paths(kept[name])
    return described


def _is_path(text: str) -> bool:
    return PurePath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith((".", "~"))


def _hide_paths(text: str) -> str:
    """A command or a setting in which absolute paths are cut down to their last name."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    for word in words:
        value = word.rpartition("=")[2].strip("{}[]'\",")
        if len(value) > 1 and (PurePath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
            last = PureWindowsPath(value).name if "\\" in value else PurePath(value).name
            text = text.replace(value, last)
    return text


def dataset_card(template: str | PathLike, repo_id: str, folder: str | PathLike, **fields: Any) -> DatasetCard:
    """Makes the card of a data set that `save_to_disk` wrote, with its splits, its columns and counts of its values.

    Raises:
        ValueError: a field of the template is missing, or it has no such field.
    """
    _check_fields(template, fields)
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


def flatten_figures(report: Mapping, prefix: str = "") -> dict[str, dict]:
    """Flattens nested results to `{"scenes_t2i.one_object": {"value": ..., "n": ..., "ci95": ...}}`."""
    found = {}
    for key, value in report.items():
        if isinstance(value, dict) and "value" in value:
            found[prefix + key] = value
        elif isinstance(value, dict):
            found |= flatten_figures(value, f"{prefix}{key}.")
    return found


def list_eval_results(
    report: Mapping, task_types: Mapping[str, str], metric_types: Mapping[str, str]
) -> list[EvalResult]:
    """Converts figures to results of `model-index`, with the number of items and the confidence interval of each.

    An evaluation named `reference` is left out, because it does not measure the model.
    """
    dataset, results = report["recipe"].get("dataset"), []
    known = {**(HELD_OUT if dataset else {}), **task_types}
    for name, figure in flatten_figures(report).items():
        task, _, metric = name.rpartition(".")
        if task == "reference":
            continue
        results.append(
            EvalResult(
                task_type=known.get(task, "any-to-any"),
                task_name=task,
                dataset_type=dataset if dataset and task in OF_DATASET else task,
                dataset_name=dataset if dataset and task in OF_DATASET else task,
                dataset_split="validation",
                metric_type=metric_types.get(name, metric),
                metric_name=name,
                metric_value=figure["value"],
                metric_args={key: figure[key] for key in ("n", "ci95") if key in figure},
            )
        )
    return results


def _read_report(path: str | PathLike) -> dict:
    if not Path(path).is_file():
        raise ValueError(f"results must be a file; there is none at {path}. Make it with examples/evaluate.py.")
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    if missing := [key for key in ("parameters", "recipe", "command") if key not in report]:
        raise ValueError(f"results {path} lack {', '.join(missing)}. Make them with examples/evaluate.py.")
    if not flatten_figures(report):
        raise ValueError(f"results {path} hold no figure. Run examples/evaluate.py with at least one task.")
    return report


def _write_table(after: Mapping[str, dict], before: Mapping[str, dict] | None) -> str:
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


def _check_fields(template: str | PathLike, fields: Mapping[str, Any]) -> None:
    """Refuses fields that no template in the folder has. A field of another template there is ignored."""
    path = Path(template)
    unknown = set(fields).difference(_find_fields(path), *map(_find_fields, path.parent.glob("*.md")))
    if unknown and path.is_file():
        raise ValueError(
            f"The card {path.name} has no field {', '.join(sorted(unknown))}; its fields are "
            f"{', '.join(sorted(_find_fields(path)))}. Correct the name, or leave it out."
        )


def _find_fields(template: Path) -> set[str]:
    """The fields of a template and of those that it extends."""
    try:
        tree = jinja2.Environment().parse(template.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, jinja2.TemplateSyntaxError):  # rendering tells, if it is the one that is rendered
        return set()
    names = filter(None, meta.find_referenced_templates(tree))
    return meta.find_undeclared_variables(tree).union(*(_find_fields(template.parent / name) for name in names)) - {
        "super", "self",
    }  # fmt: skip


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
