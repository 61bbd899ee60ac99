"""Processor of DPS: chats to tensors, and what `generate` returns to text and pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from PIL import Image

from .configuration_dps import AUTO_MAP
from .library_dps import MultiModalData, ProcessorMixin, make_flat_list_of_images


# Text a message holds, and a bare placeholder for each picture, whatever its turn. A content may be a plain string.
# Thinking is asked for by `enable_thinking=True`, which begins the answer with <think>. No line ends after the last answer:
# generation has stopped, and trainers would teach it.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}
{%- if part.type == "text" -%}{{ part.text }}{%- elif part.type in ("image", "image_url") -%}<image>
{%- else -%}{{ raise_exception("A part of a message must be of type text or image; got " + part.type) }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\\n" -}}
{%- if message.role == "assistant" -%}
{%- generation -%}{{- render(message.content) + "<|im_end|>" -}}{%- endgeneration -%}
{%- else -%}
{{- render(message.content) + "<|im_end|>" -}}
{%- endif -%}
{%- if add_generation_prompt or not (loop.last and message.role == "assistant") -%}{{- "\\n" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|im_start|>assistant\\n" + ("<think>" if enable_thinking else "") -}}
{%- endif -%}
"""


class DPSProcessor(ProcessorMixin):
    """Joins a tokenizer and [`DPSImageProcessor`]; `__call__` and `apply_chat_template` are the library's.

    Args:
        image_processor ([`DPSImageProcessor`])
        tokenizer: its vocabulary holds `<image>`, `<begin_of_image>`, `<end_of_image>` and a token for each code.
        chat_template (`str`, *optional*)
        num_image_tokens (`int`): placeholders that one picture in the prompt takes.
        grid_size (`int`): patches along one side of a drawing.
        num_codes (`int`, *optional*): codes of a drawing; by default one for each patch.

    `apply_chat_template(messages, add_generation_prompt=True, enable_thinking=True)` lets the model think first.

    Text may spell tokens: `<image>` in a question counts as a picture, and `<|im_end|>` ends it. Text of strangers goes
    through `apply_chat_template(..., tokenize=True, sanitize_control_tokens=True)` (transformers 5.23), which reads such
    names as plain text; names of codes stay codes, as drawings are written into conversations with them.
    """

    _auto_class = "AutoProcessor"
    image_token = "<image>"
    boi_token = "<begin_of_image>"
    eoi_token = "<end_of_image>"
    code_token = "<img_{}>"

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        num_image_tokens: int = 64,
        grid_size: int = 8,
        num_codes: int | None = None,
        **kwargs,
    ):
        self.num_image_tokens, self.grid_size = num_image_tokens, grid_size
        self.num_codes = grid_size**2 if num_codes is None else num_codes
        tokens = [self.image_token, self.code_token.format(0)]
        self.image_token_id, self.first_code_id = tokenizer.convert_tokens_to_ids(tokens)
        if {self.image_token_id, self.first_code_id} & {None, tokenizer.unk_token_id}:
            raise ValueError(
                f"The tokenizer must hold {' and '.join(tokens)}. Take the processor that belongs to the model."
            )
        known = tokenizer.get_vocab()
        codes = next(code for code in count() if self.code_token.format(code) not in known)
        self.code_ids = range(self.first_code_id, self.first_code_id + codes)  # other tokens may come after them
        name_tokens(tokenizer)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        """As in the library, but `None` is how a text has no pictures, too, and a list of no texts is refused."""
        if text is not None and not isinstance(text, (str, list, tuple)):
            raise ValueError(f"text must be a string or a list of strings; got {text!r}.")
        if isinstance(text, (list, tuple)) and not text:
            raise ValueError("text is an empty list. Give at least one string.")
        images = group_pictures(images, None if text is None else 1 if isinstance(text, str) else len(text))
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """As in the library, and for each text on its own: one placeholder for each of its pictures."""
        if text is not None:
            if not all(isinstance(sample, str) for sample in text):
                raise ValueError(f"text must be a string or a list of strings; got {text!r}.")
            self._check_placeholders(images, text)
        super().validate_inputs(images=images, text=text, **kwargs)
        try:
            "".join(text or ()).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text must be whole letters; got half of a pair: {error}. Decode it as UTF-8.") from None

    def _check_placeholders(self, images, text: list[str]) -> None:
        found, where = [sample.count(self.image_token) for sample in text], ""
        if images is None:
            given = [0] * len(text)
        elif isinstance(images, (list, tuple)) and images and isinstance(images[0], (list, tuple)):
            given = [len(row) for row in images]
        else:
            found, given = [sum(found)], [len(make_flat_list_of_images(images))]
        if found == given:
            return
        if len(given) == len(text) > 1:
            where = f" in text {next(i for i, counts in enumerate(zip(found, given)) if len(set(counts)) > 1)}"
        raise ValueError(
            f"The number of {self.image_token} tokens in the prompts should be the same as the number of images passed; "
            f"got {found} and {given}, which differ{where}. Write one where each picture belongs, and give each text a list of "
            "its pictures."
        )

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As in the library, but keys of a part that are `None`, as `datasets` fills rows up, count as missing.

        Lists of pictures beside the chats may say `None` where a chat has none.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation:
            return super().apply_chat_template(conversation, *args, **kwargs)
        chats = len(conversation) if isinstance(conversation[0], (list, tuple)) else 1
        if isinstance(conversation[0], (list, tuple)):
            conversation = [_without_empty_keys(chat) for chat in conversation]
        else:
            conversation = _without_empty_keys(conversation)
        if "images" in (kwargs.get("processor_kwargs") or {}):
            images = group_pictures(kwargs["processor_kwargs"]["images"], chats)
            kwargs["processor_kwargs"] = {**kwargs["processor_kwargs"], "images": images}
        return super().apply_chat_template(conversation, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What stands for one picture in the text: as many placeholders as the tower gives vectors."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Sequence | None = None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        pictures = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * pictures, num_image_patches=[1] * pictures)

    def drawing_text(self, codes: torch.Tensor | Sequence[int]) -> str:
        """Codes `(num_codes,)` as text that the tokenizer reads back, `<begin_of_image>` to `<end_of_image>`.

        Raises:
            ValueError: another number of codes.
        """
        if len(codes) != self.num_codes:
            raise ValueError(f"codes must be {self.num_codes} for a grid of {self.grid_size}; got {len(codes)}.")
        return self.boi_token + "".join(self.code_token.format(int(code)) for code in codes) + self.eoi_token

    @staticmethod
    def split_thinking(text: str) -> tuple[str, str]:
        """The steps between `<think>` and `</think>`, and the answer after them; no steps give an empty string.

        `<think>` may be missing, since the prompt may have held it; steps that never end leave an empty answer.
        """
        before, begin, rest = text.partition("<think>")
        if not begin:
            before, rest = "", text
        thinking, end, answer = rest.partition("</think>")
        if not begin and not end:
            return "", text.strip()
        return thinking.strip(), (before + answer).strip()

    def post_process_multimodal_output(
        self,
        generated_outputs,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        decode_image_tokens: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ) -> list:
        """Reads back what the model made.

        Args:
            generated_outputs: token ids `(batch, sequence)`; in mode `"image"` the pixels
                `(batch, 3, size, size)` that `model.decode_image_tokens` gives.
            generation_mode: `"text"` (also where left out), `"image"` or `"interleaved"`.
            decode_image_tokens: `model.decode_image_tokens`, which mode `"interleaved"` needs.

        Returns:
            A list of strings, of PIL images, or of lists of both in reading order.

        Raises:
            ValueError: an unknown mode, tokens in place of pixels, or `"interleaved"` without `decode_image_tokens`.
        """
        if generation_mode in (None, "text"):
            return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return self._to_pictures(generated_outputs)
        if generation_mode == "interleaved":
            if decode_image_tokens is None:
                raise ValueError(
                    "generation_mode='interleaved' needs decode_image_tokens. Pass decode_image_tokens=model.decode_image_tokens."
                )
            return [self._split_drawings(row, skip_special_tokens, decode_image_tokens) for row in generated_outputs]
        raise ValueError(f"generation_mode must be one of text, image, interleaved; got {generation_mode!r}.")

    def _to_pictures(self, pixels: torch.Tensor) -> list[Image.Image]:
        if pixels.ndim != 4:
            raise ValueError(
                "generation_mode='image' needs pixels (batch, 3, size, size); "
                f"got the shape {tuple(pixels.shape)}. Pass model.decode_image_tokens(tokens)."
            )
        images = list(pixels.detach().float().cpu())
        return self.image_processor.postprocess(images, return_tensors="PIL.Image.Image")["pixel_values"]

    def _split_drawings(self, row: torch.Tensor, skip_special_tokens: bool, decode_image_tokens) -> list:
        """One row of token ids as strings and pictures in turn."""
        row = torch.as_tensor(row)
        boi, eoi = self.tokenizer.convert_tokens_to_ids([self.boi_token, self.eoi_token])
        parts: list = []
        if len(row) and int(row[0]) in self.code_ids:  # the prompt, which was cut off, had begun the drawing
            row = torch.cat([row.new_full((1,), boi), row])
        while len(row):
            start = (row == boi).nonzero().flatten()
            end = (row == eoi).nonzero().flatten()
            begin = int(start[0]) if len(start) else len(row)
            text = self.tokenizer.decode(row[:begin], skip_special_tokens=skip_special_tokens)
            parts += [text] if text.strip() else []
            stop = int(end[end > begin][0]) if (end > begin).any() else len(row)
            drawing = row[begin:stop]
            is_code = (drawing >= self.code_ids.start) & (drawing < self.code_ids.stop)
            if is_code.sum() == self.num_codes:  # a drawing that was cut off is left out
                parts += self._to_pictures(decode_image_tokens(drawing[None]))
            row = row[stop + 1 :]
        return parts


def group_pictures(images, num_texts: int | None):
    """Pictures as a list for each text, where they are told apart by lists or by `None`, which is how a text has none.

    One list for all texts, or one picture, is left as it is. Pictures that are none in whatever way are `None`.

    Args:
        images: what a processor is given as `images`; arrays of objects are lists.
        num_texts: `None` where there are no texts.

    Raises:
        ValueError: `None` stands among the pictures of one text, or among pictures that may belong to any text.
    """
    if isinstance(images, np.ndarray) and images.dtype == object:
        images = images.tolist()
    if not isinstance(images, (list, tuple)):
        return images
    images = [one.tolist() if isinstance(one, np.ndarray) and one.dtype == object else one for one in images]
    nested = any(isinstance(one, (list, tuple)) for one in images)
    if not nested and images and not any(one is None for one in images):
        return images
    if not nested and num_texts != len(images):
        images = [images]
    rows = []
    for i, one in enumerate(images):
        row = [] if one is None else list(one) if isinstance(one, (list, tuple)) else [one]
        missing = [j for j, picture in enumerate(row) if picture is None]
        if len(missing) < len(row) and missing:
            raise ValueError(
                f"images must hold pictures alone for each text; those of text {i} are {len(row)}, and number {missing[0]} is "
                "None. Leave it out together with its placeholder, or give the picture."
            )
        rows.append([] if missing else row)
    return rows if any(rows) else None


def _without_empty_keys(messages: Sequence) -> list:
    """Messages whose parts lack the keys that are `None`."""
    cleaned = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            parts = [
                {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
                for part in content
            ]
            message = {**message, "content": parts}
        cleaned.append(message)
    return cleaned


def name_tokens(tokenizer) -> None:
    """Gives a tokenizer `image_token`, `boi_token` and `eoi_token`, and their ids, as other models' tokenizers have them.

    Pipelines and trainers ask for them there. Ids and encodings stay as they are, and `save_pretrained` keeps the names.
    """
    for name in ("image_token", "boi_token", "eoi_token"):
        token = getattr(DPSProcessor, name)
        if token in tokenizer.get_vocab():
            if name not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
                # The tokenizer's own: the class has the list of all tokenizers.
                tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, name]
            setattr(tokenizer, name, token)


__all__ = ["CHAT_TEMPLATE", "DPSProcessor"]
