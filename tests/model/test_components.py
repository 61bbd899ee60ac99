"""Parts that exist already become one model, with their weights as they were."""

import copy

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVQVAE,
    JanusVQVAEConfig,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import dps_hf
from dps_hf import DPSConfig, DPSForConditionalGeneration, DPSImageTokenizer, DPSImageTokenizerConfig, DPSProcessor
from dps_hf.components import assemble_model, make_processor


WORDS = ["[UNK]", "<|endoftext|>", *(f"w{i}" for i in range(38))]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = LlamaConfig(vocab_size=len(WORDS), **SIZES, num_key_value_heads=1, tie_word_embeddings=False)
VISION = SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)
IMAGE_TOKENIZER = DPSImageTokenizerConfig(
    image_size=16, patch_size=4, hidden_sizes=(8, 16), num_res_blocks=1, levels=(4, 4)
)
VQ = JanusVQVAEConfig(
    embed_dim=4,
    num_embeddings=20,
    latent_channels=8,
    base_channels=32,
    channel_multiplier=[1, 1],
    num_res_blocks=1,
    num_patches=4,
    projection_dim=16,
    image_token_embed_dim=16,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words only, as a base model's."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="<|endoftext|>")


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a fresh model of a config, and gives the model and its folder."""

    def fresh(config, model_class=AutoModelForCausalLM, **overrides):
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        config.update(overrides)
        make = getattr(model_class, "from_config", None) or model_class._from_config
        folder = tmp_path / f"{config.model_type}{len(list(tmp_path.iterdir()))}"
        model = make(config).eval()
        model.save_pretrained(folder)
        if make.__name__ == "from_config":
            tokenizer.save_pretrained(folder)
        return model, folder

    return fresh


# Weights


TEXT_CONFIGS = {
    "llama, untied": LLAMA,
    "llama, tied": LlamaConfig(**(LLAMA.to_dict() | {"tie_word_embeddings": True})),
    "qwen2, padded": Qwen2Config(vocab_size=50, **SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2, padded beyond all codes": Qwen2Config(
        vocab_size=128, **SIZES, num_key_value_heads=2, tie_word_embeddings=False
    ),
    "gpt2": GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


@pytest.mark.parametrize("config", TEXT_CONFIGS.values(), ids=TEXT_CONFIGS)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "path"])
def test_text_logits_over_the_old_vocabulary_are_those_of_the_decoder(save, tokenizer, config, loaded):
    source, folder = save(config)
    ids = torch.randint(0, len(WORDS), (2, 9))
    expected, before = source(ids).logits, copy.deepcopy(source.state_dict())
    model, processor = dps_hf.from_components(
        source if loaded else folder, VISION, IMAGE_TOKENIZER, tokenizer=tokenizer if loaded else None
    )
    logits = model(ids).logits
    assert torch.equal(logits[..., : len(WORDS)], expected[..., : len(WORDS)])
    assert logits.shape[-1] == model.config.vocab_size == max(config.vocab_size, len(processor.tokenizer))
    assert model.config.tie_word_embeddings == config.tie_word_embeddings
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == config.tie_word_embeddings
    # The source stays as it was.
    assert source.config.vocab_size == config.vocab_size and all(
        map(torch.equal, before.values(), source.state_dict().values())
    )
    assert torch.equal(source(ids).logits, expected) and len(tokenizer) == len(WORDS)


def test_a_drawing_must_fit_into_learned_positions(tokenizer):
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=35)
    wanted = r"max_position_embeddings must be at least 36, for a drawing of 4 codes .*; got 35. Take a decoder with"
    with pytest.raises(ValueError, match=wanted):
        dps_hf.from_components(config, VISION, IMAGE_TOKENIZER, tokenizer)
    config.n_positions = 36
    dps_hf.from_components(config, VISION, IMAGE_TOKENIZER, tokenizer)


def test_computed_positions_that_a_drawing_exceeds_give_a_warning(tokenizer):
    config = LlamaConfig(**(LLAMA.to_dict() | {"max_position_embeddings": 35}))
    with pytest.warns(UserWarning, match="must be at least 36, .*; got 35"):
        dps_hf.from_components(config, VISION, IMAGE_TOKENIZER, tokenizer)


def test_decoder_without_head_gets_one(save, tokenizer):
    source, _ = save(LLAMA)
    decoder: LlamaModel = source.model
    model, _ = dps_hf.from_components(decoder, VISION, IMAGE_TOKENIZER, tokenizer)
    ids = torch.randint(0, len(WORDS), (2, 9))
    assert torch.equal(model.model(ids).last_hidden_state, decoder(ids).last_hidden_state)
    assert 0 < model.lm_head.weight.std() < 0.1
    decoder.save_pretrained(folder := save(LLAMA)[1])
    model, _ = dps_hf.from_components(folder, VISION, IMAGE_TOKENIZER, tokenizer)
    assert torch.equal(model.model(ids).last_hidden_state, decoder(ids).last_hidden_state)


@pytest.mark.parametrize("whole", [True, False], ids=["siglip", "vision model"])
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "path"])
def test_image_features_are_those_of_the_tower(save, tokenizer, whole, loaded):
    text_config = {"vocab_size": 30, **SIZES, "max_position_embeddings": 8}
    config = SiglipConfig(text_config=text_config, vision_config=VISION.to_dict()) if whole else VISION
    source, folder = save(config, SiglipModel if whole else SiglipVisionModel)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    tower = source.vision_model if whole else source
    model, _ = dps_hf.from_components(LLAMA, source if loaded else folder, IMAGE_TOKENIZER, tokenizer)
    features = model.get_image_features(pixels)
    assert torch.equal(features.last_hidden_state, tower(pixels).last_hidden_state)
    assert features.pooler_output.shape == (2, 4, 16)


@pytest.mark.parametrize("kind", ["dps", "vq", "janus"])
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "path"])
def test_codes_and_drawings_are_those_of_the_image_tokenizer(save, tokenizer, kind, loaded):
    janus_config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": 30, **SIZES},
        vision_config={**SIZES, "image_size": 16, "patch_size": 4, "projection_dim": 16},
        vq_config=VQ.to_dict(),
    )
    config, model_class = {
        "dps": (IMAGE_TOKENIZER, DPSImageTokenizer),
        "vq": (VQ, JanusVQVAE),
        "janus": (janus_config, JanusForConditionalGeneration),
    }[kind]
    source, folder = save(config, model_class)
    part = source.model.vqmodel if kind == "janus" else source
    model, processor = dps_hf.from_components(LLAMA, VISION, source if loaded else folder, tokenizer)
    size, count = model.config.drawing_size, model.config.grid_size**2
    assert (size, count) == ((16, 4) if kind == "dps" else (8, 16))
    pixels = torch.rand(2, 3, size, size) * 2 - 1
    codes = model.model.encode_image(pixels)
    assert torch.equal(codes, part.encode(pixels).image_tokens.view(2, count))
    assert torch.equal(model.decode_image_tokens(codes), part.decode(codes).clamp(-1, 1))
    assert not any(weight.requires_grad for weight in model.model.image_tokenizer.parameters())
    assert all(weight.requires_grad for weight in model.model.language_model.parameters())
    # A drawing of codes this tokenizer never saw still has its length, and its pixels.
    prompt = processor(text="w1 w2", return_tensors="pt")
    drawing = model.generate(**prompt, generation_mode="image", do_sample=True)
    assert model.decode_image_tokens(drawing).shape == (1, 3, size, size)


def test_new_rows_resemble_the_old_ones(save, tokenizer):
    torch.manual_seed(0)
    source, _ = save(LLAMA)
    with torch.no_grad():
        source.model.embed_tokens.weight += torch.arange(16)  # a mean of its own for each dimension
        source.lm_head.weight *= 3
    many = DPSImageTokenizerConfig(image_size=16, hidden_sizes=(8,), num_res_blocks=1, levels=(8, 8, 8))
    model, _ = dps_hf.from_components(source, VISION, many, tokenizer)
    pairs = [
        (model.get_input_embeddings().weight, source.model.embed_tokens.weight),
        (model.lm_head.weight, source.lm_head.weight),
    ]
    for grown, old in pairs:
        assert torch.equal(grown[: len(WORDS)], old)
        new = grown[len(WORDS) :]
        assert ((new.mean(0) - old.mean(0)).abs() < 0.2 * old.std(0)).all()
        torch.testing.assert_close(new.std(0), old.std(0), rtol=0.2, atol=0)
        assert torch.pdist(new).min() > 0.2 * old.std(0).mean()  # no two the same


def test_padded_rows_are_drawn_anew(save, tokenizer):
    source, _ = save(TEXT_CONFIGS["qwen2, padded"])
    model, processor = dps_hf.from_components(source, VISION, IMAGE_TOKENIZER, tokenizer)
    first = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert first == len(WORDS)
    assert not torch.isclose(
        model.get_input_embeddings().weight[first:50], source.model.embed_tokens.weight[first:50]
    ).any()


def test_dtype_is_that_of_the_decoder(save, tokenizer, tmp_path):
    source, folder = save(LLAMA)
    source.to(torch.bfloat16).save_pretrained(folder)
    model, _processor = dps_hf.from_components(folder, VISION, IMAGE_TOKENIZER)
    parts = {name: weight.dtype for name, weight in model.named_parameters() if "image_tokenizer" not in name}
    assert set(parts.values()) == {torch.bfloat16} and model.config.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.model.image_tokenizer.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "dps")
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path / "dps")
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("image_tokenizer", [IMAGE_TOKENIZER, VQ], ids=["dps", "vq"])
def test_result_survives_saving(save, tokenizer, tmp_path, image_tokenizer):
    model, processor = dps_hf.from_components(LLAMA, VISION, image_tokenizer, tokenizer)
    model.save_pretrained(tmp_path / "dps")
    processor.save_pretrained(tmp_path / "dps")
    loaded = DPSForConditionalGeneration.from_pretrained(tmp_path / "dps")
    assert {
        config.dtype for config in (loaded.config, *map(model.config.__getattribute__, DPSConfig.sub_configs))
    } == {torch.float32}
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    again = DPSProcessor.from_pretrained(tmp_path / "dps")
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert (again.num_image_tokens, again.grid_size) == (4, model.config.grid_size)
    names = ("eos_token_id", "pad_token_id", "bos_token_id")
    for config in (model.generation_config, loaded.generation_config, loaded.config):
        assert [getattr(config, name) for name in names] == [getattr(again.tokenizer, name) for name in names]


def test_result_trains(save, tokenizer):
    model, processor = dps_hf.from_components(save(LLAMA)[0], VISION, IMAGE_TOKENIZER, tokenizer)
    inputs = processor(
        text="w1 <image> w2 " + processor.drawing_text(range(4)), images=torch.rand(3, 9, 9), return_tensors="pt"
    )
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    untouched = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert all(".image_tokenizer." in name or ".vision_tower.head." in name for name in untouched)


# Vocabulary


def test_ids_are_in_a_row_after_all_text(tokenizer):
    model, processor = dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER, tokenizer)
    config, tokens = (
        model.config,
        processor.tokenizer.convert_ids_to_tokens(range(len(WORDS), model.config.vocab_size)),
    )
    assert tokens == [
        *("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        *("<image>", "<begin_of_image>", "<end_of_image>"),
        *(f"<img_{i}>" for i in range(16)),
    ]
    assert config.image_code_start_id == len(WORDS) + 7 == processor.first_code_id
    assert processor.tokenizer.convert_ids_to_tokens(
        [config.image_token_id, config.boi_token_id, config.eoi_token_id]
    ) == ["<image>", "<begin_of_image>", "<end_of_image>"]
    text = "<|im_start|> w1 <think> w2 </think> <image> <begin_of_image> <img_3> <end_of_image> <|im_end|>"
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).split() == [
        "w1",
        "<think>",
        "w2",
        "</think>",
        "<img_3>",
    ]
    tokenizer = processor.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (
        "<|im_end|>",
        "<|endoftext|>",
        "left",
    )


def test_tokens_that_exist_keep_their_ids(save, tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>", "<image>")])
    chat.eos_token = chat.pad_token = "<|im_end|>"
    source, _ = save(LLAMA, vocab_size=len(chat))
    model, processor = dps_hf.from_components(source, VISION, IMAGE_TOKENIZER, chat)
    assert processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<image>"]) == [40, 41, 42]
    assert model.config.image_token_id == 42 and model.config.eos_token_id == 41
    assert torch.equal(model.get_input_embeddings().weight[:43], source.model.embed_tokens.weight)
    # Padding must not be what ends an answer, or training would leave the end out.
    assert processor.tokenizer.pad_token == "<|endoftext|>"


def test_codes_out_of_a_row_are_refused(tokenizer):
    broken = copy.deepcopy(tokenizer)
    broken.add_tokens(["<img_3>"])
    with pytest.raises(ValueError, match="ids in a row"):
        dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER, broken)


def test_extending_twice_changes_nothing(tokenizer):
    model, processor = dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER, tokenizer)
    again, other = dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER, processor.tokenizer)
    assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.config.to_dict() == model.config.to_dict()


def test_processor_of_another_tokenizer_is_refused(tokenizer):
    model = assemble_model(LLAMA, VISION, IMAGE_TOKENIZER, tokenizer)
    assert make_processor(tokenizer, model.config).first_code_id == model.config.image_code_start_id
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["one more"])
    with pytest.raises(ValueError, match="image_code_start_id"):
        make_processor(longer, model.config)
    for name in ("image_token_id", "boi_token_id", "eoi_token_id"):
        config = copy.deepcopy(model.config)
        setattr(config, name, 0)
        with pytest.raises(ValueError, match=f"{name} must be the id of <.*; got 0"):
            make_processor(tokenizer, config)


def test_tokenizer_is_found_with_the_text(save, tokenizer):
    _, folder = save(LLAMA)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for text in (folder, str(folder), loaded, loaded.config):
        model, processor = dps_hf.from_components(text, VISION, IMAGE_TOKENIZER)
        assert processor.tokenizer.convert_tokens_to_ids("<img_0>") == model.config.image_code_start_id
    alone = assemble_model(folder, VISION, IMAGE_TOKENIZER)
    assert alone.config.image_code_start_id == model.config.image_code_start_id
    assert isinstance(AutoTokenizer.from_pretrained(folder), type(tokenizer))
    with pytest.raises(ValueError, match="tokenizer is needed"):
        dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER)


def test_without_a_tokenizer_new_tokens_follow_the_decoders_rows(save, tmp_path):
    AutoModelForCausalLM.from_config(LLAMA).save_pretrained(tmp_path / "alone")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    for text in (tmp_path / "alone", str(tmp_path / "alone"), loaded, LLAMA):
        config = assemble_model(text, VISION, IMAGE_TOKENIZER).config
        assert (config.image_token_id, config.image_code_start_id) == (len(WORDS), len(WORDS) + 3)
    with pytest.raises(ValueError, match="tokenizer could not be loaded"):
        dps_hf.from_components(tmp_path / "alone", VISION, IMAGE_TOKENIZER)
    (tmp_path / "alone").rename(tmp_path / "gone")
    model = assemble_model(loaded, VISION, IMAGE_TOKENIZER)
    assert model.config.image_code_start_id == len(WORDS) + 3


def test_image_processor_makes_the_size_of_the_tower(tokenizer):
    _, processor = dps_hf.from_components(LLAMA, VISION, VQ, tokenizer)
    assert processor(images=torch.rand(3, 20, 30), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
    assert processor.image_processor.size == {"height": 16, "width": 16} and processor.num_image_tokens == 4


# Refusals


@pytest.mark.parametrize("loaded", [True, False], ids=["config", "path"])
def test_naflex_towers_are_refused(tokenizer, tmp_path, loaded):
    config = Siglip2VisionConfig(**SIZES)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vision must be .*siglip2_vision_model.*not naflex"):
        dps_hf.from_components(LLAMA, config if loaded else tmp_path, IMAGE_TOKENIZER, tokenizer)


def test_components_of_another_kind_are_refused(tokenizer):
    with pytest.raises(ValueError, match="image_tokenizer must be"):
        dps_hf.from_components(LLAMA, VISION, VISION, tokenizer)
    with pytest.raises(ValueError, match="vision must be"):
        dps_hf.from_components(LLAMA, LLAMA, VQ, tokenizer)
    with pytest.raises(ValueError, match="head without bias"):
        dps_hf.from_components(PhiConfig(vocab_size=40, **SIZES), VISION, VQ, tokenizer)
    with pytest.raises(ValueError, match="caches keys and values; got 'mamba'"):
        dps_hf.from_components(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1), VISION, VQ, tokenizer)
    narrow = OPTConfig(vocab_size=40, hidden_size=16, word_embed_proj_dim=8, ffn_dim=16, num_attention_heads=2)
    with pytest.raises(ValueError, match="width of the embeddings, too; got 16, and those of 'opt' have 8"):
        dps_hf.from_components(narrow, VISION, VQ, tokenizer)


@pytest.mark.parametrize("name", ["text", "vision", "image_tokenizer"])
def test_a_part_that_is_nowhere_is_named(tokenizer, tmp_path, name):
    parts = {"text": LLAMA, "vision": VISION, "image_tokenizer": IMAGE_TOKENIZER}
    with pytest.raises(ValueError, match=f"^{name} must be a folder or a name on the Hub; '../nowhere' is no folder"):
        dps_hf.from_components(**parts | {name: "../nowhere"}, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=f"^{name} must be .*{tmp_path}' has no config.json"):
        dps_hf.from_components(**parts | {name: tmp_path}, tokenizer=tokenizer)


def test_a_dps_gives_its_vision_tower_and_image_tokenizer(tokenizer, tmp_path):
    whole, _ = dps_hf.from_components(LLAMA, VISION, IMAGE_TOKENIZER, tokenizer)
    whole.save_pretrained(tmp_path)
    for source in (whole, tmp_path):
        parts = dps_hf.from_components(LLAMA, source, source, tokenizer)[0].model
        for name in ("vision_tower", "image_tokenizer"):
            expected, found = (getattr(model, name).state_dict() for model in (whole.model, parts))
            assert all(found[key].equal(weight) for key, weight in expected.items())


# Published sizes, without their weights


SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    dtype="bfloat16",
)
SMOLLM2_1_7B = LlamaConfig(
    vocab_size=49152,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 130000.0},
    tie_word_embeddings=True,
    dtype="bfloat16",
)
SIGLIP_BASE = SiglipVisionConfig()  # google/siglip-base-patch16-224
SIGLIP2_SO400M = SiglipVisionConfig(  # google/siglip2-so400m-patch14-384
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
)
SIGLIP2_SO400M_PATCH16 = SiglipVisionConfig(**(SIGLIP2_SO400M.to_dict() | {"patch_size": 16, "image_size": 256}))
JANUS_PRO_VQ = JanusVQVAEConfig(num_patches=24)


@pytest.mark.parametrize(
    ("text", "vision", "expected"),
    [
        (SMOLLM2_135M, SIGLIP_BASE, (0.31, 196)),
        (SMOLLM2_1_7B, SIGLIP2_SO400M_PATCH16, (2.25, 256)),
        (SMOLLM2_1_7B, SIGLIP2_SO400M, (2.25, 729)),  # 27 patches of 14 pixels a side, 6 pixels left out
    ],
)
def test_published_sizes_fit_together_on_the_meta_device(text, vision, expected):
    with torch.device("meta"):
        model = assemble_model(text, vision, JANUS_PRO_VQ)
    assert {weight.device.type for weight in model.parameters()} == {"meta"} and model.dtype == torch.bfloat16
    config, (billions, num_image_tokens) = model.config, expected
    assert (config.vocab_size, config.image_code_start_id) == (49152 + 3 + 16384, 49155)
    assert (config.drawing_size, config.grid_size, config.num_image_tokens) == (384, 24, num_image_tokens)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.05)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids = torch.full((2, num_image_tokens), config.image_token_id, device="meta")
    size = vision.image_size
    pixels = torch.empty(2, 3, size, size, device="meta")
    assert model.get_image_features(pixels).pooler_output.shape == (2, num_image_tokens, text.hidden_size)
    assert model(ids).logits.shape == (2, num_image_tokens, config.vocab_size)


@pytest.mark.parametrize(
    ("levels", "at"), [({"levels": (8, 8)}, 0), ({"levels": (4, 4), "colour_levels": (8, 8)}, 16)]
)
def test_codes_of_like_patches_start_with_like_rows(levels, at):
    torch.manual_seed(0)
    codes = DPSImageTokenizerConfig(image_size=16, patch_size=4, hidden_sizes=(8,), **levels)
    text = LlamaConfig(vocab_size=10, hidden_size=64, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = assemble_model(text, SiglipVisionConfig(num_hidden_layers=1), codes)
    start = model.config.image_code_start_id + at
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight[start : start + 64], dim=-1)
    similarity = rows @ rows[0]  # codes count levels of the first channel, then of the second
    assert similarity[1] > 0.8 and similarity[8] > 0.8 and similarity[63] < 0.5
