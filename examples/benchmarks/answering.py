"""Compares answers about a picture with SmolVLM of transformers, and the decoding of words with the machine's memory.

python examples/benchmarks/answering.py
python examples/benchmarks/answering.py --layers 4 --precisions bfloat16 --rounds 3

Both models have a decoder of the shape of SmolLM2-135M, the same small vision tower, the same vocabulary, and random
weights. A prompt is a picture of 64 tokens and 32 words, and an answer has `words` tokens, chosen greedily. The last
cases ask 8 questions about one picture. The limit of the machine is a copy of as many bytes as the decoder's weights:
a step of decoding reads them all once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from comparison import Comparison, compare, write_report
from transformers import (
    HfArgumentParser,
    LlamaConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMVisionConfig,
)

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.inference import load
from dps_hf.model.configuration_dps import DPSConfig, DPSImageTokenizerConfig
from dps_hf.model.modeling_dps import DPSForConditionalGeneration


WORDS, CODES, PICTURE_TOKENS, PROMPT_WORDS = 49_152, 4096, 64, 32
IMAGE_TOKEN = WORDS - 3
DECODER = {"vocab_size": WORDS + CODES, "hidden_size": 576, "intermediate_size": 1536, "tie_word_embeddings": True}
DECODER |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}
DECODER |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
TOWER |= {"image_size": 64, "patch_size": 8}


@dataclass
class ScriptArguments:
    """
    layers: of the decoder; SmolLM2-135M has 30.
    words: tokens of an answer.
    """

    output: Path = Path("outputs/benchmarks/answering.json")
    rounds: int = 5
    layers: int = 30
    words: int = 64
    precisions: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])


def make_models(layers: int, dtype: torch.dtype) -> tuple:
    """Makes a DPS and a SmolVLM without pixel shuffle, so that a picture takes as many tokens in both."""
    text = LlamaConfig(**DECODER, num_hidden_layers=layers)
    tokens = {"image_token_id": IMAGE_TOKEN, "boi_token_id": IMAGE_TOKEN + 1, "eoi_token_id": IMAGE_TOKEN + 2}
    config = DPSConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        image_tokenizer_config=DPSImageTokenizerConfig(
            image_size=64, patch_size=8, hidden_sizes=(32, 64), num_res_blocks=1, levels=(8, 8, 8, 8)
        ),
        image_code_start_id=WORDS,
        **tokens,
    )
    smolvlm = SmolVLMConfig(
        text_config=text,
        vision_config=SmolVLMVisionConfig(**TOWER),
        image_token_id=IMAGE_TOKEN,
        scale_factor=1,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    models = (DPSForConditionalGeneration(config), SmolVLMForConditionalGeneration(smolvlm))
    return tuple(model.to(dtype).eval() for model in models)


def make_prompts(batch: int, shared: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes token ids `(batch, 96)` and pixels `(batch, 3, 64, 64)`; if `shared`, all pictures are the same."""
    pictures = torch.full((batch, PICTURE_TOKENS), IMAGE_TOKEN)
    ids = torch.cat([pictures, torch.randint(10, IMAGE_TOKEN, (batch, PROMPT_WORDS))], dim=1)
    pixels = torch.rand(1 if shared else batch, 3, TOWER["image_size"], TOWER["image_size"]) * 2 - 1
    return ids, pixels.expand(batch, -1, -1, -1)


def make_answer(model, ids: torch.Tensor, pixels: torch.Tensor, words: int) -> Callable[[], torch.Tensor]:
    options = {"max_new_tokens": words, "min_new_tokens": words, "do_sample": False}
    return lambda: model.generate(
        input_ids=ids, pixel_values=pixels.to(model.dtype), attention_mask=torch.ones_like(ids), **options
    )


@torch.no_grad()
def compare_with_copy(name: str, model, words: int, rounds: int) -> Comparison:
    """Compares reading the decoder's weights in each step with copying as many bytes."""
    weights = [*model.model.language_model.parameters()]
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    ids = torch.randint(10, model.config.boi_token_id - 1, (1, PROMPT_WORDS))
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False}

    def decode():
        return model.generate(ids, max_new_tokens=words, min_new_tokens=words, **options)

    def copy():
        for _ in range(words):
            target.copy_(source)

    return compare(name, decode, copy, rounds, goal=0.6, peer_name="a copy of its bytes")


def main(script: ScriptArguments) -> None:
    torch.manual_seed(0)
    comparisons = []
    for precision in script.precisions:
        ours, smolvlm = make_models(script.layers, getattr(torch, precision))
        for batch, shared in ((1, False), (8, False), (8, True)):
            ids, pixels = make_prompts(batch, shared)
            name = f"answers, {precision}, batch {batch}" + (", one picture" if shared else "")
            cases = (
                make_answer(ours, ids, pixels, script.words),
                make_answer(smolvlm, ids, pixels[:, None], script.words),
            )
            goal = 1.3 if batch == 1 else 1.0
            comparisons.append(compare(name, *cases, script.rounds, goal=goal, peer_name="SmolVLM"))
        name = f"words of a 135M decoder, {precision}"
        comparisons.append(compare_with_copy(name, ours, script.words, script.rounds))
        del ours, smolvlm
        nano = load(NANO)[0].to(getattr(torch, precision))
        comparisons.append(compare_with_copy(f"words of dps-nano, {precision}", nano, script.words, script.rounds))
    write_report(script.output, comparisons, layers=script.layers, words=script.words)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
