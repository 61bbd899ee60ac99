"""Adapters with tokens of their own: what is merged answers as adapter and base did."""

import pytest
import torch
from peft import TrainableTokensConfig
from trl import ModelConfig

from dps_hf.merging import load_adapter
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


NEW = [281, 282]  # behind the codes, which end the base's vocabulary
TIED, UNTIED = True, False
# What an adapter trains, and whether embeddings and head are one table afterwards, if the base's are.
ADAPTERS = {
    "LoRA": ({}, TIED),
    "LoRA on embeddings that were padded": ({"rows": 320}, TIED),
    "new tokens": ({"trainable_token_indices": NEW}, TIED),
    "new tokens by layer": ({"trainable_token_indices": {"embed_tokens": NEW}}, TIED),
    "new tokens of padded embeddings": ({"trainable_token_indices": NEW, "rows": 320}, TIED),
    "new tokens and nothing else": (
        {"config": TrainableTokensConfig(token_indices=NEW, target_modules=["embed_tokens"])},
        TIED,
    ),
    "old tokens": ({"trainable_token_indices": [3, 70], "tokens": ()}, TIED),
    "embeddings": ({"modules_to_save": ["embed_tokens"]}, UNTIED),
    "embeddings without new tokens": ({"modules_to_save": ["embed_tokens"], "tokens": ()}, UNTIED),
    "the head": ({"modules_to_save": ["lm_head"]}, UNTIED),
    "embeddings and head": ({"modules_to_save": ["embed_tokens", "lm_head"]}, UNTIED),
    "embeddings and head as one": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, TIED),
    "LoRA on the embeddings": ({"target_modules": ["embed_tokens"], "tokens": ()}, UNTIED),
    "LoRA on the head": ({"target_modules": ["lm_head"]}, UNTIED),
    "LoRA on both as one": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, TIED),
}


@pytest.fixture(scope="module")
def untied_model(make_model, make_config, tiny_processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("untied")
    make_model(make_config(tie_word_embeddings=False)).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def merged(example, tmp_path):
    """Merges the adapter in `tmp_path / "adapter"` with the script, and loads what that wrote."""

    def run(**fields) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
        script, output = example("merge_adapter.py"), str(tmp_path / "merged")
        script.main(script.ScriptArguments(str(tmp_path / "adapter"), output), ModelConfig(**fields))
        return DPSForConditionalGeneration.from_pretrained(output), DPSProcessor.from_pretrained(output)

    return run


@torch.no_grad()
def assert_answers_alike(model, expected, ids) -> None:
    torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("base", ["saved_model", "untied_model"])
def test_a_merged_model_answers_as_its_adapter_did(kind, base, request, save_adapter, merged, tmp_path):
    fields, tied = ADAPTERS[kind]
    adapted, ids = save_adapter(request.getfixturevalue(base), tmp_path / "adapter", **fields)
    model, processor = merged()
    assert_answers_alike(model, adapted, ids)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = tied and base == "saved_model"
    assert (head is embeddings) == model.config.tie_word_embeddings == tied
    assert len(embeddings) == len(head) == model.config.vocab_size == fields.get("rows", len(processor.tokenizer))
    assert model.config.image_code_start_id == processor.first_code_id == 265
    if "tokens" not in fields:
        assert processor.tokenizer.convert_tokens_to_ids(["<cat>", "<dog>"]) == NEW


def test_the_tokenizer_alone_is_enough_beside_an_adapter(saved_model, save_adapter, merged, tmp_path):
    adapted, ids = save_adapter(saved_model, tmp_path / "adapter", beside="tokenizer", trainable_token_indices=NEW)
    model, processor = merged()
    assert_answers_alike(model, adapted, ids)
    assert processor.tokenizer.convert_tokens_to_ids("<dog>") == 282
    base = DPSProcessor.from_pretrained(saved_model)
    assert processor.chat_template == base.chat_template and processor.grid_size == base.grid_size


def test_an_adapter_on_quantised_weights_keeps_its_tokens(saved_model, save_adapter, merged, tmp_path):
    adapted, _ = save_adapter(saved_model, tmp_path / "adapter", trainable_token_indices=NEW)
    model, _ = merged(load_in_8bit=True)
    with torch.no_grad():
        torch.testing.assert_close(
            model.get_input_embeddings().weight, adapted.get_input_embeddings()(torch.arange(283))
        )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_vocabulary_that_was_cut_is_cut_again(
    make_model, make_config, make_text_config, tiny_processor, save_adapter, merged, tmp_path
):
    config = make_config(text_config=make_text_config(vocab_size=300), image_code_start_id=265)
    make_model(config).save_pretrained(tmp_path / "padded")
    tiny_processor.save_pretrained(tmp_path / "padded")
    adapted, ids = save_adapter(tmp_path / "padded", tmp_path / "adapter", tokens=(), beside=None)
    model, _ = merged()
    assert model.config.vocab_size == 281
    assert_answers_alike(model, adapted, ids)


@pytest.mark.parametrize("tokens, expected", [(("<cat>",), 300), (tuple(f"<{i}>" for i in range(20)), 301)])
def test_tokens_that_only_the_tokenizer_has_get_rows_where_there_are_none(
    tokens, expected, make_model, make_config, make_text_config, tiny_processor, save_adapter, merged, tmp_path
):  # fmt: skip
    config = make_config(text_config=make_text_config(vocab_size=300), image_code_start_id=265)
    make_model(config).save_pretrained(tmp_path / "padded")
    tiny_processor.save_pretrained(tmp_path / "padded")
    adapted, _ = save_adapter(tmp_path / "padded", tmp_path / "adapter", tokens=(), rows=300, beside=None)
    tokenizer = tiny_processor.tokenizer.__class__.from_pretrained(tmp_path / "padded")
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(tmp_path / "adapter")
    model, processor = merged()
    assert model.config.vocab_size == expected and len(processor.tokenizer) == 281 + len(tokens)
    with torch.no_grad():
        ids = torch.arange(281)[None]
        torch.testing.assert_close(
            model(input_ids=ids).logits[..., :281], adapted(input_ids=ids).logits[..., :281], rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("fields, message", [
    ({"trainable_token_indices": NEW}, "trainable_token_indices of the adapter .* go up to 282.*has 281 tokens"),
    ({"modules_to_save": ["embed_tokens"]}, "embeddings of the adapter .* have 283 rows.*281 tokens"),
    ({}, "embeddings of the adapter .* have 283 rows.*281 tokens"),
])  # fmt: skip
def test_tokens_that_no_tokenizer_names_are_refused(fields, message, saved_model, save_adapter, merged, tmp_path):
    save_adapter(saved_model, tmp_path / "adapter", beside=None, **fields)
    with pytest.raises(ValueError, match=rf"{message}.*Save the tokenizer"):
        merged()
    assert not (tmp_path / "merged").exists()


def test_a_tokenizer_with_more_tokens_than_the_adapter_is_refused(saved_model, save_adapter, merged, tmp_path):
    save_adapter(saved_model, tmp_path / "adapter", trainable_token_indices=NEW)
    tokenizer = DPSProcessor.from_pretrained(tmp_path / "adapter").tokenizer
    tokenizer.add_tokens(["<cow>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"have 283 rows, and its tokenizer has 284 tokens.*Save the tokenizer"):
        merged()


def test_a_folder_without_an_adapter_is_named(merged, tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ValueError, match=r"adapter must be .*adapter' has no adapter_config.json. Give"):
        merged()


def test_an_adapter_of_another_model_is_named_with_its_own(
    make_model, make_config, make_text_config, tiny_processor, saved_model, save_adapter, merged, tmp_path
):
    make_model(make_config(text_config=make_text_config(intermediate_size=40))).save_pretrained(tmp_path / "other")
    tiny_processor.save_pretrained(tmp_path / "other")
    save_adapter(saved_model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=rf"does not fit the model .*other: .* It was trained on {saved_model}"):
        merged(model_name_or_path=str(tmp_path / "other"))


def test_an_adapter_of_a_larger_model_is_refused_before_the_embeddings_are_resized(
    make_model, make_config, make_text_config, tiny_processor, saved_model, save_adapter, tmp_path
):
    save_adapter(saved_model, tmp_path / "adapter")
    model = make_model(make_config(text_config=make_text_config(num_hidden_layers=1)))
    rows = model.config.vocab_size
    with pytest.raises(ValueError, match="does not fit the model"):
        load_adapter(model, tiny_processor, tmp_path / "adapter")
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == rows
