"""The model: parity with its stock parts, placement of pictures, losses, saving, and what the ecosystem asks of it."""

import json

import pytest
import torch
from transformers import JanusVQVAEConfig, LlamaForCausalLM
from transformers.utils import logging

from dps_hf.model import modeling_dps
from dps_hf.model.library_dps import CACHE
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel


IMAGE, BOI, EOI, CODE_0, PAD = 262, 263, 264, 265, 256
DECODERS = ["gpt2", "qwen2", "gemma2", "gemma3"]


@pytest.fixture
def mixed_inputs(pictures) -> dict[str, torch.Tensor]:
    """Two prompts, the first with two pictures, the second with one, padded on the left."""
    picture = [IMAGE] * 4
    rows = [[1, *picture, 2, 3, *picture, 4], [PAD, PAD, PAD, PAD, 5, 6, *picture, 7, 8]]
    input_ids = torch.tensor(rows)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "pixel_values": pictures,
        "labels": input_ids.masked_fill((input_ids == PAD) | (input_ids == IMAGE), -100),
    }


@pytest.fixture
def janus_vq_config() -> JanusVQVAEConfig:
    return JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=16,
        latent_channels=4,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=8,
    )


# Forward


def test_text_logits_equal_a_stock_llama(tiny_model, tiny_config, text_ids):
    llama = LlamaForCausalLM(tiny_config.text_config).eval()
    llama.model.load_state_dict(tiny_model.model.language_model.state_dict())
    llama.lm_head.load_state_dict(tiny_model.lm_head.state_dict())
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for attention_mask in (None, mask):
        inputs = {"input_ids": text_ids, "attention_mask": attention_mask, "labels": text_ids}
        ours, theirs = tiny_model(**inputs), llama(**inputs)
        assert ours.logits.equal(theirs.logits) and ours.loss.equal(theirs.loss)


def test_changed_pixels_change_logits(tiny_model, mixed_inputs):
    logits = tiny_model(**mixed_inputs).logits
    mixed_inputs["pixel_values"] = mixed_inputs["pixel_values"].clone()
    mixed_inputs["pixel_values"][2] *= -1  # the second row's
    changed = tiny_model(**mixed_inputs).logits
    assert changed[0].equal(logits[0])
    assert changed[1, :6].equal(logits[1, :6])  # nothing before the picture
    assert (changed[1, 6:] - logits[1, 6:]).abs().amax(-1).min() > 1e-2


def test_every_picture_goes_to_its_own_place(tiny_model, mixed_inputs):
    features = tiny_model.get_image_features(mixed_inputs["pixel_values"]).pooler_output
    embeds = tiny_model.get_input_embeddings()(mixed_inputs["input_ids"])
    embeds[0, 1:5], embeds[0, 7:11], embeds[1, 6:10] = features
    expected = tiny_model(inputs_embeds=embeds, attention_mask=mixed_inputs["attention_mask"]).logits
    outputs = tiny_model(**mixed_inputs)
    assert outputs.logits.equal(expected) and outputs.image_hidden_states.equal(features)
    swapped = tiny_model(**(mixed_inputs | {"pixel_values": mixed_inputs["pixel_values"][[1, 0, 2]]})).logits
    assert not swapped[0].allclose(expected[0], atol=1e-2) and swapped[1].equal(expected[1])


def test_pictures_reach_placeholders_given_as_embeddings(tiny_model, mixed_inputs):
    expected = tiny_model(**mixed_inputs).logits
    embeds = tiny_model.get_input_embeddings()(mixed_inputs.pop("input_ids"))
    assert tiny_model(inputs_embeds=embeds, **mixed_inputs).logits.equal(expected)


@pytest.mark.parametrize("cut", [slice(0, 10), slice(2, 12)])
def test_a_wrong_number_of_placeholders_is_refused_with_the_reason(tiny_model, mixed_inputs, cut):
    input_ids = mixed_inputs["input_ids"][:1, cut]
    with pytest.raises(ValueError, match="8 feature vectors, input_ids hold 7 placeholders; truncation may have cut"):
        tiny_model(input_ids=input_ids, pixel_values=mixed_inputs["pixel_values"][:2])


# Pictures that repeat


@pytest.fixture
def count_encoded(monkeypatch):
    """Makes a list of how many pictures each run of a model's tower gets."""

    def count(model) -> list[int]:
        counts: list[int] = []
        forward = model.model.vision_tower.forward

        def counted(pixel_values, **kwargs):
            counts.append(len(pixel_values))
            return forward(pixel_values, **kwargs)

        monkeypatch.setattr(model.model.vision_tower, "forward", counted)
        return counts

    return count


def test_a_picture_that_repeats_is_encoded_once_with_the_features_of_each(make_model, pictures, count_encoded):
    model = make_model()
    counts, rows = count_encoded(model), [2, 0, 2, 2, 1, 0]
    options = {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    alone = [model.get_image_features(pictures[row : row + 1], **options) for row in rows]
    together = model.get_image_features(pictures[rows], **options)
    assert counts == [1] * 6 + [3]
    for name in ("last_hidden_state", "pooler_output", "image_embeds"):
        torch.testing.assert_close(together[name], torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-5)
    for name in ("hidden_states", "attentions"):
        for layer, values in enumerate(together[name]):
            expected = torch.cat([one[name][layer] for one in alone])
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_pictures_that_differ_in_one_pixel_keep_their_own_features(make_model, pictures, count_encoded):
    model = make_model()
    large = pictures[:1].repeat(1, 1, 4, 4)  # more pixels than are compared at first
    other = large.clone()
    other[0, 2, 7, 1] = -other[0, 2, 7, 1]
    counts = count_encoded(model)
    features = model.get_image_features(torch.cat([large, other, large]), interpolate_pos_encoding=True).pooler_output
    assert counts == [2] and features[0].equal(features[2]) and not features[0].equal(features[1])


def test_different_pictures_are_encoded_as_they_are(make_model, pictures, count_encoded):
    model = make_model()
    counts = count_encoded(model)
    assert len(model.get_image_features(pictures).pooler_output) == 3 and counts == [3]


@pytest.mark.parametrize("repeated", [[0, 0, 0], [1, 0, 1]])
def test_gradients_are_the_same_whether_pictures_are_encoded_once_or_each(
    make_model, mixed_inputs, monkeypatch, repeated, count_encoded
):
    mixed_inputs["pixel_values"] = mixed_inputs["pixel_values"][repeated]
    gradients = []
    for once in (True, False):
        if not once:
            monkeypatch.setattr(modeling_dps, "_find_repeated", lambda pixel_values: None)
        model = make_model().train()
        counts = count_encoded(model)
        model(**mixed_inputs).loss.backward()
        assert counts == [len(set(repeated)) if once else 3]
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_each_of_equal_pictures_gets_its_own_gradient(make_model, mixed_inputs):
    pixels = mixed_inputs.pop("pixel_values")[[0, 0, 0]].requires_grad_()
    make_model()(**mixed_inputs, pixel_values=pixels).loss.backward()
    assert all(gradient.any() for gradient in pixels.grad)
    assert not pixels.grad[0].equal(pixels.grad[1])


def test_dropout_in_the_tower_differs_between_equal_pictures(make_model, make_config, pictures):
    config = make_config()
    config.vision_config.attention_dropout = 0.5
    model = make_model(config).train()
    features = model.get_image_features(pictures[[0, 0]]).pooler_output
    assert not features[0].equal(features[1])


def test_all_sequences_of_a_row_share_the_features_of_its_pictures(make_model, mixed_inputs, count_encoded):
    model = make_model()
    counts = count_encoded(model)
    del mixed_inputs["labels"]
    model.generate(**mixed_inputs, num_return_sequences=4, do_sample=True, max_new_tokens=2)
    assert counts == [3]


def test_tokens_and_embeddings_together_are_refused(tiny_model, text_ids):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model(input_ids=text_ids, inputs_embeds=tiny_model.get_input_embeddings()(text_ids))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model()


def test_loss_of_kept_logits_equals_the_whole_loss(tiny_model, mixed_inputs):
    mixed_inputs["labels"][:, :9] = -100  # the logit that predicts the first label is kept too
    whole, kept = tiny_model(**mixed_inputs), tiny_model(**mixed_inputs, logits_to_keep=4)
    assert kept.logits.shape == (2, 4, 281)
    torch.testing.assert_close(kept.loss, whole.loss)
    positions = torch.tensor([8, 9, 10, 11])
    torch.testing.assert_close(tiny_model(**mixed_inputs, logits_to_keep=positions).loss, whole.loss)


def test_logits_of_codes_alone_are_those_of_the_whole_head_whatever_it_is(make_model, mixed_inputs):
    model = make_model()
    whole, start = model(**mixed_inputs).logits, model.config.image_code_start_id
    codes = whole[..., start : start + model.config.codebook_size]
    torch.testing.assert_close(model(**mixed_inputs, codes_only=True).logits, codes)
    model.lm_head.register_forward_hook(
        lambda module, inputs, output: 2 * output
    )  # as where parts are on several devices
    torch.testing.assert_close(model(**mixed_inputs, codes_only=True).logits, 2 * codes)


def test_loss_is_divided_by_the_number_of_items_in_the_whole_batch(tiny_model, text_ids):
    loss = tiny_model(input_ids=text_ids, labels=text_ids).loss
    scaled = tiny_model(input_ids=text_ids, labels=text_ids, num_items_in_batch=24).loss
    torch.testing.assert_close(scaled, loss * 12 / 24)


def test_cached_logits_equal_uncached(tiny_model, mixed_inputs):
    mixed_inputs.pop("labels")
    whole = tiny_model(**mixed_inputs).logits
    mask = mixed_inputs.pop("attention_mask")
    prefix = mixed_inputs | {"input_ids": mixed_inputs["input_ids"][:, :11]}
    cache = tiny_model(**prefix, attention_mask=mask[:, :11], use_cache=True).past_key_values
    rest = tiny_model(mixed_inputs["input_ids"][:, 11:], attention_mask=mask, past_key_values=cache)
    torch.testing.assert_close(rest.logits, whole[:, 11:], rtol=1e-4, atol=1e-4)


def test_outputs_are_tuples_where_asked_for(tiny_model, mixed_inputs):
    outputs = tiny_model(**mixed_inputs)
    as_tuple = tiny_model(**mixed_inputs, return_dict=False)
    assert as_tuple[0].equal(outputs.loss) and as_tuple[1].equal(outputs.logits)


def test_hidden_states_and_attentions_are_those_of_the_decoder(make_model, mixed_inputs):
    model = make_model()
    model.set_attn_implementation("eager")
    outputs = model(**mixed_inputs, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3 and outputs.hidden_states[0].shape == (2, 12, 32)
    assert len(outputs.attentions) == 2 and outputs.attentions[0].shape == (2, 4, 12, 12)


# Features


def test_image_features_have_the_documented_shapes(tiny_model, pictures):
    features = tiny_model.get_image_features(pictures)
    assert features.last_hidden_state.shape == (3, 4, 16)
    assert features.pooler_output.shape == (3, 4, 32)
    lengths = features.pooler_output.norm(dim=-1, keepdim=True)
    assert features.image_embeds.allclose((features.pooler_output / lengths).mean(1))
    assert tiny_model.get_image_features(pictures, return_dict=False)[1].equal(features.pooler_output)


@pytest.mark.parametrize("decoder", ["llama", *DECODERS])
def test_padding_on_either_side_leaves_text_features_alone(
    make_model, make_decoder_config, make_text_config, text_ids, decoder
):
    model = make_model(text_config=make_text_config() if decoder == "llama" else make_decoder_config(decoder))
    expected = model.get_text_features(text_ids[:1]).pooler_output
    assert expected.shape == (1, 32)
    assert expected.equal(model.model.language_model(text_ids[:1]).last_hidden_state.mean(1))
    pad, ones = torch.full((1, 5), PAD), torch.ones(1, 7, dtype=torch.long)
    zeros = torch.zeros_like(pad)
    for parts, masks in (((pad, text_ids[:1]), (zeros, ones)), ((text_ids[:1], pad), (ones, zeros))):
        padded = model.get_text_features(torch.cat(parts, 1), attention_mask=torch.cat(masks, 1)).pooler_output
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-4)


# The image tokenizer inside


def test_pictures_become_codes_and_codes_become_pictures(tiny_model, tiny_config, pictures):
    codes = tiny_model.encode_image(pictures)
    assert codes.shape == (3, 4) and codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 16
    pixels = tiny_model.decode_image_tokens(codes)
    assert pixels.shape == (3, 3, 16, 16) and pixels.abs().max() <= 1
    drawing = torch.cat([torch.full((3, 1), BOI), codes + CODE_0, torch.full((3, 1), EOI)], 1)
    assert tiny_model.decode_image_tokens(drawing).equal(pixels)
    assert tiny_model.decode_image_tokens(codes + CODE_0).equal(pixels)  # cut out of the sequence


def test_the_last_whole_drawing_of_a_row_is_decoded(tiny_model):
    first, second = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    row = torch.cat(
        [torch.tensor([9, BOI]), first + CODE_0, torch.tensor([EOI, BOI]), second + CODE_0, torch.tensor([EOI, PAD])]
    )
    assert tiny_model.decode_image_tokens(row[None]).equal(tiny_model.decode_image_tokens(second[None]))


def test_codes_that_a_prompt_spells_are_no_part_of_the_drawing(tiny_model):
    drawn = torch.tensor([1, 2, 3, 4])
    drawing = torch.cat([torch.tensor([BOI]), drawn + CODE_0, torch.tensor([EOI])])
    for before in ([9, CODE_0 + 3, 8], [BOI, CODE_0, CODE_0, EOI], [CODE_0, BOI, CODE_0], [CODE_0] * 5):
        row = torch.cat([torch.tensor(before), drawing])
        assert tiny_model.decode_image_tokens(row[None]).equal(tiny_model.decode_image_tokens(drawn[None])), before


def test_pictures_of_another_size_are_resized(tiny_model):
    assert tiny_model.encode_image(torch.zeros(2, 3, 40, 24)).shape == (2, 4)


def test_a_row_without_a_whole_drawing_is_refused(tiny_model):
    rows = torch.tensor([[1, BOI, *range(CODE_0, CODE_0 + 4), EOI], [1, BOI, CODE_0, CODE_0, CODE_0, EOI, PAD]])
    with pytest.raises(ValueError, match="whole drawing of 4 image codes in each row; one row holds 3"):
        tiny_model.decode_image_tokens(rows)
    with pytest.raises(ValueError, match="one row holds 0"):
        tiny_model.decode_image_tokens(torch.tensor([[1, 2, 3, 200]]))
    with pytest.raises(ValueError, match="image_tokens must be 0 or more; got -100"):
        tiny_model.decode_image_tokens(torch.tensor([[1, 2, 3, -100]]))


def test_bare_codes_are_codes_even_where_the_text_vocabulary_is_smaller_than_the_codebook(
    make_model, make_text_config
):
    ids = {"image_token_id": 0, "boi_token_id": 1, "eoi_token_id": 2, "image_code_start_id": 4}
    model = make_model(text_config=make_text_config(vocab_size=20, eos_token_id=3, pad_token_id=None), **ids)
    codes = torch.tensor([[4, 5, 6, 7]])  # every one of them could be the token of a code
    expected = model.model.image_tokenizer.decode(codes)
    assert model.decode_image_tokens(codes).equal(expected)
    assert model.decode_image_tokens(torch.tensor([[1, 8, 9, 10, 11, 2]])).equal(expected)


def test_the_image_tokenizer_is_frozen_and_gets_no_gradient(make_model, mixed_inputs):
    model = make_model().train()
    model(**mixed_inputs).loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("model.image_tokenizer.")
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) is frozen or "vision_tower.head." in name, name


def test_the_image_tokenizer_stays_frozen_after_loading(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    model, _ = DPSForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    for loaded in (model.model, DPSModel.from_pretrained(tmp_path)):
        trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name, _ in loaded.named_parameters() if not name.startswith("image_tokenizer.")}


def test_a_janus_image_tokenizer_takes_the_place_of_our_own(make_model, janus_vq_config, text_ids):
    model = make_model(image_tokenizer_config=janus_vq_config, image_code_start_id=CODE_0)
    assert type(model.model.image_tokenizer).__name__ == "JanusVQVAE"
    codes = model.encode_image(torch.zeros(2, 3, 16, 16))
    assert codes.shape == (2, 64)
    assert model.decode_image_tokens(codes).shape == (2, 3, 16, 16)
    generated = model.generate(text_ids, generation_mode="image", guidance_scale=2.0)
    assert model.decode_image_tokens(generated).shape == (2, 3, 16, 16)


# Other decoders


@pytest.mark.parametrize("decoder", DECODERS)
def test_other_decoders_build_run_and_tie_their_embeddings(
    make_model, make_decoder_config, mixed_inputs, tmp_path, decoder
):
    model = make_model(text_config=make_decoder_config(decoder))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    outputs = model(**mixed_inputs)
    assert outputs.logits.shape == (2, 12, 281) and outputs.logits.isfinite().all()
    outputs.loss.backward()
    assert model.generate(
        mixed_inputs["input_ids"][:1], pixel_values=mixed_inputs["pixel_values"][:2], generation_mode="image"
    ).shape == (1, 18)

    model.save_pretrained(tmp_path)
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded(**mixed_inputs).logits.equal(outputs.logits)


# Precision, attention, compilation, checkpointing


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_agrees_with_float32(
    tiny_model, make_model, mixed_inputs, attn_implementation, dtype, tolerance
):
    expected = tiny_model(**mixed_inputs).logits
    model = make_model().to(dtype)
    model.set_attn_implementation(attn_implementation)
    logits = model(**mixed_inputs).logits
    assert logits.dtype == dtype
    kept = mixed_inputs["attention_mask"].bool()
    assert (logits.float() - expected)[kept].abs().mean() < tolerance * expected[kept].abs().mean()
    assert model.encode_image(mixed_inputs["pixel_values"]).equal(
        tiny_model.encode_image(mixed_inputs["pixel_values"])
    )
    codes = torch.zeros(1, 4, dtype=torch.long)
    assert model.decode_image_tokens(codes).equal(tiny_model.decode_image_tokens(codes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_image_tokenizer_is_made_in_float32_whatever_the_rest_is(tiny_config, dtype):
    for model_class in (DPSModel, DPSForConditionalGeneration):
        model = model_class._from_config(tiny_config, dtype=dtype)
        kept = {weight.dtype for weight in model.base_model.image_tokenizer.parameters()}
        assert kept == {torch.float32} and model.get_input_embeddings().weight.dtype == dtype


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize(
    "wrap", [lambda model: model, torch.nn.DataParallel, lambda model: torch.nn.ModuleList([model])]
)
def test_no_cast_changes_a_code(make_model, tiny_model, pictures, cast, wrap):
    model = make_model()
    getattr(wrap(model), cast)()
    assert model.encode_image(pictures).equal(tiny_model.encode_image(pictures))
    weights = dict(tiny_model.model.image_tokenizer.named_parameters())
    assert all(weight.equal(weights[name]) for name, weight in model.model.image_tokenizer.named_parameters())


def test_eager_and_sdpa_attention_agree(make_model, mixed_inputs):
    model, logits = make_model(), {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.model.vision_tower.config._attn_implementation == name
        assert model.model.language_model.config._attn_implementation == name
        logits[name] = model(**mixed_inputs).logits[mixed_inputs["attention_mask"].bool()]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=1e-4, atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(make_model, mixed_inputs):
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.language_model.layers[0].gradient_checkpointing
        model(**mixed_inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("with_pictures", [False, True])
def test_forward_compiles_as_one_graph(make_model, mixed_inputs, with_pictures):
    if not with_pictures:
        mixed_inputs.pop("pixel_values")
    model = make_model()
    expected = model(**mixed_inputs)
    torch._dynamo.reset()
    outputs = torch.compile(model, fullgraph=True)(**mixed_inputs)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-3, atol=1e-3)


def test_forward_traces_as_one_graph(make_model, mixed_inputs):
    model = make_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**mixed_inputs).logits, model(**mixed_inputs).logits)


# Saving and loading


def test_saving_and_loading_keeps_every_number(tiny_model, mixed_inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    loaded, report = DPSForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded(**mixed_inputs).logits.equal(tiny_model(**mixed_inputs).logits)
    base = DPSModel.from_pretrained(tmp_path)
    assert base(mixed_inputs["input_ids"]).last_hidden_state.equal(
        tiny_model.model(mixed_inputs["input_ids"]).last_hidden_state
    )
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (
        saved["architectures"] == ["DPSForConditionalGeneration"]
        and saved["auto_map"]["AutoModel"] == "modeling_dps.DPSModel"
    )


def test_an_untied_head_stays_untied(make_model, mixed_inputs, tmp_path):
    model = make_model(tie_word_embeddings=False)
    assert not model.lm_head.weight.equal(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    assert loaded(**mixed_inputs).logits.equal(model(**mixed_inputs).logits)


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_the_vocabulary_can_grow(make_model, text_ids, tmp_path, tie_word_embeddings):
    model = make_model(tie_word_embeddings=tie_word_embeddings)
    expected = model(text_ids).logits
    model.resize_token_embeddings(300)
    assert model.config.vocab_size == model.config.text_config.vocab_size == 300
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == 300
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tie_word_embeddings
    torch.testing.assert_close(model(text_ids).logits[..., :281], expected)
    assert model.config.image_code_start_id == CODE_0
    assert model.generate(text_ids, generation_mode="image").shape == (2, 13)
    model.save_pretrained(tmp_path)
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.image_code_start_id == CODE_0 and loaded(text_ids).logits.equal(model(text_ids).logits)


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_loads(tiny_model, mixed_inputs, tmp_path, device_map):
    tiny_model.save_pretrained(tmp_path)
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    expected = tiny_model(**mixed_inputs).logits.to(loaded.device)
    torch.testing.assert_close(
        loaded(**{k: v.to(loaded.device) for k, v in mixed_inputs.items()}).logits, expected, rtol=1e-3, atol=1e-3
    )


def test_a_sharded_checkpoint_loads(tiny_model, text_ids, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert DPSForConditionalGeneration.from_pretrained(tmp_path)(text_ids).logits.equal(tiny_model(text_ids).logits)


def test_a_model_builds_on_the_meta_device(tiny_config):
    with torch.device("meta"):
        model = DPSForConditionalGeneration(tiny_config)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_an_attention_can_be_chosen_at_loading(tiny_model, tmp_path, attn_implementation):
    tiny_model.save_pretrained(tmp_path)
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attn_implementation)
    assert loaded.config._attn_implementation == attn_implementation
    assert loaded.model.language_model.config._attn_implementation == attn_implementation


def test_loading_warns_of_nothing(tiny_model, tmp_path, caplog):
    tiny_model.save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        DPSForConditionalGeneration.from_pretrained(tmp_path)
    finally:
        logging.disable_propagation()
    assert not [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


# peft


DECODER_PROJECTIONS = r"model\.language_model\..*\.(q_proj|v_proj)"


@pytest.fixture
def lora_model(make_model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=DECODER_PROJECTIONS, task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    return get_peft_model(make_model(), config)


def test_lora_trains_its_own_weights_only(lora_model, mixed_inputs):
    trainable = {name for name, parameter in lora_model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 2 * 2
    assert all("language_model" in name and "lora_" in name for name in trainable)
    before = {name: parameter.clone() for name, parameter in lora_model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in lora_model.parameters() if p.requires_grad], lr=0.1)
    lora_model(**mixed_inputs).loss.backward()
    optimizer.step()
    for name, parameter in lora_model.named_parameters():
        assert parameter.equal(before[name]) is (name not in trainable), name


def test_lora_adapters_reload_and_merge_to_the_same_logits(lora_model, make_model, mixed_inputs, tmp_path):
    from peft import PeftModel

    expected = lora_model.eval()(**mixed_inputs).logits
    assert not expected.allclose(make_model()(**mixed_inputs).logits, atol=1e-2)
    lora_model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert reloaded(**mixed_inputs).logits.equal(expected)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(merged(**mixed_inputs).logits, expected, rtol=1e-3, atol=1e-3)
    assert isinstance(merged, DPSForConditionalGeneration)
    generated = merged.generate(mixed_inputs["input_ids"][:, :1], generation_mode="image", guidance_scale=2.0)
    assert generated.shape == (2, 7)


def test_lora_models_draw(lora_model, text_ids):
    generated = lora_model.generate(input_ids=text_ids, generation_mode="image", guidance_scale=2.0)
    assert generated.shape == (2, 13)


# What the ecosystem reads


def test_vllm_and_trl_find_what_they_look_for(tiny_model, pictures, text_ids):
    base = tiny_model.base_model
    assert type(base) is DPSModel and base.language_model is not None
    assert tiny_model.get_output_embeddings() is tiny_model.lm_head
    hidden = base(input_ids=text_ids).last_hidden_state
    assert (hidden @ tiny_model.get_output_embeddings().weight.T).allclose(tiny_model(text_ids).logits, atol=1e-5)
    assert base.get_image_features(pictures, return_dict=True).pooler_output.shape == (3, 4, 32)
    assert DPSForConditionalGeneration.input_modalities == ("image", "text")
    assert DPSForConditionalGeneration.output_modalities == ("image", "text")


def test_no_picture_at_all_is_as_none_given(tiny_model, text_ids, pictures):
    """trl's GRPO cuts `pixel_values` as it cuts a batch, and a part of it may have no picture."""
    expected = tiny_model(input_ids=text_ids)
    found = tiny_model(input_ids=text_ids, pixel_values=pictures[:0])
    assert torch.equal(found.logits, expected.logits) and found.image_hidden_states is None


def test_a_training_step_keeps_no_cache(make_model, text_ids):
    model = make_model()
    assert model(text_ids, labels=text_ids)[CACHE] is not None
    model.train()
    assert model(text_ids, labels=text_ids).get(CACHE) is None
    assert model(text_ids, labels=text_ids, use_cache=True)[CACHE] is not None
