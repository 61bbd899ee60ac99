"""The data of a training: records of one's own, of tasks, or of both, and what is held out of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from dps_hf.data.codes import encode_ahead
from dps_hf.data.dropouts import Dropouts, Records
from dps_hf.data.features import compute_features_ahead
from dps_hf.data.guidance import read_schedules
from dps_hf.data.mixture import Mixture, name_of
from dps_hf.data.record import Record
from dps_hf.data.sources import LazyRecords, make_lazy_dataset, read_records, split_off
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.training.checks import RecordCheck


SKIPPED = "skipped.jsonl"  # in the output folder, the bad rows
SHUFFLED_AT_A_TIME = 256  # streamed records, with their pictures in memory
USUAL_SHARE = 0.05  # of a data set, held out where the recipe evaluates and does not say on what


@dataclass
class DataArguments:
    """
    dataset: your data, as `dps_hf/data/rows.py` describes it: a name on the Hub, a file, a folder, the dotted path
        of a function, a mapping with more fields, or a list of these.
    tasks: task to weight. A task is the dotted path of a function, such as `my_package.my_task`.
    dataset_weight: if there are also `tasks`, the weight of `dataset` beside theirs.
    guidance: name of a task to `start` and `end`, the shares of the levels of guidance when training begins and ends.
        With `start` alone they do not change. By default 2 of 3 examples have worked steps.
    num_records: number of different records of the tasks. They repeat, but their guidance may change. By default none
        repeats.
    evaluation_dataset: as `dataset`, for evaluation.
    evaluation_share: share of `dataset` that is held out for evaluation, without an `evaluation_dataset`. By default
        0.05 if the recipe evaluates.
    evaluation_records: number of records of each task for evaluation, from its validation split.
    max_skipped: the share of bad rows above which the training stops. They are listed in `output_dir/skipped.jsonl`.
        Each process judges the rows that it has read; if one stops, the launcher stops the others.
    encode_drawings: `ahead` encodes the drawings of `dataset` once, before training, and keeps their codes in the
        cache of `datasets`; `live` encodes them in each batch, as drawings of tasks always are.
    vision_features: `ahead` runs a frozen vision tower over the pictures of `dataset` once, before training, and keeps
        what it makes of them in the cache of `datasets`; `live` runs it in each step.
    prompt_dropout: share of the drawings that are learned without their prompt, for classifier-free guidance.
    samples: how many held-out records are drawn and described on the page `output_dir/samples` at each evaluation.
    """

    dataset: str | None = None  # a command line has strings only; a recipe may have mappings and lists
    tasks: dict = field(default_factory=dict)
    dataset_weight: float = 1.0
    guidance: dict = field(default_factory=dict)
    num_records: int | None = None
    evaluation_dataset: str | None = None
    evaluation_share: float | None = None
    evaluation_records: int = 64
    max_skipped: float = 0.1
    encode_drawings: str = "ahead"
    vision_features: str = "live"
    prompt_dropout: float = 0.1
    samples: int = 0

    def __post_init__(self):
        if self.encode_drawings not in ("ahead", "live"):
            raise ValueError(f"encode_drawings must be 'ahead' or 'live'; got {self.encode_drawings!r}.")
        if self.vision_features not in ("ahead", "live"):
            raise ValueError(f"vision_features must be 'ahead' or 'live'; got {self.vision_features!r}.")
        if self.vision_features == "ahead" and self.tasks:
            raise ValueError(
                "vision_features: ahead needs pictures that repeat; those of tasks do not. Set it to live."
            )
        if not self.dataset_weight > 0:
            raise ValueError(f"dataset_weight must be above 0; got {self.dataset_weight}.")


def make_training_data(
    data: DataArguments,
    training: TrainingArguments,
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    block: int = 1,
    code_dropout: float = 0.0,
) -> tuple[Records | IterableDataset, dict[str, Records | IterableDataset]]:
    """The records of a training, with dropouts, and by name those that are held out, if `training` evaluates.

    Records of tasks come in the order in which they are to be learned: then `train_sampling_strategy` is set to
    "sequential".

    Args:
        block: how many consecutive records are of the same task.
        code_dropout: see [`~dps_hf.data.dropouts.Dropouts`].

    Raises:
        ValueError: there is neither a data set nor a task; `max_steps` is missing where the data have no end; or a
            data set that is streamed has tasks beside it or nothing to evaluate on.
    """
    evaluates = training.eval_strategy != "no"
    if not (data.dataset or data.tasks):
        raise ValueError("dataset or tasks must be given; got neither. Name your data: dataset: my_folder.")
    records: Any = None
    held_out: dict[str, Any] = {}
    if data.dataset:
        skipped = Path(training.output_dir) / SKIPPED
        check = RecordCheck(model, processor)
        records = read_records(data.dataset, training.seed, skipped, data.max_skipped, check)
        if isinstance(records, IterableDataset) and (data.tasks or training.max_steps < 1):
            raise ValueError(
                f"A data set that is streamed needs max_steps, and no tasks beside it; got max_steps "
                f"{training.max_steps} and tasks {', '.join(data.tasks) or 'none'}. Or set streaming to false."
            )
        if isinstance(records, IterableDataset):
            records = records.shuffle(training.seed, buffer_size=SHUFFLED_AT_A_TIME)
        if evaluates and data.evaluation_dataset:
            given = read_records(data.evaluation_dataset, training.seed, skipped, data.max_skipped, check)
            held_out = _by_source(given)
        elif data.evaluation_share is not None or (evaluates and not data.tasks):
            share = USUAL_SHARE if data.evaluation_share is None else data.evaluation_share
            # Without evaluation, too: the rows are then held out for evaluate.py.
            records, others = split_off(records, share, training.seed)
            held_out = _by_source(others) if evaluates else {}
    if data.encode_drawings == "ahead":
        records, held_out = (_encode(some, model, processor) for some in (records, held_out))
    if data.vision_features == "ahead":
        if isinstance(records, IterableDataset):
            raise ValueError("vision_features: ahead needs a data set that is not streamed. Set it to live.")
        records = compute_features_ahead(records, model, processor)
    if data.tasks:
        if training.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, since tasks have no end; got {training.max_steps}.")
        length = training.max_steps * training.train_batch_size
        length *= training.gradient_accumulation_steps * training.world_size
        guidance = read_schedules(data.guidance)
        mixture = Mixture(data.tasks, training.seed, length, "train", block, guidance, num_records=data.num_records)
        records = mixture if records is None else _Beside(mixture, records, data.dataset_weight)
        training.train_sampling_strategy = "sequential"  # the mixture is random already
        if evaluates:
            held_out |= {
                name_of(task): Mixture({task: 1}, length=data.evaluation_records, split="validation")
                for task in data.tasks
            }
    if isinstance(records, IterableDataset):
        # Otherwise accelerate cuts batches by rows, and a batch has fewer pictures than rows.
        training.accelerator_config.dispatch_batches = False
        return records.map(_DropOne(training.seed, data.prompt_dropout, code_dropout), with_indices=True), held_out
    return Dropouts(records, training.seed, data.prompt_dropout, code_dropout), held_out


def make_evaluation_data(
    data: DataArguments, training: TrainingArguments, held_out: Mapping[str, Records | IterableDataset]
) -> Dataset | IterableDataset | dict[str, Any] | None:
    """The `eval_dataset` of a trainer: `None`, one data set, whose loss is `eval_loss`, or several by name.

    Raises:
        ValueError: several sets are evaluated, and `metric_for_best_model` is the loss of none.
    """
    sets = {name: as_dataset(records) for name, records in held_out.items()}
    if len(sets) == 1 and not data.tasks:
        return next(iter(sets.values()))
    figures, best = [f"eval_{name}_loss" for name in sets], training.metric_for_best_model or "loss"
    if sets and training.load_best_model_at_end and f"eval_{best.removeprefix('eval_')}" not in figures:
        raise ValueError(
            f"metric_for_best_model must be one of {', '.join(figures)}, the losses of what is evaluated; got {best}."
        )
    return sets or None


def as_dataset(records: Records | IterableDataset) -> Dataset | IterableDataset:
    """Records as trl takes them."""
    return records if isinstance(records, IterableDataset) else make_lazy_dataset(records)


class _Beside:
    """The records of a mixture of tasks, in which some blocks come from a data set, each record once in an epoch."""

    def __init__(self, mixture: Mixture, records: Records, weight: float):
        self.mixture, self.records = mixture, records
        self.share = weight / (weight + sum(mixture.weights.values()))
        self.shuffled: tuple[int, np.ndarray] | None = None  # the last epoch's order

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Record:
        # A third number in the seed, because this draw must be independent of those that make the records.
        if np.random.default_rng([self.mixture.seed, index // self.mixture.block, 0xB51D]).random() >= self.share:
            return self.mixture[index]
        epoch, place = divmod(index, len(self.records))
        if self.shuffled is None or self.shuffled[0] != epoch:
            rng = np.random.default_rng([self.mixture.seed, epoch, 0x0DE2])
            self.shuffled = epoch, rng.permutation(len(self.records))
        return self.records[int(self.shuffled[1][place])]


@dataclass
class _DropOne:
    """[`Dropouts`] of a record that is streamed."""

    seed: int
    prompt_dropout: float
    code_dropout: float

    def __call__(self, record: Any, index: int) -> Any:
        one: Any = {index: record}
        return Dropouts(one, self.seed, self.prompt_dropout, self.code_dropout)[index]


def _encode(records: Any, model: DPSForConditionalGeneration, processor: DPSProcessor) -> Any:
    """Encodes the drawings of records, or of each set of them, ahead; streamed ones, and sets without any, stay."""
    if isinstance(records, dict):
        return {name: _encode(some, model, processor) for name, some in records.items()}
    return (
        encode_ahead(records, model, processor) if isinstance(records, LazyRecords) and records.may_draw else records
    )


def _by_source(records: LazyRecords | IterableDataset) -> dict[str, Any]:
    """The records of each data set, by its name; streamed ones together."""
    if isinstance(records, IterableDataset):
        return {"dataset": records}
    named: dict[str, LazyRecords] = {}
    for number in np.unique(records.table[:, 0]):
        name = Path(records.sources[number].setting.title).stem.replace(" ", "_")
        name = name if name not in named else f"{name}_{number}"
        rows = records.table[records.table[:, 0] == number]
        named[name] = LazyRecords(records.sources, rows, records.skips)
    return named
