"""Compares the speed of drawing with that of transformers' Janus, and with drawing one code at a time.

python examples/benchmarks/drawing.py
python examples/benchmarks/drawing.py --model runs/nano --batch_sizes 1 4 16 --rounds 9

Janus gets the decoder of the model, weights included, and as many image codes; its other parts are random. Drawings
are sampled at temperature 1. How many codes a pass of DPS draws depends on the prompts, so these are of several kinds.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from comparison import compare, write_report
from transformers import (
    GenerationConfig,
    HfArgumentParser,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
)

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.inference import load


PROMPTS = (
    "a small red star and two big blue circles",
    "a big orange triangle above a small purple circle",
    "cat, noto style",
    "three green stars",
)
GUIDANCE = 5.0
GOALS = {1: 4.0, 16: 2.0}  # by batch size


@dataclass
class ScriptArguments:
    """
    rounds: number of turns, after one to warm up.
    window: number of codes that a pass looks at; by default chosen by the model.
    """

    model: str = NANO
    output: Path = Path("outputs/benchmarks/drawing.json")
    rounds: int = 5
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16])
    window: int | None = None


def make_janus(model) -> JanusForConditionalGeneration:
    """Makes a Janus model of transformers with the decoder and the number of image codes of `model`."""
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
    janus.model.language_model.load_state_dict(model.model.language_model.state_dict())
    return janus.to(model.device, model.dtype).eval()


def main(script: ScriptArguments) -> None:
    model, processor = load(script.model)
    janus, comparisons = make_janus(model), []
    for batch in script.batch_sizes:
        chats = [[{"role": "user", "content": PROMPTS[row % len(PROMPTS)]}] for row in range(batch)]
        texts = [
            processor.apply_chat_template(chat, add_generation_prompt=True) + processor.boi_token for chat in chats
        ]
        inputs = processor(text=texts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
        options = {**inputs, "generation_mode": "image", "do_sample": True}
        for kind, scale in (("guided", GUIDANCE), ("unguided", 1.0)):
            ours = partial(model.generate, **options, guidance_scale=scale, window=script.window)
            peers = {
                # Janus always computes the unguided half too, and stops with an error at a scale of 1.
                "Janus": partial(janus.generate, **options, guidance_scale=GUIDANCE),
                "one code at a time": partial(model.generate, **options, guidance_scale=scale, window=1),
            }
            for peer_name, peer in peers.items():
                goal = GOALS.get(batch) if peer_name == "Janus" else None
                name = f"drawing, {kind}, batch {batch}"
                torch.manual_seed(0)
                comparisons.append(compare(name, ours, peer, script.rounds, goal=goal, peer_name=peer_name))
    write_report(script.output, comparisons, model=Path(script.model).name, guidance=GUIDANCE)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
