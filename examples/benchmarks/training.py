"""Compares training steps with SmolVLM through trl's SFTTrainer, with nanoVLM's own loop, and DPO with its passes.

python examples/benchmarks/training.py
python examples/benchmarks/training.py --layers 4 --precisions bf16 --peers smolvlm
python examples/benchmarks/training.py --nanovlm path/to/nanoVLM

All models have the shape of SmolLM2-135M with a frozen SigLIP-base, random weights, and the same records in a batch:
conversations with and without a picture, whose answers alone are learned. DPS packs them and is trained by
`PackingSFTTrainer`. SmolVLM gets the same tokens in a padded batch. nanoVLM packs them with its own code into rows of
`packed_length`, and its models and its loop are those of its repository, which is cloned into `--nanovlm`; without
network it is left out. A step is the collation, forward and backward passes, clipping and AdamW. Since the records are
the same, the ratio of the seconds is that of the tokens per second, padding not counted. A step of `DPOTrainer` is
compared with the passes that it needs: one of the policy, forward and backward, and one of the reference.
"""

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from comparison import compare, measure, write_report
from datasets import Dataset
from encoding import VISION_TOWER, make_tokenizer
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    HfArgumentParser,
    LlamaConfig,
    PrinterCallback,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from dps_hf import from_components
from dps_hf.command_line import run_script
from dps_hf.data.record import record
from dps_hf.data.sources import make_lazy_dataset
from dps_hf.model.configuration_dps import DPSImageTokenizerConfig
from dps_hf.training.collator import RecordCollator
from dps_hf.training.packing import PackingCollator
from dps_hf.training.sft_trainer import PackingSFTTrainer
from dps_hf.training.trained_parts import freeze_parts


DECODER = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "tie_word_embeddings": True}
DECODER |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 1e5}
NANOVLM = "https://github.com/huggingface/nanoVLM"
MATMUL = (2048, 576, 1536)  # the shape whose products measure the machine's rate


@dataclass
class ScriptArguments:
    """
    layers: of the decoder; SmolLM2-135M has 30.
    batch_size: conversations in a step.
    packed_length: tokens in a packed row.
    precisions: `bf16`, which is float32 weights under autocast, and `fp32`.
    peers: which of `smolvlm`, `nanovlm` and `dpo` DPS is compared with.
    nanovlm: folder of a clone of nanoVLM, which is made if it is missing.
    """

    output: Path = Path("outputs/benchmarks/training.json")
    rounds: int = 3
    layers: int = 30
    batch_size: int = 8
    packed_length: int = 512
    precisions: list[str] = field(default_factory=lambda: ["bf16", "fp32"])
    peers: list[str] = field(default_factory=lambda: ["smolvlm", "nanovlm", "dpo"])
    nanovlm: Path = Path("outputs/nanoVLM")


def make_records(count: int) -> list:
    """Makes conversations with short and long answers; every other one begins with a picture."""
    rng = np.random.default_rng(0)
    texts = iter(rng.integers(97, 123, (count, 2, 1000), dtype=np.uint8))
    lengths = rng.lognormal([3, 3.5], 1, (count, 2)).clip(4, 400).astype(int)
    made = []
    for i, (asked, said) in enumerate(lengths):
        question, answer = (bytes(text[:n]).decode() for text, n in zip(next(texts), (asked, said)))
        pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        made.append(record("chat", [Image.fromarray(pixels), question] if i % 2 else [question], [answer]))
    return made


def make_dps(layers: int):
    torch.manual_seed(0)
    model, processor = from_components(
        text=LlamaConfig(**DECODER, num_hidden_layers=layers),
        vision=SiglipVisionConfig(**VISION_TOWER),
        image_tokenizer=DPSImageTokenizerConfig(),
        tokenizer=make_tokenizer(),
    )
    freeze_parts(model, vision_tower=False)
    return model, processor


def make_smolvlm(model) -> SmolVLMForConditionalGeneration:
    """A SmolVLM of the shape of a DPS: the same decoder, vocabulary, tower and image tokens."""
    config = model.config
    smolvlm = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=config.text_config.to_dict(),
            vision_config=dict(VISION_TOWER),
            scale_factor=1,
            image_token_id=config.image_token_id,
            pad_token_id=config.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    smolvlm.model.vision_model.requires_grad_(False)
    return smolvlm


def collate_for_smolvlm(collate: RecordCollator) -> Callable[[list], dict]:
    def collate_records(records: list) -> dict:
        batch = collate(records)
        # SmolVLM takes the pictures of each row, and no row without one: blank ones are left out again.
        given, counts = batch["pixel_values"], [len(one["images"]) for one in records]
        padded = given.new_zeros(len(records), max(counts), *given.shape[1:])
        for row, pictures in enumerate(given.split(counts)):
            padded[row, : len(pictures)] = pictures
        return {**batch, "pixel_values": padded}

    return collate_records


def make_arguments(batch_size: int, precision: str) -> dict:
    return {
        "output_dir": tempfile.mkdtemp(), "max_steps": 1, "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "bf16": precision == "bf16",
        "optim": "adamw_torch_fused", "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "remove_unused_columns": False, "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(), "max_length": None,
    }  # fmt: skip


def make_trainer(trainer_class, model, processor, collate, records: list, precision: str) -> SFTTrainer:
    trainer = trainer_class(
        model=model,
        args=SFTConfig(**make_arguments(len(records), precision), dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=collate,
        train_dataset=make_lazy_dataset(records),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def clone_nanovlm(folder: Path) -> bool:
    """Whether nanoVLM's code is in the folder, into which it is cloned if it can be."""
    if not (folder / "models").exists():
        done = subprocess.run(["git", "clone", "--depth", "1", NANOVLM, str(folder)])
        if done.returncode:
            print(f"nanoVLM could not be cloned, so it is left out. Give a clone of {NANOVLM} as --nanovlm.")
            return False
    sys.path.insert(0, str(folder.resolve()))
    return True


def make_nanovlm_step(model, processor, collate: RecordCollator, script: ScriptArguments, precision: str) -> Callable:
    """One step of nanoVLM's `train.py`: its packing, collator and model, and the lines of its loop."""
    # Its tokenizer would be downloaded, and is needed for the placeholder's id alone.
    known = type("Tokenizer", (), {"image_token_id": model.config.image_token_id})
    sys.modules["data.processors"] = SimpleNamespace(get_tokenizer=lambda *_: known)
    from data.advanced_datasets import ConstantLengthDataset
    from data.collators import VQACollator
    from models.config import VLMConfig
    from models.vision_language_model import VisionLanguageModel

    tokenizer, config = processor.tokenizer, model.config
    peer = VisionLanguageModel(
        VLMConfig(
            vit_img_size=VISION_TOWER["image_size"],
            lm_hidden_dim=DECODER["hidden_size"],
            lm_inter_dim=DECODER["intermediate_size"],
            lm_n_heads=DECODER["num_attention_heads"],
            lm_n_kv_heads=DECODER["num_key_value_heads"],
            lm_n_blocks=script.layers,
            lm_vocab_size=config.vocab_size,
            mp_pixel_shuffle_factor=1,
            mp_image_token_length=config.num_image_tokens,
        ),
        load_backbone=False,
    )
    peer.train().to(model.device)
    peer.vision_encoder.requires_grad_(False)
    learned = [weight for weight in peer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-6)
    pack = VQACollator(tokenizer, script.packed_length)

    class Samples:
        """What nanoVLM's own dataset gives: each record as tokens, labels of the next tokens, and pictures."""

        mp_image_token_length, dataset = config.num_image_tokens, []

        def __init__(self, records):
            self.tokenizer, self.records = tokenizer, records

        def __len__(self):
            return len(self.records)

        def __getitem__(self, index):
            one = collate([self.records[index]])
            labels = torch.nn.functional.pad(one["labels"][0], (0, 1), value=-100)[1:]
            pictures = list(one["pixel_values"][:, None]) if "pixel_values" in one else []
            return {
                "input_ids": one["input_ids"][0], "labels": labels, "attention_mask": one["attention_mask"][0],
                "images": pictures,
            }  # fmt: skip

    def step(records: list) -> None:
        rows = ConstantLengthDataset(
            Samples(records), max_sample_length=script.packed_length, seq_length=script.packed_length,
            num_of_sequences=script.batch_size,
        )  # fmt: skip
        batch = pack(list(rows))
        ids, mask, labels = (batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels"))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            _, loss = peer(ids, batch["images"], attention_mask=mask, targets=labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def make_dpo_trainer(model, reference, processor, records: list, precision: str) -> DPOTrainer:
    """Each record's answer is preferred to that of the next record."""
    rows = []
    for one, other in zip(records, [*records[1:], records[0]], strict=True):
        prompt, chosen, rejected = one["messages"][:1], one["messages"][1:], other["messages"][1:]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "images": one["images"]})
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**make_arguments(len(rows), precision)),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_passes(trainer: DPOTrainer) -> Callable[[], None]:
    """The passes of a step: those of the policy and one of the reference, on the same batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)

    def run() -> None:
        inputs = {**batch, "labels": labels, "use_cache": False, "fused_lm_head": True}
        with trainer.accelerator.autocast():
            loss = trainer.model(**inputs).loss
            with torch.no_grad():
                trainer.ref_model(**inputs)
        loss.backward()
        trainer.model.zero_grad()

    return run


def measure_share(step: Callable[[], object], precision: str, device: torch.device) -> dict[str, float]:
    """The products of a step, as a share of what the machine can do in its time."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner, columns = MATMUL
    left, right = (torch.randn(size, inner, dtype=dtype, device=device) for size in (rows, columns))
    with FlopCounterMode(display=False) as counter:
        step()
    seconds, products = [], []
    for _ in range(3):
        products.append(measure(lambda: [left @ right.T for _ in range(20)]) / 20)
        seconds.append(measure(step))
    limit = 2 * rows * inner * columns / min(products)
    share = counter.get_total_flops() / min(seconds) / limit
    print(f"training, {precision}: {share:.2f} of the {limit / 1e9:.0f} GFLOP/s of the machine's matrix products")
    return {"matmul_gflop_per_second": limit / 1e9, "share_of_matmul_rate": share}


def main(script: ScriptArguments) -> None:
    records, comparisons, facts = make_records(script.batch_size), [], {}
    model, processor = make_dps(script.layers)
    pad, pack = RecordCollator(model, processor), PackingCollator(model, processor, packed_length=script.packed_length)
    lengths = pad(records)["attention_mask"].sum(1)
    facts["tokens_of_a_step"] = int(lengths.sum())
    facts["padding"] = 1 - int(lengths.sum()) / int(lengths.max() * len(lengths))
    facts["padding_packed"] = 1 - int(lengths.sum()) / pack(records)["input_ids"].numel()
    facts["learned"] = int((pad(records)["labels"] != -100).sum()) / int(lengths.sum())
    print(facts)
    smolvlm = make_smolvlm(model) if "smolvlm" in script.peers else None
    has_nanovlm = "nanovlm" in script.peers and clone_nanovlm(script.nanovlm)
    for precision in script.precisions:
        name = f"training, {script.layers} layers, {precision}"
        ours = make_trainer(PackingSFTTrainer, model, processor, pack, records, precision)
        if smolvlm:
            theirs = make_trainer(SFTTrainer, smolvlm, processor, collate_for_smolvlm(pad), records, precision)
            peer = "SmolVLM through SFTTrainer"
            comparisons.append(compare(name, ours.train, theirs.train, script.rounds, 1.3, peer))
        if has_nanovlm:
            step = make_nanovlm_step(model, processor, pad, script, precision)
            comparisons.append(
                compare(name, ours.train, lambda s=step: s(records), script.rounds, 1.2, "nanoVLM's loop")
            )
        if smolvlm or has_nanovlm:
            facts[precision] = measure_share(ours.train, precision, model.device)
        if "dpo" in script.peers:
            some = records[: max(1, script.batch_size // 4)]
            trainer = make_dpo_trainer(model, copy.deepcopy(model), processor, some, precision)
            passes, name = make_passes(trainer), f"DPO, {script.layers} layers, {precision}"
            comparisons.append(compare(name, trainer.train, passes, script.rounds, 1 / 1.1, "its passes"))
    write_report(script.output, comparisons, **facts)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
