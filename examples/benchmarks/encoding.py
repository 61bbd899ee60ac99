"""Compares training steps on drawings that were encoded ahead with steps that encode them in each batch.

python examples/benchmarks/encoding.py
python examples/benchmarks/encoding.py --layers 32 --rounds 20 --batch_size 16

The parts have random weights and published sizes: the width of SmolLM2-360M with a few of its layers, SigLIP-base, and
the image tokenizer of Janus-Pro. Half of the records describe a picture, and half draw one. In each batch drawings are
encoded on the CPU, by the loader; ahead they are encoded where the model is.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from comparison import compare, write_report
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import HfArgumentParser, JanusVQVAEConfig, LlamaConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from dps_hf import from_components
from dps_hf.data.codes import encode_ahead
from dps_hf.data.record import record
from dps_hf.training.collator import RecordCollator
from dps_hf.training.trained_parts import freeze_parts


DECODER = {"vocab_size": 49_152, "hidden_size": 960, "intermediate_size": 2560, "tie_word_embeddings": True}
DECODER |= {"num_attention_heads": 15, "num_key_value_heads": 5, "max_position_embeddings": 2048}
VISION_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISION_TOWER |= {"image_size": 224, "patch_size": 16}
IMAGE_TOKENIZER = {"num_patches": 24}  # 384 pixels, 576 codes


@dataclass
class ScriptArguments:
    """
    layers: of the decoder; SmolLM2-360M has 32.
    """

    output: Path = Path("outputs/benchmarks/encoding.json")
    rounds: int = 3
    layers: int = 2
    batch_size: int = 4


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of single bytes, since its text does not matter here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_records(count: int, side: int = 512) -> list:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    caption = "a small dog that runs over a meadow"
    return [
        record("t", [caption], [picture]) if i % 2 else record("t", [picture, "What is it?"], [caption])
        for i, picture in enumerate(map(Image.fromarray, pixels))
    ]


def train_step(model, collate: RecordCollator, records: list) -> None:
    batch = {name: value.to(model.device) for name, value in collate(records).items()}
    model(**batch).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
    model.zero_grad()


def main(script: ScriptArguments) -> None:
    torch.manual_seed(0)
    model, processor = from_components(
        text=LlamaConfig(**DECODER, num_hidden_layers=script.layers),
        vision=SiglipVisionConfig(**VISION_TOWER),
        image_tokenizer=JanusVQVAEConfig(**IMAGE_TOKENIZER),
        tokenizer=make_tokenizer(),
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").train()
    freeze_parts(model, vision_tower=False)
    collate, records = RecordCollator(model, processor), make_records(script.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)  # so that a second run encodes, too
        start = time.perf_counter()
        encoded = encode_ahead(records, model, processor)
        rate = len(records) / 2 / (time.perf_counter() - start)
        compared = compare(
            "training on drawings that were encoded ahead",
            lambda: train_step(model, collate, [encoded[i] for i in range(len(encoded))]),
            lambda: train_step(model, collate, records),
            script.rounds,
            peer_name="encoding in each batch",
        )
    facts = {"parameters": model.num_parameters(), "batch_size": script.batch_size, "layers": script.layers}
    write_report(script.output, [compared], drawings_encoded_per_second=rate, **facts)


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
