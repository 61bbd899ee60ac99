"""Puts an adapter back on its model, with the tokens that were added for it, and merges it in.

adapted, processor = load_adapter(model, processor, "runs/nano_sft")
merged = merge(adapted)
"""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


def load_adapter(
    model: DPSForConditionalGeneration, processor: DPSProcessor, adapter: str | Path
) -> tuple[PeftModel, DPSProcessor]:
    """The model with an adapter on it, and the processor the adapter was trained with.

    That is the one in the adapter's folder, or `processor` with the folder's tokenizer, or `processor` where it holds
    neither. The embeddings are resized first to what the adapter and its tokenizer have.

    Args:
        model: the adapter's base, not quantised.
        processor: that of the base.
        adapter: a folder, or a repository on the Hub.

    Raises:
        ValueError: the adapter has tokens which the tokenizer does not name, or the tokenizer tokens which it has not.
    """
    adapter = str(adapter)
    processor = _own_processor(adapter) or _with_own_tokenizer(processor, adapter) or processor
    named = max(processor.tokenizer.get_vocab().values()) + 1
    rows, base_rows = _table_rows(model, adapter), model.config.vocab_size
    remedy = f"Save the tokenizer that it was trained with beside it: processor.save_pretrained({adapter!r})."
    trained = max(_trained_tokens(adapter), default=-1)
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
        with torch.random.fork_rng(devices=[]):  # rows that the adapter does not hold come out the same each time
            torch.manual_seed(0)
            model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, adapter), processor


def merge(adapted: PeftModel) -> DPSForConditionalGeneration:
    """The model with its adapter merged in; it answers as the two did.

    Embeddings and head that share one table still do afterwards, unless the adapter changed one of them alone: then
    the model has two tables, and `config.tie_word_embeddings` is false.
    """
    model, tables = adapted.get_base_model(), set()
    tied, model.config.tie_word_embeddings = model.config.tie_word_embeddings, False
    # What was trained as one differs by rounding once it is merged.
    as_one = getattr(adapted.active_peft_config, "ensure_weight_tying", False)
    for module in model.modules():  # or what is merged into one of the two would be in the other, too
        if isinstance(module, (nn.Embedding, nn.Linear)):
            if module.weight in tables:
                module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=module.weight.requires_grad)
            tables.add(module.weight)
    merged = adapted.merge_and_unload()
    embeddings, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and (as_one or torch.equal(embeddings.weight, head.weight)):
        head.weight, merged.config.tie_word_embeddings = embeddings.weight, True
    return merged


def _has(adapter: str, name: str) -> bool:
    return cached_file(adapter, name, _raise_exceptions_for_missing_entries=False) is not None


def _own_processor(adapter: str) -> DPSProcessor | None:
    return DPSProcessor.from_pretrained(adapter) if _has(adapter, "processor_config.json") else None


def _with_own_tokenizer(processor: DPSProcessor, adapter: str) -> DPSProcessor | None:
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


def _trained_tokens(adapter: str) -> set[int]:
    """The ids whose embeddings an adapter holds one by one."""
    config = PeftConfig.from_pretrained(adapter)
    indices = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return {index for one in lists for index in one}


def _table_rows(model: DPSForConditionalGeneration, adapter: str) -> int | None:
    """Rows of the embeddings, or of the head, that an adapter was trained on, where its weights tell."""
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
