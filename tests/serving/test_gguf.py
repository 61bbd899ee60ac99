import gguf
import numpy as np
import pytest
import torch

from dps_hf.serving.gguf import check, export, load


@pytest.fixture(scope="module")
def written(checkpoint, tmp_path_factory) -> tuple[gguf.GGUFReader, gguf.GGUFReader]:
    """The decoder's file and the tower's, in float32."""
    text, mmproj = export(checkpoint, tmp_path_factory.mktemp("gguf"), "f32")
    assert (text.name, mmproj.name) == ("tiny-f32.gguf", "mmproj-tiny-f32.gguf")
    return gguf.GGUFReader(text), gguf.GGUFReader(mmproj)


def tensors(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}


def fields_of(reader: gguf.GGUFReader) -> dict:
    return {name: field.contents() for name, field in reader.fields.items()}


def in_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Undoes llama.cpp's order of a projection's rows, element by element."""
    rows = tensor.shape[0] // heads
    order = [head * rows + 2 * (i % (rows // 2)) + i // (rows // 2) for head in range(heads) for i in range(rows)]
    return tensor[order]


def test_the_decoder_is_written_whole_and_its_tied_head_once(written, tiny_model):
    found, config = tensors(written[0]), tiny_model.config.text_config
    state = tiny_model.model.language_model.state_dict()
    expected = {"token_embd.weight": state["embed_tokens.weight"], "output_norm.weight": state["norm.weight"]}
    for i in range(config.num_hidden_layers):
        for name, key in {
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            expected[f"blk.{i}.{name}.weight"] = state[f"layers.{i}.{key}.weight"]
        found[f"blk.{i}.attn_q.weight"] = in_halves(found[f"blk.{i}.attn_q.weight"], config.num_attention_heads)
        found[f"blk.{i}.attn_k.weight"] = in_halves(found[f"blk.{i}.attn_k.weight"], config.num_key_value_heads)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_file_that_prefers_words_has_a_bias_against_tokens_of_drawings(
    checkpoint, tmp_path, tiny_model, tiny_config, token_ids
):
    text = gguf.GGUFReader(export(checkpoint, tmp_path, "f32", prefer_words=True)[0])
    found, fields = tensors(text), fields_of(text)
    banned = [token for name, token in token_ids.items() if name.startswith("<img_")]
    banned += [token_ids[name] for name in ("<image>", "<begin_of_image>", "<end_of_image>")]
    expected = torch.zeros(tiny_config.vocab_size)
    expected[banned] = -50
    torch.testing.assert_close(found["output.bias"], expected, rtol=0, atol=0)
    # A Qwen2 keeps the halves that rotate together apart, as transformers does.
    assert (fields["general.architecture"], fields["qwen2.attention.head_count"]) == ("qwen2", 4)
    state = tiny_model.model.language_model.state_dict()
    for name in ("q", "k"):
        weights = state[f"layers.0.self_attn.{name}_proj.weight"]
        torch.testing.assert_close(found[f"blk.0.attn_{name}.weight"], weights, rtol=0, atol=0)


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_a_decoder_that_cannot_prefer_words_is_refused(field, make_config, make_text_config, make_model, checkpoint):
    model = make_model(make_config(text_config=make_text_config(**{field: True})))
    with pytest.raises(ValueError, match=rf"prefer_words takes a DPS whose text_config.{field} is False; got True"):
        check(model, load(checkpoint)[1], prefer_words=True)


def test_the_tower_and_the_connector_are_written_whole(written, tiny_model):
    found = tensors(written[1])
    state = {k: v for k, v in tiny_model.model.vision_tower.state_dict().items() if not k.startswith("head.")}
    expected = {
        "v.patch_embd.weight": state.pop("embeddings.patch_embedding.weight"),
        "v.patch_embd.bias": state.pop("embeddings.patch_embedding.bias"),
        "v.position_embd.weight": state.pop("embeddings.position_embedding.weight"),
        "v.post_ln.weight": state.pop("post_layernorm.weight"),
        "v.post_ln.bias": state.pop("post_layernorm.bias"),
    }
    names = {"layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
    names |= {f"self_attn.{part}_proj": f"attn_{part}" for part in ("q", "k", "v", "out")}
    for key, tensor in state.items():
        _, _, layer, module, kind = key.replace("self_attn.", "self_attn:").replace("mlp.", "mlp:").split(".")
        expected[f"v.blk.{layer}.{names[module.replace(':', '.')]}.{kind}"] = tensor
    for index, linear in enumerate((tiny_model.model.connector.linear_1, tiny_model.model.connector.linear_2)):
        expected |= {f"mm.{index}.weight": linear.weight.detach(), f"mm.{index}.bias": linear.bias.detach()}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_files_say_what_llama_cpp_needs(written, tiny_config, merging_processor):
    text, mmproj = fields_of(written[0]), fields_of(written[1])
    assert text["general.architecture"] == "llama"
    assert text["llama.block_count"] == 2
    assert (text["llama.attention.head_count"], text["llama.attention.head_count_kv"]) == (4, 2)
    assert text["llama.rope.dimension_count"] == text["llama.attention.key_length"] == 8
    assert text["llama.rope.freq_base"] == 10000
    assert text["tokenizer.chat_template"] == merging_processor.chat_template
    assert mmproj["general.architecture"] == "clip"
    assert mmproj["clip.projector_type"] == "janus_pro"
    assert mmproj["clip.use_gelu"] is True
    assert (mmproj["clip.vision.image_size"], mmproj["clip.vision.patch_size"]) == (16, 8)
    assert mmproj["clip.vision.projection_dim"] == tiny_config.hidden_size
    assert mmproj["clip.vision.image_mean"] == mmproj["clip.vision.image_std"] == [0.5] * 3


def test_the_tokenizer_keeps_its_ids_and_hides_special_tokens_only(written, tiny_config, merging_processor, token_ids):
    text = fields_of(written[0])
    assert (text["tokenizer.ggml.model"], text["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert text["tokenizer.ggml.tokens"] == merging_processor.tokenizer.convert_ids_to_tokens(
        range(tiny_config.vocab_size)
    )
    assert text["tokenizer.ggml.merges"] == ["h e"]
    assert text["tokenizer.ggml.add_bos_token"] is False
    assert text["tokenizer.ggml.eos_token_id"] == token_ids["<|im_end|>"]
    types = text["tokenizer.ggml.token_type"]
    assert types[token_ids["<|im_end|>"]] == types[token_ids["<image>"]] == gguf.TokenType.CONTROL
    assert types[token_ids["<img_3>"]] == types[token_ids["<think>"]] == gguf.TokenType.USER_DEFINED
    assert types[0] == gguf.TokenType.NORMAL


def test_rows_that_the_tokenizer_has_no_token_for_are_named(
    make_config, make_text_config, make_model, checkpoint, tmp_path
):
    model = make_model(make_config(text_config=make_text_config(vocab_size=300), image_code_start_id=265))
    model.save_pretrained(tmp_path / "padded")
    load(checkpoint)[1].save_pretrained(tmp_path / "padded")
    text = fields_of(gguf.GGUFReader(export(tmp_path / "padded", tmp_path, "f32")[0]))
    tokens, types = text["tokenizer.ggml.tokens"], text["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == 300
    assert set(types[281:]) == {gguf.TokenType.UNUSED}


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_smaller_types_keep_vectors_exact_and_matrices_near(kind, checkpoint, tmp_path, written):
    smaller = gguf.GGUFReader(export(checkpoint, tmp_path, kind)[0])
    exact = tensors(written[0])
    for tensor in smaller.tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        tolerance = 0 if values.dim() == 1 else 0.02 * exact[tensor.name].abs().max().item()
        torch.testing.assert_close(values, exact[tensor.name], rtol=0, atol=tolerance)
    kinds = {tensor.tensor_type.name.lower() for tensor in smaller.tensors}
    assert kind in kinds


def test_an_untied_head_is_written(make_config, make_model, checkpoint, tmp_path):
    make_model(make_config(tie_word_embeddings=False)).save_pretrained(tmp_path / "untied")
    load(checkpoint)[1].save_pretrained(tmp_path / "untied")
    model, _ = load(tmp_path / "untied")
    found = tensors(gguf.GGUFReader(export(tmp_path / "untied", tmp_path, "f32")[0]))
    torch.testing.assert_close(found["output.weight"], model.lm_head.weight.detach(), rtol=0, atol=0)


def test_a_stretched_context_is_written_as_factors(make_config, make_text_config, make_model, checkpoint, tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    make_model(make_config(text_config=make_text_config(rope_parameters=rope))).save_pretrained(tmp_path / "long")
    load(checkpoint)[1].save_pretrained(tmp_path / "long")
    found = tensors(gguf.GGUFReader(export(tmp_path / "long", tmp_path, "f32")[0]))
    torch.testing.assert_close(found["rope_freqs.weight"], torch.full((4,), 4.0))


def test_an_adapter_is_merged_into_its_base(checkpoint, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model, _ = load(checkpoint)
    layer = "model.language_model.layers.0.mlp.up_proj"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[layer], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(checkpoint)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().get_submodule(layer).weight.detach()
    found = tensors(gguf.GGUFReader(export(tmp_path / "adapter", tmp_path, "f32")[0]))
    torch.testing.assert_close(found["blk.0.ffn_up.weight"], expected)
    assert "Merged the adapter" in capsys.readouterr().out


ADAPTERS = {
    "trained tokens": {"trainable_token_indices": [281, 282]},
    "embeddings that were saved whole": {"modules_to_save": ["embed_tokens"]},
    "a head that was saved whole": {"modules_to_save": ["lm_head"]},
    "both, as one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "LoRA on the embeddings alone": {"target_modules": ["embed_tokens"]},
    "a vocabulary that was resized": {},
    "a vocabulary that was resized to a multiple of 64": {"rows": 320},
}


@pytest.mark.parametrize("beside", ["processor", "tokenizer"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_tokens_that_were_added_for_an_adapter_are_written(kind, beside, checkpoint, save_adapter, tmp_path):
    fields = ADAPTERS[kind]
    adapted, _ = save_adapter(checkpoint, tmp_path / "adapter", beside=beside, **fields)
    reader, rows = gguf.GGUFReader(export(tmp_path / "adapter", tmp_path, "f32")[0]), fields.get("rows", 283)
    text, found = fields_of(reader), tensors(reader)
    assert text["llama.vocab_size"] == len(text["tokenizer.ggml.tokens"]) == rows
    assert text["tokenizer.ggml.tokens"][281:283] == ["<cat>", "<dog>"]
    assert set(text["tokenizer.ggml.token_type"][281:283]) == {gguf.TokenType.USER_DEFINED}
    # What the two compute, unmerged, whatever wraps their layers.
    with torch.no_grad():
        embeddings = adapted.get_input_embeddings()(torch.arange(rows))
        head = adapted.get_output_embeddings()(torch.eye(32)).T
    torch.testing.assert_close(found["token_embd.weight"], embeddings)
    torch.testing.assert_close(found.get("output.weight", found["token_embd.weight"]), head)


def test_an_adapter_whose_tokens_have_no_names_is_refused(checkpoint, save_adapter, tmp_path):
    save_adapter(checkpoint, tmp_path / "adapter", beside=None, trainable_token_indices=[281, 282])
    with pytest.raises(ValueError, match=r"trainable_token_indices of the adapter .* go up to 282.*281 tokens.*Save"):
        export(tmp_path / "adapter", tmp_path)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(checkpoint, tmp_path):
    model, processor = load(checkpoint)
    processor.tokenizer.add_tokens(["<cat>"])
    model.save_pretrained(tmp_path / "more")
    processor.save_pretrained(tmp_path / "more")
    with pytest.raises(ValueError, match=r"282 tokens.*vocab_size is 281.*resize_token_embeddings\(282\)"):
        export(tmp_path / "more", tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_other_decoders_are_refused_with_a_remedy(make_decoder_config, make_config, make_model, merging_processor):
    model = make_model(make_config(text_config=make_decoder_config("qwen2")))
    with pytest.raises(
        ValueError, match=r"text_config.model_type is 'llama'; got 'qwen2'.*vLLM or `transformers serve`"
    ):
        check(model, merging_processor)


def test_activations_that_llama_cpp_lacks_are_refused(make_config, make_model, merging_processor):
    with pytest.raises(ValueError, match=r"projector_hidden_act is 'gelu_pytorch_tanh'; got 'gelu'"):
        check(make_model(make_config(projector_hidden_act="gelu")), merging_processor)


def test_other_ways_of_splitting_text_are_refused(tiny_model, checkpoint):
    from tokenizers import pre_tokenizers

    _, processor = load(checkpoint)
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"pre_tokenizer is that of GPT-2, of SmolLM or of Llama 3"):
        check(tiny_model, processor)


def test_an_unknown_type_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"type must be one of f32, f16, bf16, q8_0; got 'q4'"):
        export(checkpoint, tmp_path, "q4")
