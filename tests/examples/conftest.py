"""The examples as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    JanusVQVAE,
    JanusVQVAEConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example():
    """Imports an example by its path below `examples/`, without running it."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{Path(path).stem}", EXAMPLES / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shrunk_parts(tmp_path_factory, make_text_config) -> dict:
    """Folders of a Llama whose tokenizer knows no picture, a SigLIP and Janus' VQ, shrunk."""
    folder = tmp_path_factory.mktemp("parts")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    fields = {"vocab_size": 259, "eos_token_id": 258, "pad_token_id": 256, "max_position_embeddings": 1024}
    fields |= {"initializer_range": 0.02}
    for tied in (True, False):
        text = LlamaForCausalLM(make_text_config(tie_word_embeddings=tied, **fields))
        text.save_pretrained(folder / ("text" if tied else "untied"))
        tokenizer.save_pretrained(folder / ("text" if tied else "untied"))
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**tower, image_size=16, patch_size=8)).save_pretrained(folder / "vision")
    vq = {"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    vq |= {"latent_channels": 32, "num_patches": 2, "z_channels": 8, "double_latent": False}
    JanusVQVAE(JanusVQVAEConfig(**vq)).save_pretrained(folder / "codes")
    return {name: str(folder / name) for name in ("text", "untied", "vision", "codes")}
