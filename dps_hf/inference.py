"""Drawing and answering in batches.

model, processor = load()
drawings = draw(model, processor, ["a small red star and two big blue circles", "cat, noto style"])
answers = ask(model, processor, ["Describe the picture.", "What is this?"], drawings)
changed = draw(model, processor, ["Make the red star green."], drawings[:1])
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.utils.logging import tqdm

from dps_hf import NANO
from dps_hf.files import write_whole
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel
from dps_hf.model.processing_dps import DPSProcessor


TEMPERATURE = 0.5  # for drawings: those of one prompt differ, and few are worse than the most likely one
PIXELS_AT_A_TIME = 2**19  # that are encoded; Janus' image tokenizer needs 0.4 GB for each picture of 384x384 pixels
MAX_NEW_TOKENS = 192  # for answers, if the generation config of the model does not say
ROUNDING = 2  # of 255: by how much a drawing may differ that another machine made from the same codes
CODES = "dps_codes"  # key in the `info` of a drawing for its codes, as `DPSProcessor.drawing_text` writes them


class Answer(NamedTuple):
    """An answer and the thinking before it.

    thinking: empty if the model did not think aloud.
    text: empty if the model never came to an answer.
    """

    thinking: str
    text: str


class Completion(NamedTuple):
    """What the model generated for one conversation.

    text: all of it as text, from `<think>` on if the model thinks; a drawing is the text of its codes.
    drawing: the drawing as a picture, None if there is none.
    """

    text: str
    drawing: Image.Image | None = None


def load(
    path: str | PathLike = NANO, revision: str = "main", device: str | torch.device | None = None, **options: Any
) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """Loads a model, ready to generate, and its processor.

    Args:
        path: a folder or the name of a repository on the Hub. The default is dps-nano, which comes with the package.
        revision: branch, tag or commit of the repository.
        device: where the model goes; by default the GPU if there is one. Quantised models stay where they were loaded.
        options: whatever `from_pretrained` takes, for example `dtype` or `attn_implementation`.

    Raises:
        OSError: there is no model at `path`.
    """
    try:
        model = AutoModelForMultimodalLM.from_pretrained(path, revision=revision, **options).eval()
    except OSError as error:
        if os.path.exists(path):
            raise
        raise OSError(
            f"The model {os.fspath(path)!r} is no folder here, and cannot be had from the Hub: "
            f"{str(error).splitlines()[0]} Correct the path or the name."
        ) from error
    processor = AutoProcessor.from_pretrained(path, revision=revision)
    if not getattr(model, "is_quantized", False):
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, processor


def digest_weights(model: torch.nn.Module) -> str:
    """The first 12 hex digits of the SHA-256 digest of all weights."""
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
    **generation: Any,
) -> list[Image.Image]:
    """Draws each prompt.

    With `num_return_sequences`, the drawings of one prompt follow each other. Each drawing keeps its codes in its
    `info`; [`save_drawing`] writes them to the file.

    Args:
        pictures: one picture, or a list of pictures, for each prompt; the prompt then says what to change.
        think: whether the model plans aloud first. If no drawing follows, the result is a white picture.
        batch_size: number of prompts drawn at a time.
        progress: name of a progress bar; without it, none is shown.
        generation: whatever `model.generate` takes. By default drawings are sampled at temperature 0.5, with the
            guidance that the generation config of the model sets; `do_sample` and `guidance_scale` change that.

    Raises:
        TypeError: `prompts` is one string.
        ValueError: there are not as many `pictures` as prompts.
    """
    options = {"do_sample": True, **generation}
    if options["do_sample"]:
        options.setdefault("temperature", TEMPERATURE)
    drawings = []
    for batch in _split_batches(_make_conversations("prompts", prompts, pictures), batch_size, progress):
        for completion in complete(model, processor, batch, drawing=True, think=think, **options):
            white = Image.new("RGB", (model.config.drawing_size,) * 2, "white")
            drawings.append(completion.drawing or white)
    return drawings


def ask(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    questions: Sequence[str],
    pictures: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
    think: bool = False,
    batch_size: int = 32,
    progress: str | None = None,
    **generation: Any,
) -> list[Answer]:
    """Answers each question.

    Args:
        pictures: one picture, or a list of pictures, for each question.
        think: whether the model thinks aloud first.
        batch_size, progress, generation: as for [`draw`]. Answers are greedy unless `do_sample=True` is passed.

    Raises:
        TypeError: `questions` is one string.
        ValueError: there are not as many `pictures` as questions.
    """
    options = {"do_sample": False, **generation}
    answers = []
    for batch in _split_batches(_make_conversations("questions", questions, pictures), batch_size, progress):
        completions = complete(model, processor, batch, think=think, **options)
        answers += [Answer(*processor.split_thinking(completion.text)) for completion in completions]
    return answers


@torch.no_grad()
def complete(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    conversations: Sequence[list[dict[str, Any]]],
    drawing: bool = False,
    think: bool = False,
    **generation: Any,
) -> list[Completion]:
    """Generates the next turn of each conversation, all in one batch; [`draw`] and [`ask`] are built on it.

    With `num_return_sequences`, the completions of one conversation follow each other.

    Args:
        conversations: messages as `apply_chat_template` takes them, see [`make_conversation`].
        drawing: whether the model draws. A drawing ends the completion; one that was cut off is none.
        think: whether the model thinks or plans aloud first.
        generation: whatever `model.generate` takes.
    """
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        enable_thinking=think,
    ).to(model.device)
    max_new_tokens = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
    mode = "text"
    if drawing:
        mode = "interleaved" if think else "image"
        max_new_tokens += model.config.num_codes + 2  # begin and end of image
    options = {"max_new_tokens": max_new_tokens, **generation}
    tokens = model.generate(**inputs, **options, generation_mode=mode)[:, inputs["input_ids"].shape[1] :]
    begun = "<think>" if think else ""  # the last token of the prompt
    if not drawing:
        return [Completion(begun + text) for text in processor.post_process_multimodal_output(tokens)]

    rows = tokens.cpu()  # once, not row by row
    count = model.config.num_codes
    codes = [found[:count] for row in rows if len(found := _find_codes(model, row)) >= count]
    drawings = iter(_decode_pictures(model, processor, torch.stack(codes)) if codes else [])
    completions = []
    for row in rows:
        picture = next(drawings) if len(_find_codes(model, row)) >= count else None
        words = row if picture is None else row[: int((row == model.config.boi_token_id).nonzero()[0])]
        text = begun + processor.tokenizer.decode(words, skip_special_tokens=True)
        completions.append(Completion(text + picture.info[CODES] if picture else text, picture))
    return completions


def make_conversation(text: str, pictures: Sequence[Image.Image] = ()) -> list[dict[str, Any]]:
    """One turn of the user: the pictures, and then the text."""
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def encode(
    model: DPSForConditionalGeneration | DPSModel, processor: DPSProcessor, pictures: Sequence[Image.Image]
) -> torch.Tensor:
    """The codes of pictures, `(pictures, num_codes)`; `drawing_fit` of the image processor makes them square."""
    size = {"height": model.config.drawing_size, "width": model.config.drawing_size}
    images, fit = processor.image_processor, processor.image_processor.drawing_fit
    pixels = images(list(pictures), size=size, fit=fit, return_tensors="pt")["pixel_values"]
    parts = pixels.split(max(1, PIXELS_AT_A_TIME // model.config.drawing_size**2))
    return torch.cat([model.encode_image(part.to(model.device)) for part in parts])


def decode(model: DPSForConditionalGeneration, processor: DPSProcessor, text: str) -> Image.Image | None:
    """The last whole drawing in a text as [`DPSProcessor.drawing_text`] writes it, None without one."""
    code = re.escape(processor.code_token).replace(r"\{\}", r"(\d{1,9})")
    spans = re.findall(f"{processor.boi_token}((?:{code})+){processor.eoi_token}", text)
    drawings = [[int(found) for found in re.findall(code, span[0])] for span in spans]
    count, codebook_size = model.config.num_codes, model.config.codebook_size
    whole = [codes for codes in drawings if len(codes) == count and max(codes) < codebook_size]
    return _decode_pictures(model, processor, torch.tensor(whole[-1:]))[0] if whole else None


def attach_codes(drawing: Image.Image, processor: DPSProcessor, codes: torch.Tensor | Sequence[int]) -> Image.Image:
    """Stores the codes `(num_codes,)` in the `info` of a drawing; encoding the drawing would give similar ones."""
    drawing.info[CODES] = processor.drawing_text(codes)
    return drawing


def save_drawing(drawing: Image.Image, path: str | PathLike) -> None:
    """Saves a drawing as PNG, with its codes if it has them in its `info`."""
    about = PngInfo()
    if CODES in drawing.info:
        about.add_text(CODES, drawing.info[CODES], zip=True)
    write_whole(Path(path), lambda own: drawing.save(own, format="PNG", pnginfo=about))


def encode_drawing(model: DPSForConditionalGeneration, processor: DPSProcessor, picture: Image.Image) -> str:
    """A picture as the text of codes, as if the model had drawn it.

    The codes are those in its `info` if decoding them gives this picture, else those that the image tokenizer finds.
    """
    own = picture.info.get(CODES)
    drawn = decode(model, processor, own) if isinstance(own, str) else None
    if drawn is not None and drawn.info[CODES] == own and drawn.size == picture.size:
        difference = np.asarray(drawn, dtype=np.int16) - np.asarray(picture.convert("RGB"))
        if np.abs(difference).max() <= ROUNDING:
            return own
    return processor.drawing_text(encode(model, processor, [picture])[0])


def _find_codes(model: DPSForConditionalGeneration, token_ids: torch.Tensor) -> torch.Tensor:
    """The codes among the token ids `(sequence,)` of one completion."""
    start = model.config.image_code_start_id
    assert start is not None  # models that draw have one
    return token_ids[(token_ids >= start) & (token_ids < start + model.config.codebook_size)] - start


def _decode_pictures(
    model: DPSForConditionalGeneration, processor: DPSProcessor, codes: torch.Tensor
) -> list[Image.Image]:
    """Codes `(pictures, num_codes)` as pictures that know them."""
    pixels = model.decode_image_tokens(codes.to(model.device))
    pictures = processor.post_process_multimodal_output(pixels, generation_mode="image")
    return [attach_codes(picture, processor, row) for picture, row in zip(pictures, codes)]


def _make_conversations(
    name: str, texts: Sequence[str], pictures: Sequence[Image.Image | Sequence[Image.Image]] | None
) -> list[list[dict[str, Any]]]:
    """A conversation for each text, with the picture or pictures in the same place; `name` is for errors."""
    if isinstance(texts, str):  # or each of its letters would be taken for a text
        raise TypeError(f"{name} must be a list of texts; got the text {texts!r}. Put it in a list.")
    if pictures is None:
        return [make_conversation(text) for text in texts]
    if len(pictures) != len(texts):
        raise ValueError(f"pictures must be as many as {name}; got {len(pictures)} and {len(texts)}. Repeat some.")
    lists: list[Any] = [seen if isinstance(seen, (list, tuple)) else [seen] for seen in pictures]
    return [make_conversation(text, seen) for text, seen in zip(texts, lists)]


def _split_batches(items: list, size: int, progress: str | None) -> Iterator[list]:
    if size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {size}.")
    starts = tqdm(range(0, len(items), size), desc=progress, unit="batch", disable=progress is None)
    return (items[start : start + size] for start in starts)
