"""Drawing and answering in batches, one call each.

model, processor = load()
drawings = draw(model, processor, ["a small red star and two big blue circles", "cat, noto style"])
answers = ask(model, processor, ["Describe the picture.", "What is this?"], drawings)
changed = draw(model, processor, ["Make the red star green."], drawings[:1])
"""

import hashlib
import re
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.utils.logging import tqdm

from dps_hf import NANO
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


TEMPERATURE = 0.5  # of a drawing: several of one prompt differ, and few are worse than the likeliest
MAX_NEW_TOKENS = 192  # of an answer, where the model's generation config does not say
ROUNDING = 2  # of 255, by which a drawing may differ that another machine made of the same codes
CODES = "dps_codes"  # where in its `info` a drawing has its codes, as `DPSProcessor.drawing_text` writes them


class Answer(NamedTuple):
    """`thinking` is empty where the model did not think aloud; `text` is, where it never came to an answer."""

    thinking: str
    text: str


def load(
    path: str | PathLike = NANO, revision: str = "main", device: str | torch.device | None = None, **options: Any
) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """Loads a model, ready to generate, and its processor.

    Args:
        path: a folder or the name of a repository on the Hub. The default is dps-nano, which comes with the package.
        revision: branch, tag or commit of the repository.
        device: where the model goes; by default the GPU if there is one. Quantised models stay where they were loaded.
        options: whatever `from_pretrained` takes, for example `dtype` or `attn_implementation`.
    """
    model = AutoModelForMultimodalLM.from_pretrained(path, revision=revision, **options).eval()
    processor = AutoProcessor.from_pretrained(path, revision=revision)
    if not getattr(model, "is_quantized", False):
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, processor


def weights_digest(model: torch.nn.Module) -> str:
    """Which weights these are: the beginning of a digest of all of them, in 12 letters."""
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def draw(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    prompts: Sequence[str],
    pictures: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
    think: bool = False,
    batch_size: int = 32,
    progress: str | None = None,
    **generation,
) -> list[Image.Image]:
    """Draws each prompt, as many times as `num_return_sequences` says; the drawings of one prompt stand together.

    A drawing has its codes in its `info`; [`save_drawing`] keeps them.

    Args:
        pictures: one for each prompt, which then says what to change in it; or several.
        think: whether the model first plans aloud. If it then draws nothing, the drawing is a white page.
        batch_size: prompts that are drawn at a time.
        progress: name of a progress bar; none is shown where it is left out.
        generation: whatever `model.generate` takes. Drawings are sampled unless it says `do_sample=False`, and guided
            as the model's generation config says unless it gives a `guidance_scale`. The temperature is 0.5.

    Raises:
        TypeError: `prompts` is one text.
        ValueError: there are pictures, and not as many as prompts.
    """
    sampling = {"do_sample": True, **generation}
    if sampling["do_sample"]:
        sampling.setdefault("temperature", TEMPERATURE)
    drawings: list[Image.Image] = []
    for batch in _batches(_chats("prompts", prompts, pictures), batch_size, progress):
        inputs = _inputs(processor, batch, enable_thinking=think).to(model.device)
        if think:
            length = _answer_length(model) + model.config.num_drawing_tokens + 2  # begin and end of image
            tokens = model.generate(**inputs, **{"max_new_tokens": length, **sampling}, generation_mode="interleaved")
            answers = processor.post_process_multimodal_output(
                tokens[:, inputs["input_ids"].shape[1] :],
                generation_mode="interleaved",
                decode_image_tokens=model.decode_image_tokens,
            )
            for parts, codes in zip(answers, code_rows(model, tokens[:, inputs["input_ids"].shape[1] :])):
                drawn = [part for part in parts if not isinstance(part, str)]
                page = Image.new("RGB", (model.config.drawing_size,) * 2, "white")
                drawings.append(with_codes(drawn[0], processor, codes[: model.config.num_codes]) if drawn else page)
        else:
            tokens = model.generate(**inputs, **sampling, generation_mode="image")
            pixels = model.decode_image_tokens(tokens)
            drawn = processor.post_process_multimodal_output(pixels, generation_mode="image")
            for drawing, codes in zip(drawn, code_rows(model, tokens)):
                drawings.append(with_codes(drawing, processor, codes[-model.config.num_codes :]))
    return drawings


def ask(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    questions: Sequence[str],
    pictures: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
    think: bool = False,
    batch_size: int = 32,
    progress: str | None = None,
    **generation,
) -> list[Answer]:
    """Answers each question, about the picture or the pictures in the same place if there are any.

    Args:
        think: whether the model first thinks aloud.
        batch_size, progress, generation: as for [`draw`]. Answers are greedy unless it says `do_sample=True`.

    Raises:
        TypeError: `questions` is one text.
        ValueError: there are pictures, and not as many as questions.
    """
    length = {"max_new_tokens": _answer_length(model)}
    answers: list[Answer] = []
    for batch in _batches(_chats("questions", questions, pictures), batch_size, progress):
        inputs = _inputs(processor, batch, enable_thinking=think).to(model.device)
        tokens = model.generate(**inputs, **{"do_sample": False, **length, **generation}, generation_mode="text")
        begun = "<think>" if think else ""  # the prompt ends in it
        written = processor.post_process_multimodal_output(tokens[:, inputs["input_ids"].shape[1] :])
        answers += [Answer(*processor.split_thinking(begun + text)) for text in written]
    return answers


def encode(
    model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor, pictures: Sequence[Image.Image]
) -> torch.Tensor:
    """The codes of pictures, `(pictures, num_codes)`: letterboxed at the size of drawings, not at the tower's."""
    size = {"height": model.config.drawing_size, "width": model.config.drawing_size}
    pixels = processor.image_processor(list(pictures), size=size, return_tensors="pt")["pixel_values"]
    return model.encode_image(pixels.to(model.device))


def decode(model: DPSForConditionalGeneration, processor: DPSProcessor, text: str) -> Image.Image | None:
    """The drawing that a text holds as [`DPSProcessor.drawing_text`] writes it, the last of several; None without one."""
    code = re.escape(processor.code_token).replace(r"\{\}", r"(\d{1,9})")
    spans = re.findall(f"{processor.boi_token}((?:{code}|{processor.row_end_token})+){processor.eoi_token}", text)
    drawings = [[int(found) for found in re.findall(code, span[0])] for span in spans]
    count, codebook = model.config.num_codes, model.config.codebook_size
    whole = [codes for codes in drawings if len(codes) == count and max(codes) < codebook]
    if not whole:
        return None
    codes = whole[-1]
    pixels = model.decode_image_tokens(torch.tensor([codes], device=model.device))
    return with_codes(processor.post_process_multimodal_output(pixels, generation_mode="image")[0], processor, codes)


def with_codes(drawing: Image.Image, processor: DPSProcessor, codes: torch.Tensor | Sequence[int]) -> Image.Image:
    """The drawing, which now knows its codes `(num_codes,)`: the tokenizer finds others in it, which look alike."""
    drawing.info[CODES] = processor.drawing_text(codes)
    return drawing


def save_drawing(drawing: Image.Image, path: str | PathLike) -> None:
    """As PNG, with the drawing's codes if it knows them."""
    about = PngInfo()
    if CODES in drawing.info:
        about.add_text(CODES, drawing.info[CODES], zip=True)
    drawing.save(path, format="PNG", pnginfo=about)


def drawing_text(model: DPSForConditionalGeneration, processor: DPSProcessor, picture: Image.Image) -> str:
    """A picture as the model would have drawn it: by the codes that it knows, where they do give it, else by the tokenizer."""
    own = picture.info.get(CODES)
    drawn = decode(model, processor, own) if isinstance(own, str) else None
    if drawn is not None and drawn.info[CODES] == own and drawn.size == picture.size:
        difference = np.asarray(drawn, dtype=np.int16) - np.asarray(picture.convert("RGB"))
        if np.abs(difference).max() <= ROUNDING:
            return own
    return processor.drawing_text(encode(model, processor, [picture])[0])


def code_rows(model: DPSForConditionalGeneration, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The codes in each row of token ids."""
    start = model.config.image_code_start_id
    assert start is not None  # models that draw have one
    rows = tokens.cpu()  # once, not code by code
    return [row[(row >= start) & (row < start + model.config.codebook_size)] - start for row in rows]


def _chats(
    name: str, texts: Sequence[str], pictures: Sequence[Image.Image | Sequence[Image.Image]] | None
) -> list[list[dict]]:
    """One conversation for each text, which comes after the picture or pictures in the same place; `name` is for errors."""
    if isinstance(texts, str):  # or each of its letters would be taken for a text
        raise TypeError(f"{name} must be a list of texts; got the text {texts!r}. Put it in a list.")
    if pictures is not None and len(pictures) != len(texts):
        raise ValueError(f"pictures must be as many as {name}; got {len(pictures)} and {len(texts)}. Repeat some.")
    contents: list[list[dict]] = [[{"type": "text", "text": text}] for text in texts]
    for content, seen in zip(contents, pictures or ()):
        several = seen if isinstance(seen, (list, tuple)) else [seen]
        content[:0] = [{"type": "image", "image": picture} for picture in several]
    return [[{"role": "user", "content": content}] for content in contents]


def _answer_length(model: DPSForConditionalGeneration) -> int:
    return model.generation_config.max_new_tokens or MAX_NEW_TOKENS


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
    if size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {size}.")
    starts = tqdm(range(0, len(items), size), desc=progress, unit="batch", disable=progress is None)
    return (items[start : start + size] for start in starts)
