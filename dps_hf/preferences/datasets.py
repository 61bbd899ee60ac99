"""The data of an alignment: pairs of answers or labelled answers, and what is held out of them."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from dps_hf.data.preferences import read_preferences
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.preferences.drawings import write_drawings
from dps_hf.training.checks import RecordCheck
from dps_hf.training.datasets import SHUFFLED_AT_A_TIME, SKIPPED


@dataclass
class PreferenceArguments:
    """
    dataset: a name on the Hub, a file, a folder, or the dotted path of a function; or a mapping or a list of them, as
        described in `dps_hf/data/rows.py`. Usual columns are `prompt`, `chosen`, `rejected` or `prompt`, `completion`,
        `label`, and `images` if prompts have pictures. Rows that cannot be used are listed in `skipped.jsonl` in
        `output_dir`.
    max_skipped: the share of such rows above which the script stops. Each process judges the rows that it has read.
    evaluation_dataset: as `dataset`, for evaluation.
    evaluation_share: share of `dataset` that is held out if the recipe evaluates and has no `evaluation_dataset`.
    """

    dataset: str  # a recipe may give a mapping or a list
    max_skipped: float = 0.1
    evaluation_dataset: str | None = None
    evaluation_share: float = 0.05

    def __post_init__(self):
        if not 0 < self.evaluation_share < 1:
            raise ValueError(f"evaluation_share must be between 0 and 1; got {self.evaluation_share}.")


def make_preference_data(
    data: PreferenceArguments,
    training: TrainingArguments,
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    wanted: str,
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """The preferences of a training as trl takes them, and those that are held out, if `training` evaluates.

    Args:
        wanted: "chosen" for pairs of answers, "label" for labelled ones.

    Raises:
        FileNotFoundError, ValueError: as for [`~dps_hf.data.preferences.read_preferences`]; or preferences are
            streamed, and `max_steps` or an evaluation set is missing, or `precompute_ref_log_probs` is set; or they
            are not of the kind that is wanted.
    """
    pairs = _read(data.dataset, data, training, model, processor)
    columns = pairs.column_names or [*next(iter(pairs))]
    if wanted not in columns:
        kinds = [("pairs", "dpo"), ("labelled answers", "kto")]
        (need, _), (got, script) = kinds if wanted == "chosen" else kinds[::-1]
        raise ValueError(f"dataset must hold {need}; {data.dataset} holds {got}. Train with examples/{script}.py.")
    if isinstance(pairs, IterableDataset) and training.max_steps < 1:
        raise ValueError(
            f"A data set that is streamed needs max_steps; got {training.max_steps}. Or set streaming to false."
        )
    if isinstance(pairs, IterableDataset) and getattr(training, "precompute_ref_log_probs", False):
        raise ValueError(
            "precompute_ref_log_probs needs a data set that is not streamed. Set one of the two to false."
        )
    if training.eval_strategy == "no":
        return pairs, None
    if data.evaluation_dataset:
        return pairs, _read(data.evaluation_dataset, data, training, model, processor)
    if isinstance(pairs, IterableDataset):
        raise ValueError("evaluation_share needs a data set that is not streamed. Give an evaluation_dataset.")
    # Pairs of one prompt are neighbours. Without shuffling they stay on one side.
    split = pairs.train_test_split(data.evaluation_share, shuffle=False)
    return split["train"], split["test"]


def _read(
    dataset: str,
    data: PreferenceArguments,
    training: TrainingArguments,
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
) -> Dataset | IterableDataset:
    skipped, check = Path(training.output_dir) / SKIPPED, RecordCheck(model, processor)
    with training.main_process_first():
        pairs = read_preferences(dataset, training.seed, skipped, data.max_skipped, check)
    if isinstance(pairs, IterableDataset):
        pairs = pairs.shuffle(training.seed, buffer_size=SHUFFLED_AT_A_TIME)
    return write_drawings(pairs, model, processor, skipped=skipped, max_skipped=data.max_skipped)
