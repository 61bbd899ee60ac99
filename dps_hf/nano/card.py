"""The card of dps-nano."""

import json
from os import PathLike
from pathlib import Path

from huggingface_hub import ModelCard

from dps_hf.hub.cards import flatten_figures, model_card


# The Hub's names: a task by a word in the name of its evaluation, a metric by the name of its figure.
TASK_TYPES = {
    "t2i": "text-to-image",
    "i2t": "image-to-text",
    "edit": "image-to-image",
    "cot": "visual-question-answering",
}
METRIC_TYPES = {
    "psnr_db": "psnr",
    "right": "loss",
    "shuffled": "loss",
    "gap": "loss",
    "image_r1": "recall",
    "text_r1": "recall",
}


def nano_card(template: str | PathLike, results: str | PathLike) -> ModelCard:
    """The card of dps-nano. Most of its figures are shares of right answers, "accuracy" on the Hub."""
    names = flatten_figures(json.loads(Path(results).read_text(encoding="utf-8")))
    tasks = {name.rpartition(".")[0] for name in names}
    return model_card(
        template,
        "dps_hf/checkpoints/dps-nano",
        results,
        prompt="a big red circle",
        task_types={task: kind for task in tasks for word, kind in TASK_TYPES.items() if word in task.split("_")},
        metric_types={name: METRIC_TYPES.get(name.rpartition(".")[2], "accuracy") for name in names},
    )
