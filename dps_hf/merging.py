"""Loads an adapter onto its model, with the tokens that were added for it, and merges it.

adapted, processor = load_adapter(model, processor, "runs/nano_sft")
merged = merge(adapted)
"""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from dps_hf.components import find_new_tokens, mark_trained
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


def read_adapter_config(adapter: str | Path) -> PeftConfig:
    """The config of an adapter.

    Raises:
        ValueError: there is no adapter.
    """
    try:
        return PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        raise ValueError(
            f"adapter must be the folder or the Hub name of an adapter; {str(adapter)!r} has no adapter_config.json. "
            "Give the output_dir of a training with use_peft."
        ) from error


def load_adapter(
    model: DPSForConditionalGeneration, processor: DPSProcessor, adapter: str | Path
) -> tuple[PeftModel, DPSProcessor]:
    """The model with an adapter on it, and the processor that the adapter was trained with.

    That is the processor in the adapter's folder, or else `processor` with the folder's tokenizer, or else `processor`
    itself. The embeddings are resized to the number of tokens of the adapter and its tokenizer.

    Args:
        model: the adapter's base, not quantised.
        processor: that of the base.
        adapter: a folder, or a repository on the Hub.

    Raises:
        ValueError: there is no adapter, it does not fit the model, or it has tokens that the tokenizer lacks or the
            other way round.
    """
    adapter, config = str(adapter), read_adapter_config(adapter)
    if not _fits(model, adapter):
        raise ValueError(
            f"The adapter {adapter} does not fit the model {model.config.name_or_path}: its weights have other sizes. "
            f"It was trained on {config.base_model_name_or_path}; take that one."
        )
    processor = _load_own_processor(adapter) or _replace_tokenizer(processor, adapter) or processor
    named = max(processor.tokenizer.get_vocab().values()) + 1
    rows, base_rows = _count_rows(model, adapter), model.config.vocab_size
    remedy = f"Save the tokenizer that it was trained with beside it: processor.save_pretrained({adapter!r})."
    trained = max(_find_trained_tokens(config), default=-1)
    if trained >= named:
        raise ValueError(
            f"trainable_token_indices of the adapter {adapter} go up to {trained}, and its tokenizer has {named} "
            f"tokens. {remedy}"
        )
    if rows is not None and rows < named:
        raise ValueError(
            f"The embeddings of the adapter {adapter} have {rows} rows, and its tokenizer has {named} tokens. {remedy}"
        )
    if rows is not None and rows > max(base_rows, named) and not _has(adapter, "tokenizer_config.json"):
        raise ValueError(
            f"The embeddings of the adapter {adapter} have {rows} rows, and no tokenizer names more than {named} "
            f"tokens. {remedy}"
        )
    rows = rows or max(base_rows, named)
    if rows != base_rows:
        with torch.random.fork_rng(devices=[]):  # rows that the adapter does not hold are the same each time
            torch.manual_seed(0)
            model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, adapter), processor


def merge(adapted: PeftModel) -> DPSForConditionalGeneration:
    """The model with its adapter merged. It answers as the model with the adapter did.

    If embeddings and head share one table, they still do afterwards, unless the adapter changed only one of them. Then
    the model has two tables, and `config.tie_word_embeddings` is false.
    """
    model, tables = adapted.get_base_model(), set()
    trained = _find_trained_parts(adapted.active_peft_config, model)
    tied, model.config.tie_word_embeddings = model.config.tie_word_embeddings, False
    # Trained as one table, the two differ by rounding once they are merged.
    as_one = getattr(adapted.active_peft_config, "ensure_weight_tying", False)
    for module in model.modules():  # otherwise a change merged into one table would change the other
        if isinstance(module, (nn.Embedding, nn.Linear)):
            if module.weight in tables:
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=module.weight.requires_grad)
            tables.add(module.weight)
    merged = adapted.merge_and_unload()
    embeddings, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and (as_one or torch.equal(embeddings.weight, head.weight)):
        head.weight, merged.config.tie_word_embeddings = embeddings.weight, True
    mark_trained(merged.config, trained)
    return merged


def _has(adapter: str, name: str) -> bool:
    return cached_file(adapter, name, _raise_exceptions_for_missing_entries=False) is not None


def _load_own_processor(adapter: str) -> DPSProcessor | None:
    return DPSProcessor.from_pretrained(adapter) if _has(adapter, "processor_config.json") else None


def _replace_tokenizer(processor: DPSProcessor, adapter: str) -> DPSProcessor | None:
    if not _has(adapter, "tokenizer_config.json"):
        return None
    return DPSProcessor(
        processor.image_processor,
        AutoTokenizer.from_pretrained(adapter),
        chat_template=processor.chat_template,
        num_image_tokens=processor.num_image_tokens,
        grid_size=processor.grid_size,
        num_codes=processor.num_codes,
    )


def _find_trained_parts(config: PeftConfig, model: DPSForConditionalGeneration) -> set[str]:
    """The parts of a new model that an adapter trained whole."""
    saved = {name.rpartition(".")[2] for name in getattr(config, "modules_to_save", None) or ()}
    embeddings = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    whole = embeddings.rpartition(".")[2] in saved or _find_trained_tokens(config) >= {*find_new_tokens(model.config)}
    return ({"connector"} & saved) | ({"new_tokens"} if whole else set())


def _find_trained_tokens(config: PeftConfig) -> set[int]:
    """The ids of the tokens whose embeddings an adapter trained individually."""
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return {index for one in lists for index in one}


def _fits(model: DPSForConditionalGeneration, adapter: str) -> bool:
    """Whether the model has all layers of an adapter, in its sizes. The tables of tokens may be resized later."""
    modules = dict(model.named_modules())
    resized = (model.get_input_embeddings(), model.get_output_embeddings())
    for key, weight in load_peft_weights(adapter, device="cpu").items():
        name, found, kind = key.removeprefix("base_model.model.").partition(".lora_")
        module = modules.get(name)
        if not found or module in resized:
            continue
        if module is None:
            return False
        sides = {"A.weight": (1, "in_features"), "B.weight": (0, "out_features")}
        side, size = sides.get(kind, (0, ""))
        if size and weight.shape[side] != getattr(module, size, weight.shape[side]):
            return False
    return True


def _count_rows(model: DPSForConditionalGeneration, adapter: str) -> int | None:
    """The number of rows of the embeddings, or of the head, in an adapter's training, if its weights tell."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in modules]
    for key, weight in load_peft_weights(adapter, device="cpu").items():
        name = next((name for name in names if f".{name}." in key), None)
        kind = key.rpartition(f".{name}.")[2]
        if name and kind == "lora_embedding_A":
            return weight.shape[1]
        if name and (kind == "lora_B.weight" or (kind.endswith("weight") and "lora_" not in kind)):
            return weight.shape[0]
    return None
