"""Times training steps on drawings that are encoded in each batch, and on drawings that were encoded ahead.

python examples/benchmarks/encoding.py
python examples/benchmarks/encoding.py --layers 32 --steps 20 --batch_size 16

The parts have random weights and published sizes: the width of SmolLM2-360M with a few of its layers, SigLIP-base, and
the image tokenizer of Janus-Pro. Half of the records describe a picture, and half draw one. In each batch drawings are
encoded on the CPU, by the loader; ahead they are encoded where the model is.
"""

import json
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


DECODER = {"vocab_size": 49_152, "hidden_size": 960, "intermediate_size": 2560, "tie_word_embeddings": True}
DECODER |= {"num_attention_heads": 15, "num_key_value_heads": 5, "max_position_embeddings": 2048}
VISION_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISION_TOWER |= {"image_size": 224, "patch_size": 16}
IMAGE_TOKENIZER = {"num_patches": 24}  # 384 pixels, 576 codes


@dataclass
class ScriptArguments:
    """
    layers: of the decoder; SmolLM2-360M has 32.
    steps: timed ones, after one to warm up.
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


def time_steps(model, collate: RecordCollator, records, batch_size: int, steps: int) -> float:
    """Returns the steps per second of training, after one step to warm up."""
    model.train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-6)
    loader = torch.utils.data.DataLoader(records, batch_size, collate_fn=collate)
    start = time.perf_counter()
    for i, batch in enumerate(loader):
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if i == 0:
            start = time.perf_counter()
    return steps / (time.perf_counter() - start)


def main(script: ScriptArguments) -> None:
    torch.manual_seed(0)
    model, processor = from_components(
        text=LlamaConfig(**DECODER, num_hidden_layers=script.layers),
        vision=SiglipVisionConfig(**VISION_TOWER),
        image_tokenizer=JanusVQVAEConfig(**IMAGE_TOKENIZER),
        tokenizer=make_tokenizer(),
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    collate, records = RecordCollator(model, processor), make_records((script.steps + 1) * script.batch_size)
    report = {"parameters": model.num_parameters(), "torch": torch.__version__, "device": str(model.device)}
    report |= {"batch_size": script.batch_size, "layers": script.layers}
    report["live_steps_per_second"] = time_steps(model, collate, records, script.batch_size, script.steps)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)  # so that a second run encodes, too
        start = time.perf_counter()
        ahead = encode_ahead(records, model, processor)
        report["encoded_drawings_per_second"] = len(records) / 2 / (time.perf_counter() - start)
        report["ahead_steps_per_second"] = time_steps(model, collate, ahead, script.batch_size, script.steps)
    report["ratio"] = report["ahead_steps_per_second"] / report["live_steps_per_second"]
    print(json.dumps(report, indent=2))
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
