"""Tiny models and processors, built in memory: nothing here needs the network."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from dps_hf.components import CHAT_TEMPLATE
from dps_hf.model.configuration_dps import DPSConfig, DPSImageTokenizerConfig
from dps_hf.model.image_processing_dps import DPSImageProcessor
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


LEVELS = (4, 4)
CODEBOOK_SIZE = 16
# 256 bytes, then these, then the codes: the ids of the tokenizer are those of the config.
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|spare|>"]
IMAGE_TOKENS = ["<image>", "<begin_of_image>", "<end_of_image>"]
CODE_TOKENS = [f"<img_{code}>" for code in range(CODEBOOK_SIZE)]
TOKENS = [*CONTROL_TOKENS, *IMAGE_TOKENS, *CODE_TOKENS]
TOKEN_IDS = {token: 256 + index for index, token in enumerate(TOKENS)}
VOCAB_SIZE = 256 + len(TOKENS)


def pytest_configure(config):
    """Names the markers of transformers' own tests, which `test_common_mixins.py` inherits."""
    kinds = ("accelerate_tests", "generate", "timeout", "torch_compile_test")
    kinds += tuple(f"{name}_test" for name in ("flash_attn", "flash_attn_3", "flash_attn_4"))
    kinds += tuple(f"{name}_export_test" for name in ("torch", "onnx", "executorch"))
    for kind in kinds:
        config.addinivalue_line("markers", f"{kind}: of transformers' mixins")


@pytest.fixture(scope="session")
def make_text_config():
    """Builds a two-layer Llama config with the tiny vocabulary; keyword arguments override its fields."""

    def make(config_class=LlamaConfig, **overrides):
        fields = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.5,  # large, so that logits differ by more than rounding does
            "bos_token_id": None,
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        }
        return config_class(**(fields | overrides))

    return make


@pytest.fixture(scope="session")
def make_decoder_config(make_text_config):
    """Builds the config of another decoder by its model type."""

    def make(name: str):
        if name == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
            ids = {
                "bos_token_id": None,
                "eos_token_id": TOKEN_IDS["<|im_end|>"],
                "pad_token_id": TOKEN_IDS["<|endoftext|>"],
            }
            return GPT2Config(vocab_size=VOCAB_SIZE, initializer_range=0.5, **sizes, **ids)
        if name == "qwen2":
            return make_text_config(Qwen2Config)
        # A window shorter than the prompts, so that it is not idle.
        layers = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
        return make_text_config({"gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}[name], **layers)

    return make


@pytest.fixture(scope="session")
def make_config(make_text_config):
    """Builds a DPSConfig: pictures of 16 pixels, 4 placeholders for one, drawings of 2 x 2 codes out of 16."""

    def make(**overrides) -> DPSConfig:
        fields = {
            "text_config": make_text_config(),
            "vision_config": SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            ),
            "image_tokenizer_config": DPSImageTokenizerConfig(
                image_size=16, patch_size=4, hidden_sizes=(8, 16), num_res_blocks=1, levels=LEVELS
            ),
            "image_token_id": TOKEN_IDS["<image>"],
            "boi_token_id": TOKEN_IDS["<begin_of_image>"],
            "eoi_token_id": TOKEN_IDS["<end_of_image>"],
            "image_code_start_id": TOKEN_IDS["<img_0>"],
        }
        return DPSConfig(**(fields | overrides))

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """Builds a fresh model of fixed random weights, for tests that change it."""

    def make(config: DPSConfig | None = None, **overrides) -> DPSForConditionalGeneration:
        torch.manual_seed(0)
        model = DPSForConditionalGeneration(config or make_config(**overrides)).eval()
        # The connector's default weights are small: pictures should matter as much as words do.
        torch.nn.init.normal_(model.model.connector.linear_2.weight, std=0.5)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_config(make_config) -> DPSConfig:
    """Read only; `make_config` builds one of your own."""
    return make_config()


@pytest.fixture(scope="session")
def tiny_model(make_model) -> DPSForConditionalGeneration:
    """Read only; `make_model` builds one of your own."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # `skip_special_tokens` must not drop <think> nor codes.
    for token in TOKENS:
        (tokenizer.add_tokens if token in ("<think>", "</think>", *CODE_TOKENS) else tokenizer.add_special_tokens)(
            [token]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tiny_processor(tiny_tokenizer, tiny_config) -> DPSProcessor:
    """Speaks to `tiny_model`: same ids, same picture size, same drawings."""
    return DPSProcessor(
        DPSImageProcessor(size={"height": 16, "width": 16}),
        tiny_tokenizer,
        chat_template=CHAT_TEMPLATE,
        num_image_tokens=tiny_config.num_image_tokens,
        grid_size=tiny_config.grid_size,
    )


@pytest.fixture(scope="session")
def token_ids() -> dict[str, int]:
    """Ids of the tokens that are not bytes, by name."""
    return TOKEN_IDS


@pytest.fixture
def pictures() -> torch.Tensor:
    """Three different pictures, `(3, 3, 16, 16)` in [-1, 1]."""
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def text_ids() -> torch.Tensor:
    """Two texts, `(2, 7)`."""
    return torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def save_adapter():
    """Puts a random adapter on a saved base, to which `tokens` are added, and saves it into a folder.

    Returns the two unmerged, and the ids of a text that has old tokens, codes and the new tokens. `rows` are those of
    the embeddings; `beside` is what is saved with the adapter: "processor", "tokenizer" or nothing.
    """
    from peft import LoraConfig, get_peft_model

    def save(base, folder, tokens=("<cat>", "<dog>"), rows=None, beside="processor", config=None, **fields):
        torch.manual_seed(0)
        model, processor = DPSForConditionalGeneration.from_pretrained(base), DPSProcessor.from_pretrained(base)
        processor.tokenizer.add_tokens(list(tokens))
        model.resize_token_embeddings(rows or len(processor.tokenizer))
        fields.setdefault("target_modules", r"model\.language_model\..*up_proj")
        adapted = get_peft_model(model, config or LoraConfig(r=2, init_lora_weights=False, **fields))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) / 10)
        adapted.save_pretrained(folder)
        if beside:
            (processor if beside == "processor" else processor.tokenizer).save_pretrained(folder)
        names = ["h", "e", "<img_3>", "<img_15>", "<|im_end|>", *tokens]
        return adapted.eval(), torch.tensor([processor.tokenizer.convert_tokens_to_ids(names)])

    return save


@pytest.fixture(scope="session")
def snapshot():
    """What lies in a folder: each file's bytes and when it was written."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return take


@pytest.fixture(scope="session")
def saved_model(make_model, make_config, make_text_config, tiny_processor, tmp_path_factory) -> str:
    """A folder with a random model that answers in a few bytes, and has room for the longest records of the tasks."""
    folder = tmp_path_factory.mktemp("tiny")
    model = make_model(make_config(text_config=make_text_config(max_position_embeddings=1024)))
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=4,
        guidance_scale=3.0,
        do_sample=True,
        top_k=7,
    )
    norm = model.model.language_model.norm.weight.data
    norm.copy_(torch.linspace(0.05, 2, len(norm)))  # as training leaves them: some are near 0
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)
