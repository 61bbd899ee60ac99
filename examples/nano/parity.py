"""Checks that servers of dps-nano give what transformers gives: greedy answers, their first probability, drawings.

python -m dps_hf.serving.gguf dps_hf/checkpoints/dps-nano outputs/gguf --type f32
llama-server --model outputs/gguf/dps-nano-f32.gguf --mmproj outputs/gguf/mmproj-dps-nano-f32.gguf \\
    --cache-type-k f32 --cache-type-v f32 --flash-attn off --port 8080
python examples/nano/parity.py llama_server=http://127.0.0.1:8080/v1

python -m llama_cpp.server --model outputs/gguf/dps-nano-f32.gguf --chat_format mtmd --n_ctx 1024 --port 8081 \\
    --clip_model_path outputs/gguf/mmproj-dps-nano-f32.gguf --logits_all true --type_k 0 --type_v 0
python -m vllm.entrypoints.openai.api_server --model dps_hf/checkpoints/dps-nano --trust-remote-code --dtype float32 \\
    --mm-processor-cache-gb 0 --port 8000
python examples/nano/parity.py llama_cpp_python=http://127.0.0.1:8081/v1 vllm=http://127.0.0.1:8000/v1

With --think only worked answers are compared. For them llama_cpp.server needs
--chat_template_kwargs '{"enable_thinking": true}'.

The figures of each server are written under its name into one JSON file. If an answer or a drawing differs, the file
says at which token, and how much less likely the token of the server is in transformers; hundredths are a near tie.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import tqdm

from dps_hf import NANO
from dps_hf.command_line import show_errors
from dps_hf.inference import MAX_NEW_TOKENS, digest_weights, load
from dps_hf.nano import emoji, questions
from dps_hf.nano.held_out import FORMS
from dps_hf.nano.scenes import render, sample_split
from dps_hf.nano.scenes_t2i import make_prompt
from dps_hf.serving.client import TRANSFORMERS, Client


class Reference(NamedTuple):
    """What transformers generates greedily: token ids `(length,)` and log-probabilities `(length, vocab_size)`."""

    tokens: torch.Tensor
    logprobs: torch.Tensor


def make_pictures(count: int) -> list[tuple[str, Image.Image]]:
    """Held-out scenes and emoji by turns, each with a question; every fifth is cut to an oblong."""
    rng = np.random.default_rng(0)
    pairs = emoji.select_pairs("validation")
    items = []
    for index in range(count):
        if index % 2:
            item = "What is this?", emoji.get_picture(pairs[int(rng.integers(len(pairs)))])
        else:
            item = "Describe the picture.", render(sample_split(rng, "validation"))
        question, picture = item
        items.append((question, picture.crop((0, 8, 64, 51)) if index % 5 == 4 else picture))
    return items


def make_puzzles(count: int) -> list[tuple[str, Image.Image]]:
    """Held-out scenes, each with a question of some steps."""
    rng = np.random.default_rng(2)
    scenes = [sample_split(rng, "validation") for _ in range(count)]
    return [(questions.ask(rng, scene).text, render(scene)) for scene in scenes]


def make_prompts(count: int) -> list[str]:
    """Held-out scenes to draw, of every form by turns."""
    rng, forms = np.random.default_rng(1), list(FORMS.values())
    return [make_prompt(rng, "validation", **forms[index % len(forms)])[1] for index in range(count)]


def generate(
    model, processor, text: str, picture: Image.Image | None = None, think: bool = False, **generation
) -> Reference:
    content = ([] if picture is None else [{"type": "image", "image": picture}]) + [{"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        enable_thinking=think,
    )
    greedy = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**inputs, **greedy, **generation)
    logprobs = torch.cat(output.logits).log_softmax(-1)
    return Reference(output.sequences[0, -len(logprobs) :], logprobs)


def find_divergence(reference: Reference, tokens: Sequence[int]) -> dict:
    """The first token in which a server differs from the reference, and how much less likely it is there."""
    expected = reference.tokens.tolist()
    index = next((i for i, (a, b) in enumerate(zip(expected, tokens)) if a != b), min(len(expected), len(tokens)))
    if index in (len(expected), len(tokens)):  # one of them ends here
        return {"token": index, "logprob_gap": None}
    gap = reference.logprobs[index, expected[index]] - reference.logprobs[index, tokens[index]]
    return {"token": index, "logprob_gap": round(gap.item(), 5)}


def time_requests(name: str, ask: Callable, items: list, concurrency: int) -> tuple[list, float]:
    """What `ask` gives for each item, and how many items a second it took."""
    with ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        results = list(tqdm(pool.map(ask, items), desc=name, total=len(items)))
    return results, round(len(items) / (time.perf_counter() - start), 2)


def compute_share(equal: list[bool]) -> dict:
    return {"value": round(sum(equal) / len(equal), 4), "n": len(equal)}


def compare_texts(client: Client, model, processor, asked: list, think: bool, concurrency: int) -> dict:
    """Every figure of a server's answers."""
    reads_probabilities = client.server != TRANSFORMERS

    def ask(item):
        question, picture = item
        logprobs = {"logprobs": True, "top_logprobs": 1} if reads_probabilities else {}
        return client.chat(question, [picture], think, max_tokens=MAX_NEW_TOKENS, temperature=0.0, **logprobs)

    choices, speed = time_requests("answers", ask, asked, concurrency)
    equal, differences, divergences = [], [], []
    for (question, picture), choice in zip(tqdm(asked, desc="answers of transformers"), choices):
        reference = generate(model, processor, question, picture, think, max_new_tokens=MAX_NEW_TOKENS)
        expected = processor.decode(reference.tokens, skip_special_tokens=True).strip()
        text = choice.message.content.removeprefix("<think>")  # which some servers repeat from the prompt
        equal.append(text.strip() == expected)
        if not equal[-1]:
            where = find_divergence(reference, processor.tokenizer(text).input_ids)
            divergences.append({"asked": question, "expected": expected, "got": text, **where})
        if reads_probabilities:
            first = reference.logprobs[0, reference.tokens[0]].item()
            differences.append(abs(choice.logprobs.content[0].logprob - first))
    figures = {"requests_per_second": speed, "divergences": divergences, "text_equal": compute_share(equal)}
    if differences:
        figures["first_token_logprob_difference"] = {"max": max(differences), "mean": float(np.mean(differences))}
    return figures


def compare(client: Client, model, processor, items: int, guided: int, concurrency: int) -> dict:
    """Every figure of one server, but those of worked answers."""
    figures: dict = {"server": client.server, "concurrency": concurrency}
    figures |= compare_texts(client, model, processor, make_pictures(items), False, concurrency)
    for key, count, scale in (("drawing_codes_equal", items, 1.0), ("guided_drawing_codes_equal", guided, 1.5)):
        if not count:
            continue

        def draw(prompt, scale=scale):
            return client.draw_codes(prompt, temperature=0.0, guidance_scale=scale)

        drawings, speed = time_requests("drawings", draw, make_prompts(count), concurrency)
        figures["drawings_per_second" if scale == 1 else "guided_drawings_per_second"] = speed
        equal, distinct = [], []
        for prompt, codes in zip(tqdm(make_prompts(count), desc="drawings of transformers"), drawings):
            reference = generate(model, processor, prompt, generation_mode="image", guidance_scale=scale)
            tokens = [code + model.config.image_code_start_id for code in codes]
            is_code = reference.tokens >= model.config.image_code_start_id
            reference = Reference(reference.tokens[is_code], reference.logprobs[is_code])
            equal.append(reference.tokens.tolist() == tokens)
            distinct.append(len(set(codes)))
            if not equal[-1]:
                figures["divergences"].append(
                    {"drawn": prompt, "guidance": scale, **find_divergence(reference, tokens)}
                )
        # A page of one code is easily equal.
        figures[key] = compute_share(equal) | {"mean_distinct_codes": float(np.mean(distinct))}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="+", metavar="NAME=URL", help="such as vllm=http://127.0.0.1:8000/v1")
    parser.add_argument("--checkpoint", default=NANO)
    parser.add_argument("--items", type=int, default=50, help="pictures, and as many drawings")
    parser.add_argument("--guided", type=int, default=0, help="drawings with guidance, where the server can be guided")
    parser.add_argument("--think", action="store_true", help="compare worked answers, and nothing else")
    parser.add_argument("--concurrency", type=int, default=4, help="requests under way at a time")
    parser.add_argument("--note", help="said beside the figures: which build, on what machine")
    parser.add_argument("--output", type=Path, default=Path("model_cards/results/serving.json"))
    arguments = parser.parse_args()

    model, processor = load(arguments.checkpoint)
    model = model.float().cpu()
    about = {"weights": digest_weights(model), "command": shlex.join(["python", *sys.argv])}
    for server in arguments.servers:
        name, _, url = server.partition("=")
        client = Client(url, arguments.checkpoint)
        results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        if arguments.think:
            asked = make_puzzles(arguments.items)
            figures = compare_texts(client, model, processor, asked, True, arguments.concurrency)
            figures = results.get(name, {}) | {"worked": figures | about}
        else:
            figures = compare(client, model, processor, arguments.items, arguments.guided, arguments.concurrency)
            figures |= about | ({"note": arguments.note} if arguments.note else {})
        arguments.output.write_text(json.dumps(results | {name: figures}, indent=2, ensure_ascii=False) + "\n")
        print(name, json.dumps({key: value for key, value in figures.items() if key != "divergences"}, indent=2))
        for one in (figures["worked"] if arguments.think else figures)["divergences"]:
            print(one)


if __name__ == "__main__":
    with show_errors():
        main()
