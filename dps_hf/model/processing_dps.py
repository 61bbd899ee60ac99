"""Processor of DPS: chats to tensors, and what `generate` returns to text and pictures."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from transformers.processing_utils import MultiModalData, ProcessorMixin

# Text a message holds, and a bare placeholder for each picture, whatever its turn. A content may be a plain string.
# Thinking is asked for by `enable_thinking=True`, which begins the answer with <think>.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == "text" -%}{{ part.text }}{%- elif part.type in ("image", "image_url") -%}<image>{%- endif -%}
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
{{- "\\n" -}}
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
        grid_size (`int`): codes along one side of a drawing.
        row_end (`bool`): whether drawings end each row with `<row_end>`.

    `apply_chat_template(messages, add_generation_prompt=True, enable_thinking=True)` lets the model think first.
    """

    _auto_class = "AutoProcessor"
    image_token = "<image>"
    boi_token = "<begin_of_image>"
    eoi_token = "<end_of_image>"
    row_end_token = "<row_end>"
    code_token = "<img_{}>"

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        num_image_tokens: int = 64,
        grid_size: int = 8,
        row_end: bool = False,
        **kwargs,
    ):
        self.num_image_tokens, self.grid_size, self.row_end = num_image_tokens, grid_size, row_end
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.first_code_id = tokenizer.convert_tokens_to_ids(self.code_token.format(0))
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What stands for one picture in the text: as many placeholders as the tower gives vectors."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Sequence | None = None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)

    def drawing_text(self, codes: torch.Tensor | Sequence[int]) -> str:
        """Codes `(grid_size * grid_size,)` as text that the tokenizer reads back, `<begin_of_image>` to `<end_of_image>`.

        Raises:
            ValueError: another number of codes.
        """
        if len(codes) != self.grid_size**2:
            raise ValueError(f"codes must be {self.grid_size**2} for a grid of {self.grid_size}; got {len(codes)}.")
        tokens = [self.code_token.format(int(code)) for code in codes]
        rows = ["".join(tokens[i : i + self.grid_size]) for i in range(0, len(tokens), self.grid_size)]
        row_end = self.row_end_token if self.row_end else ""
        return self.boi_token + "".join(row + row_end for row in rows) + self.eoi_token

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
            ValueError: an unknown mode, or `"interleaved"` without `decode_image_tokens`.
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
        images = list(pixels.detach().float().cpu())
        return self.image_processor.postprocess(images, return_tensors="PIL.Image.Image")["pixel_values"]

    def _split_drawings(self, row: torch.Tensor, skip_special_tokens: bool, decode_image_tokens) -> list:
        """One row of token ids as strings and pictures in turn."""
        row, count = torch.as_tensor(row), self.grid_size**2
        boi, eoi = self.tokenizer.convert_tokens_to_ids([self.boi_token, self.eoi_token])
        parts: list = []
        while len(row):
            start = (row == boi).nonzero().flatten()
            end = (row == eoi).nonzero().flatten()
            begin = int(start[0]) if len(start) else len(row)
            text = self.tokenizer.decode(row[:begin], skip_special_tokens=skip_special_tokens)
            parts += [text] if text.strip() else []
            stop = int(end[end > begin][0]) if (end > begin).any() else len(row)
            drawing = row[begin:stop]
            if (drawing >= self.first_code_id).sum() == count:  # a drawing that was cut off is left out
                parts += self._to_pictures(decode_image_tokens(drawing[None]))
            row = row[stop + 1 :]
        return parts


__all__ = ["CHAT_TEMPLATE", "DPSProcessor"]
