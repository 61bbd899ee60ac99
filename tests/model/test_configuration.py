"""The config: what cannot work is refused with field, value and remedy; what can work survives JSON."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoConfig,
    BertConfig,
    CLIPVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from dps_hf.model.configuration_dps import AUTO_MAP, DPSConfig, DPSImageTokenizerConfig


def test_defaults_are_valid():
    config = DPSConfig()
    assert isinstance(config.text_config, LlamaConfig) and isinstance(config.vision_config, SiglipVisionConfig)
    assert config.codebook_size == 8**4 and config.grid_size == 8 and config.drawing_size == 64
    assert config.image_code_start_id + config.codebook_size == config.vocab_size == config.text_config.vocab_size
    ids = [config.image_token_id, config.boi_token_id, config.eoi_token_id, config.image_code_start_id]
    assert ids == list(range(config.image_code_start_id - 3, config.image_code_start_id + 1))


def test_ids_that_are_left_out_lie_before_the_codes(make_text_config, tiny_config):
    parts = {"text_config": make_text_config(), "image_tokenizer_config": tiny_config.image_tokenizer_config}
    config = DPSConfig(**parts)
    assert (config.image_token_id, config.boi_token_id, config.eoi_token_id, config.image_code_start_id) == (
        262,
        263,
        264,
        265,
    )
    assert DPSConfig(**parts, image_code_start_id=100).eoi_token_id == 99


def test_a_config_that_was_saved_with_no_row_end_loads_and_loses_it(make_config):
    config = DPSConfig.from_dict(make_config().to_dict() | {"row_end_token_id": None})
    assert config.to_dict() == make_config().to_dict()


@pytest.mark.parametrize("text", [None, {}, {"model_type": "qwen2", "vocab_size": 9000}, Qwen2Config()])
def test_parts_are_configs_or_dicts(text):
    expected = Qwen2Config if text else LlamaConfig
    assert type(DPSConfig(text_config=text).text_config) is expected


def test_the_config_survives_json(make_config, tmp_path):
    config = make_config(tie_word_embeddings=False, projector_hidden_act="relu")
    config.save_pretrained(tmp_path)
    loaded = DPSConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert DPSConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert type(loaded.image_tokenizer_config) is DPSImageTokenizerConfig


def test_the_map_of_remote_code_is_always_there(tiny_config):
    assert tiny_config.auto_map == DPSConfig(auto_map=None).auto_map == AUTO_MAP
    assert tiny_config.auto_map is not AUTO_MAP


def test_both_kinds_of_image_tokenizer_have_the_same_properties():
    own = DPSConfig(image_tokenizer_config={"levels": (8, 8), "colour_levels": (4, 4)})
    assert own.image_tokenizer_geometry == (64, 8, [64, 16], [(8, 8), (4, 4)])
    assert (own.codebook_size, own.num_codes, own.drawing_size) == (80, 128, 64)
    janus = DPSConfig(image_tokenizer_config={"model_type": "janus_vqgan", "num_embeddings": 64, "num_patches": 4})
    assert janus.image_tokenizer_geometry == (64, 4, [64], None)
    assert (janus.codebook_size, janus.num_codes, janus.drawing_size) == (64, 16, 64)


def test_a_janus_image_tokenizer_is_chosen_by_its_model_type():
    fields = {"model_type": "janus_vqgan", "num_embeddings": 64, "num_patches": 4, "channel_multiplier": [1, 1, 2]}
    for part in (fields, JanusVQVAEConfig(**{key: value for key, value in fields.items() if key != "model_type"})):
        config = DPSConfig(image_tokenizer_config=part)
        assert type(config.image_tokenizer_config) is JanusVQVAEConfig
        assert (config.codebook_size, config.grid_size, config.drawing_size) == (64, 4, 16)
        again = DPSConfig.from_dict(config.to_dict())
        assert type(again.image_tokenizer_config) is JanusVQVAEConfig


def test_peft_and_trl_find_ids_and_sizes_at_the_top(make_config):
    config = make_config()
    assert (config.vocab_size, config.hidden_size) == (281, 32)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (258, 256, None)
    config.vocab_size, config.eos_token_id = 300, 7
    assert (config.text_config.vocab_size, config.text_config.eos_token_id) == (300, 7)
    assert config.get_text_config() is config.text_config


def test_ids_given_at_the_top_reach_the_decoder(make_text_config, make_config):
    assert make_config(eos_token_id=11, pad_token_id=12).text_config.eos_token_id == 11
    config = DPSConfig(text_config={"vocab_size": 9000}, bos_token_id=5)
    assert config.text_config.bos_token_id == config.bos_token_id == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 60}, r"image_size must be a positive multiple of .*; got 60 and 8. Try 64"),
        ({"image_size": 0}, r"image_size must be a positive multiple of .*; got 0 and 8. Try 8"),
        ({"image_size": -8}, r"got -8 and 8. Try 8"),
        ({"patch_size": 0}, r"patch_size .* must be positive; got 0. Set patch_size to"),
        ({"hidden_sizes": ()}, r"hidden_sizes must hold at least one width; got none. Try \(96, 160\)"),
        ({"hidden_sizes": (8, 12)}, r"hidden_sizes must be positive multiples of 8 .*; got 12. Try 16"),
        ({"hidden_sizes": (0,)}, r"hidden_sizes must be positive multiples of 8 .*; got 0. Try 8"),
        ({"num_encoder_blocks": -1}, r"num_encoder_blocks must be at least 0; got -1. Set it"),
        ({"num_res_blocks": -1}, r"num_res_blocks must be at least 0; got -1"),
        ({"num_channels": 0}, r"num_channels must be at least 1; got 0"),
        ({"levels": ()}, r"levels must hold numbers of at least 2; got \(\). Try \(8, 8, 8, 8\)"),
        ({"levels": (8, 1)}, r"levels must hold numbers of at least 2; got \(8, 1\)"),
    ],
)
def test_an_image_tokenizer_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DPSImageTokenizerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vision_config": SiglipVisionConfig(image_size=14, patch_size=16)},
            r"vision_config.patch_size must be positive and at most image_size; got 16 and 14. Set it",
        ),
        (
            {"vision_config": SiglipVisionConfig(patch_size=0)},
            r"vision_config.patch_size must be positive and at most image_size; got 0",
        ),
        (
            {"vision_config": SiglipVisionConfig(image_size=(224, 224))},
            r"vision_config.image_size must be one number, of a square; got \(224, 224\). Set it",
        ),
        (
            {"vision_config": CLIPVisionConfig()},
            r"vision_config.model_type must be 'siglip_vision_model' .*got 'clip_vision_model'",
        ),
        (
            {"vision_config": SiglipVisionConfig(hidden_size=32, num_attention_heads=3)},
            "vision_config.hidden_size must be a positive multiple of num_attention_heads; got 32 and 3. Try 33 and 3",
        ),
        (
            {"vision_config": SiglipVisionConfig(hidden_size=0)},
            "vision_config.hidden_size must be a positive multiple of num_attention_heads; got 0 and 12. "
            "Try 12 and 12",
        ),
        (
            {"text_config": LlamaConfig(num_attention_heads=4, num_key_value_heads=3)},
            "text_config.num_attention_heads must be a positive multiple of num_key_value_heads; got 4 and 3. "
            "Try 3 and 3",
        ),
        ({"text_config": BertConfig()}, r"text_config.model_type must be that of a decoder; got 'bert'"),
        ({"vision_config": {"model_type": "no_such"}}, r"model_type of a nested config .*; got 'no_such'"),
        (
            {"vision_config": SiglipVisionConfig(num_channels=1)},
            r"vision_config.num_channels must be 3 .*; got 1. Set it to 3",
        ),
        ({"image_tokenizer_config": {"num_channels": 4}}, r"image_tokenizer_config.num_channels must be 3 .*; got 4"),
        (
            {"image_tokenizer_config": LlamaConfig()},
            r"must be 'dps_image_tokenizer' or 'janus_vqgan'; got 'llama'. Set one",
        ),
        (
            {"text_config": LlamaConfig(vocab_size=281), "image_tokenizer_config": {}},
            r"text_config.vocab_size; got 265 \+ 4096 and 281. Set text_config.vocab_size to at least 4361",
        ),
        (
            {"image_code_start_id": 266},
            r"image_code_start_id \+ codebook size .* got 266 \+ 16 and 281. .* at least 282",
        ),
        ({"image_code_start_id": -1}, r"got -1 \+ 16"),
        ({"image_token_id": 281}, r"image_token_id must lie .* 281 tokens .* \[265, 281\); got 281. Choose an id"),
        ({"boi_token_id": 270}, r"boi_token_id must lie .*; got 270"),
        ({"eoi_token_id": -1}, r"eoi_token_id must lie .*; got -1"),
        ({"eoi_token_id": 263}, r"eoi_token_id must differ from boi_token_id; both are 263. Choose another"),
        *[
            (
                {"image_tokenizer_config": JanusVQVAEConfig(**{name: value})},
                rf"image_tokenizer_config.{name} must .*got",
            )
            for name, value in (
                ("num_patches", 0),
                ("num_embeddings", 0),
                ("in_channels", 1),
                ("out_channels", 1),
                ("channel_multiplier", []),
            )
        ],
    ],
)
def test_a_geometry_or_id_that_cannot_work_is_refused(make_config, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_what_is_set_later_is_looked_at_when_it_is_saved_or_loaded(tiny_config, make_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    for load in (DPSConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"boi_token_id must lie .*; got -5"):
            load(tmp_path, boi_token_id=-5)
    config = make_config()
    config.image_code_start_id = 270
    with pytest.raises(StrictDataclassClassValidationError, match=r"got 270 \+ 16 and 281"):
        config.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eos_token_id", 9999, "must lie in the vocabulary of 281 tokens"),
        ("eos_token_id", [258, -1], "must lie in the vocabulary .*; got -1"),
        ("pad_token_id", 281, "must lie in the vocabulary .*; got 281. Set text_config.pad_token_id"),
        ("bos_token_id", 265, "must lie .* outside of the image codes"),
        ("eos_token_id", 263, "must differ from boi_token_id; both are 263"),
        ("pad_token_id", 262, "must differ from image_token_id; both are 262"),
    ],
)
def test_an_id_of_the_decoder_that_cannot_work_is_refused(make_config, make_text_config, name, value, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        make_config(text_config=make_text_config(**{name: value}))
    assert make_config(text_config=make_text_config(pad_token_id=-1)).pad_token_id == -1


def test_fields_are_typed(make_config):
    with pytest.raises(Exception, match="image_token_id"):
        make_config(image_token_id="262")
