"""Times generation and compares it with alternatives on the same machine.

python examples/benchmarks/generation.py
python examples/benchmarks/generation.py --model runs/nano --repeats 9

The alternatives are guidance with two forward passes, and the Janus model of transformers at the same size. The cases
take turns (A B C, A B C, ...), so that other load on the machine affects all of them, and each figure is the median
over the turns. Seconds depend on the machine, ratios much less.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import (
    GenerationConfig,
    HfArgumentParser,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.inference import load


BATCH = 16
PREFILL = (8, 256)  # batch, tokens
MATMUL = 1024  # side of the square matrices whose product measures the peak rate of the machine
GUIDANCE = 3.0


@dataclass
class ScriptArguments:
    """
    repeats: number of turns, after one turn to warm up.
    """

    model: str = NANO
    output: Path = Path("outputs/benchmarks.json")
    repeats: int = 5


def make_janus(model) -> JanusForConditionalGeneration:
    """Makes a Janus model of transformers with random weights, and the decoder size and image codes of `model`."""
    config, text_config = model.config, model.config.text_config
    janus = JanusForConditionalGeneration(
        JanusConfig(
            text_config=text_config.to_dict(),
            vision_config=JanusVisionConfig(
                hidden_size=config.vision_config.hidden_size,
                num_hidden_layers=1,
                num_attention_heads=config.vision_config.num_attention_heads,
                image_size=config.drawing_size,
                patch_size=config.drawing_size // config.grid_size,
                num_image_tokens=config.num_codes,
                projection_dim=config.hidden_size,
            ),
            vq_config=JanusVQVAEConfig(
                num_embeddings=config.codebook_size,
                base_channels=32,
                channel_multiplier=[1, 1],
                latent_channels=32,
                num_res_blocks=1,
                projection_dim=config.hidden_size,
                image_token_embed_dim=config.hidden_size,
            ),
            image_token_id=config.image_token_id,
        )
    )
    janus.generation_config = GenerationConfig(
        bos_token_id=0, pad_token_id=text_config.pad_token_id, generation_kwargs={"boi_token_id": config.boi_token_id}
    )
    return janus.to(model.device).eval()


def make_cases(model, prompt: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Makes the functions to time. `prompt` contains the token ids of one prompt, which is repeated in a batch."""
    janus, options = make_janus(model), {"generation_mode": "image", "do_sample": True}

    def inputs(batch: int) -> dict:
        return {"inputs": prompt.repeat(batch, 1), "attention_mask": torch.ones_like(prompt).repeat(batch, 1)}

    def dps(batch: int, guidance_scale: float) -> object:
        return model.generate(**inputs(batch), **options, guidance_scale=guidance_scale)

    def two_passes(batch: int) -> object:
        guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(GUIDANCE, model)
        return model.generate(**inputs(batch), **options, guidance_scale=1.0, logits_processor=[guidance])

    def janus_drawing(batch: int) -> object:
        return janus.generate(**inputs(batch), **options, guidance_scale=GUIDANCE)

    timed: dict[str, Callable[[], object]] = {}
    for batch in (1, BATCH):
        timed |= {
            f"guided_{batch}": lambda batch=batch: dps(batch, GUIDANCE),
            f"unguided_{batch}": lambda batch=batch: dps(batch, 1.0),
            f"two_passes_{batch}": lambda batch=batch: two_passes(batch),
            f"janus_{batch}": lambda batch=batch: janus_drawing(batch),
        }
    text = torch.randint(0, model.config.image_token_id, PREFILL, device=model.device)
    square = torch.rand(MATMUL, MATMUL, device=model.device, dtype=model.dtype)
    timed["prefill"] = lambda: model(text, logits_to_keep=1)
    timed["matmul"] = lambda: torch.mm(square, square)
    return timed


@torch.no_grad()
def time_cases(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Times all cases in turns and returns the median of each in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats + 1):
        print(f"turn {turn} of {repeats}" if turn else "warm-up", flush=True)
        for name, run in timed.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summarise(model, time_of: dict[str, float]) -> dict[str, float]:
    """Computes rates and ratios from the seconds."""
    figures = {}
    for batch in (1, BATCH):
        for kind in ("guided", "unguided"):
            figures[f"drawings_per_second.{kind}.batch_{batch}"] = batch / time_of[f"{kind}_{batch}"]
        guided = time_of[f"guided_{batch}"]
        figures[f"speedup.one_doubled_batch_over_two_passes.batch_{batch}"] = time_of[f"two_passes_{batch}"] / guided
        figures[f"speedup.dps_over_janus.batch_{batch}"] = time_of[f"janus_{batch}"] / guided
        figures[f"cost.guided_over_unguided.batch_{batch}"] = guided / time_of[f"unguided_{batch}"]

    # Counts one multiplication with each weight per token, and not attention, so the shares are a lower bound.
    decoder = sum(
        p.numel() for name, p in model.model.language_model.named_parameters() if p.ndim == 2 and "embed" not in name
    )
    head, limit = model.lm_head.weight.numel(), 2 * MATMUL**3 / time_of["matmul"]
    figures["matmul_gflop_per_second"] = limit / 1e9
    rows, columns = PREFILL
    tokens = rows * columns
    figures["tokens_per_second.prefill"] = tokens / time_of["prefill"]
    figures["share_of_matmul_limit.prefill"] = 2 * (tokens * decoder + rows * head) / time_of["prefill"] / limit
    for batch in (1, BATCH):
        rate = batch * (model.config.num_codes + 1) / time_of[f"unguided_{batch}"]
        figures[f"tokens_per_second.decoding.batch_{batch}"] = rate
        figures[f"share_of_matmul_limit.decoding.batch_{batch}"] = 2 * rate * (decoder + head) / limit
    return {name: round(value, 4) for name, value in figures.items()}


def main(script: ScriptArguments) -> None:
    model, processor = load(script.model)
    chat = [{"role": "user", "content": "a small red star and two big blue circles"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True) + processor.boi_token
    prompt = processor(text=text, return_tensors="pt")["input_ids"].to(model.device)

    time_of = time_cases(make_cases(model, prompt), script.repeats)
    figures = summarise(model, time_of)

    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "device": model.device.type}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    report = {**machine, **versions, "repeats": script.repeats, "seconds": time_of, "figures": figures}
    script.output.parent.mkdir(parents=True, exist_ok=True)
    script.output.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:56}{value:12.3f}")
    print(f"\nThe full report is {script.output}.")


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
