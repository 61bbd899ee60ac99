"""The data of an alignment: pairs of answers or labelled answers, and what is held out of them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, Features, IterableDataset, Value
from transformers import TrainingArguments
from trl import extract_prompt, unpair_preference_dataset

from dps_hf.data.preferences import ORIGIN, OpenPairs, read_preferences
from dps_hf.data.sources import say
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
        wanted: "chosen" for pairs of answers, "label" for labelled ones. Pairs become labelled answers if these are
            wanted, see [`unpair`].

    Raises:
        FileNotFoundError, ValueError: as for [`~dps_hf.data.preferences.read_preferences`]; or preferences are
            streamed, and `max_steps` or an evaluation set is missing, or `precompute_ref_log_probs` is set; or they
            are not of the kind that is wanted.
    """
    pairs = _read(data.dataset, data, training, model, processor, wanted)
    columns = pairs.column_names or [*next(iter(pairs))]
    if wanted not in columns:
        raise ValueError(
            f"dataset must hold pairs; {data.dataset} holds labelled answers. Train with examples/kto.py."
        )
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
        return pairs, _read(data.evaluation_dataset, data, training, model, processor, wanted)
    if isinstance(pairs, IterableDataset):
        raise ValueError("evaluation_share needs a data set that is not streamed. Give an evaluation_dataset.")
    # Pairs of one prompt are neighbours. Without shuffling they stay on one side, and so do both answers of a pair.
    held_out = math.ceil(data.evaluation_share * len(pairs))
    held_out += held_out % 2 if wanted == "label" and len(pairs) > held_out + 1 else 0
    split = pairs.train_test_split(held_out, shuffle=False)
    return split["train"], split["test"]


def _read(
    dataset: str,
    data: PreferenceArguments,
    training: TrainingArguments,
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    wanted: str,
) -> Dataset | IterableDataset:
    skipped, check = Path(training.output_dir) / SKIPPED, RecordCheck(model, processor)
    with training.main_process_first():
        pairs = read_preferences(dataset, training.seed, skipped, data.max_skipped, check)
    pairs = write_drawings(pairs, model, processor, skipped=skipped, max_skipped=data.max_skipped)
    if wanted == "label":
        with training.main_process_first():
            pairs = unpair(pairs)
    if isinstance(pairs, IterableDataset):
        pairs = pairs.shuffle(training.seed, buffer_size=SHUFFLED_AT_A_TIME)
    return pairs


def unpair(preferences: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Makes two labelled answers of each pair, the good one first. Answers that are labelled already stay as they are.

    trl does so itself, but not if prompts have pictures. Pictures stay unopened until a row is requested.
    """
    columns = preferences.column_names or [*next(iter(preferences), {})]
    if "chosen" not in columns:
        return preferences
    say("dataset holds pairs: each becomes a good and a bad answer.")
    if "prompt" not in columns:
        preferences = preferences.map(extract_prompt)
    if isinstance(preferences, IterableDataset):
        return unpair_preference_dataset(preferences, batch_size=1)
    opener = preferences.format["format_kwargs"].get("transform")
    rows = opener.rows if isinstance(opener, OpenPairs) else preferences
    features = rows.features.copy()
    features |= {"completion": features.pop("chosen"), "label": Value("bool")}
    del features["rejected"]
    # By one, because the function puts the good answers of a batch before the bad ones.
    answers = unpair_preference_dataset(rows, batch_size=1, features=Features(features), desc="Unpairing")
    if not isinstance(opener, OpenPairs):
        return answers
    return answers.remove_columns([*ORIGIN]).with_transform(replace(opener, rows=answers))
