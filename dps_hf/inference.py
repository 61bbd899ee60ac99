"""Drawing and answering in batches, one call each.

model, processor = load()
drawings = draw(model, processor, ["a small red star and two big blue circles", "cat, noto style"])
answers = ask(model, processor, ["Describe the picture.", "What is this?"], drawings)
"""

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.utils.logging import tqdm

from dps_hf import NANO
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor


TEMPERATURE = 0.5  # of a drawing: several of one prompt differ, and few are worse than the likeliest
MAX_NEW_TOKENS = 160  # of an answer, where the model's generation config does not say


class Answer(NamedTuple):
    """`thinking` is empty where the model did not think aloud; `text` is, where it never came to an answer."""

    thinking: str
    text: str


def load(path: str | PathLike = NANO) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """A model that is ready to generate, on the GPU if there is one, and its processor."""
    model = AutoModelForMultimodalLM.from_pretrained(path).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoProcessor.from_pretrained(path)


def draw(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    prompts: Sequence[str],
    batch_size: int = 32,
    progress: str | None = None,
    **generation,
) -> list[Image.Image]:
    """Draws each prompt, as many times as `num_return_sequences` says; the drawings of one prompt stand together.

    Args:
        batch_size: prompts that are drawn at a time.
        progress: name of a progress bar; none is shown where it is left out.
        generation: whatever `model.generate` takes. Drawings are sampled unless it says `do_sample=False`, and guided
            as the model's generation config says unless it gives a `guidance_scale`. The temperature is 0.5.
    """
    _refuse_one("prompts", prompts)
    sampling = {"do_sample": True, **generation}
    if sampling["do_sample"]:
        sampling.setdefault("temperature", TEMPERATURE)
    drawings: list[Image.Image] = []
    chats = [[_user({"type": "text", "text": prompt})] for prompt in prompts]
    for batch in _batches(chats, batch_size, progress):
        inputs = _inputs(processor, batch).to(model.device)
        tokens = model.generate(**inputs, **sampling, generation_mode="image")
        pixels = model.decode_image_tokens(tokens)
        drawings += processor.post_process_multimodal_output(pixels, generation_mode="image")
    return drawings


def ask(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    questions: Sequence[str],
    pictures: Sequence[Image.Image] | None = None,
    think: bool = False,
    batch_size: int = 32,
    progress: str | None = None,
    **generation,
) -> list[Answer]:
    """Answers each question, about the picture in the same place if there are any.

    Args:
        think: whether the model first thinks aloud.
        batch_size, progress, generation: as for [`draw`]. Answers are greedy unless it says `do_sample=True`.
    """
    _refuse_one("questions", questions)
    if pictures is not None and len(pictures) != len(questions):
        raise ValueError(
            f"pictures must be as many as questions; got {len(pictures)} and {len(questions)}. Repeat some."
        )
    texts = [{"type": "text", "text": question} for question in questions]
    if pictures is None:
        chats = [[_user(text)] for text in texts]
    else:
        chats = [[_user({"type": "image", "image": picture}, text)] for picture, text in zip(pictures, texts)]
    length = {"max_new_tokens": model.generation_config.max_new_tokens or MAX_NEW_TOKENS}
    answers: list[Answer] = []
    for batch in _batches(chats, batch_size, progress):
        inputs = _inputs(processor, batch, enable_thinking=think).to(model.device)
        tokens = model.generate(**inputs, **{"do_sample": False, **length, **generation}, generation_mode="text")
        begun = "<think>" if think else ""  # the prompt ends in it
        written = processor.post_process_multimodal_output(tokens[:, inputs["input_ids"].shape[1] :])
        answers += [Answer(*processor.split_thinking(begun + text)) for text in written]
    return answers


def encode(
    model: DPSForConditionalGeneration, processor: DPSProcessor, pictures: Sequence[Image.Image]
) -> torch.Tensor:
    """The codes of pictures, `(pictures, grid_size * grid_size)`: letterboxed at the size of drawings, not at the tower's."""
    size = {"height": model.config.drawing_size, "width": model.config.drawing_size}
    pixels = processor.image_processor(list(pictures), size=size, return_tensors="pt")["pixel_values"]
    return model.encode_image(pixels.to(model.device))


def _refuse_one(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # or each of its letters would be taken for a text
        raise TypeError(f"{name} must be a list of texts; got the text {texts!r}. Put it in a list.")


def _user(*content: dict) -> dict:
    return {"role": "user", "content": list(content)}


def _inputs(processor: DPSProcessor, chats: list, **template):
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        **template,
    )


def _batches(items: list, size: int, progress: str | None):
    starts = tqdm(range(0, len(items), size), desc=progress, unit="batch", disable=progress is None)
    return (items[start : start + size] for start in starts)
