"""Times training steps on drawings that are encoded in each batch, and on drawings that were encoded ahead.

python examples/benchmarks/encoding.py
python examples/benchmarks/encoding.py --layers 32 --steps 20 --batch_size 16

The parts have random weights and published sizes: the width of SmolLM2-360M with a few of its layers, SigLIP-base, and
the image tokenizer of Janus-Pro. Half of the records describe a picture, and half draw one. In each batch drawings are
encoded on the CPU, by the loader; ahead they are encoded where the model is. The two take turns, and each figure is
the median over the turns.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
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
    steps: timed steps of each kind, after one to warm up.
    """

    output: Path = Path("outputs/encoding.json")
    layers: int = 2
    batch_size: int = 4
    steps: int = 3


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


def time_step(model, collate: RecordCollator, records: list) -> float:
    """Returns the seconds of a training step, collation included."""
    start = time.perf_counter()
    batch = {name: value.to(model.device) for name, value in collate(records).items()}
    model(**batch).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
    model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
    collate, size = RecordCollator(model, processor), script.batch_size
    records = make_records((script.steps + 1) * size)
    report = {"parameters": model.num_parameters(), "torch": torch.__version__, "device": str(model.device)}
    report |= {"batch_size": size, "layers": script.layers}
    seconds: dict[str, list[float]] = {"live": [], "ahead": []}
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)  # so that a second run encodes, too
        start = time.perf_counter()
        ahead = encode_ahead(records, model, processor)
        report["drawings_encoded_per_second"] = len(records) / 2 / (time.perf_counter() - start)
        for step in range(script.steps + 1):
            for way, source in (("live", records), ("ahead", ahead)):
                taken = time_step(model, collate, [source[i] for i in range(step * size, (step + 1) * size)])
                seconds[way] += [taken] if step else []
    report["steps_per_second"] = {way: 1 / statistics.median(taken) for way, taken in seconds.items()}
    print(json.dumps(report, indent=2))
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
