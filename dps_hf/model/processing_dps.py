"""Processor of DPS: turns chats into tensors, and generated tokens into text and pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count, zip_longest

import numpy as np
import torch
import transformers
from PIL import Image

from .configuration_dps import AUTO_MAP
from .library_dps import MultiModalData, make_flat_list_of_images


class DPSProcessor(transformers.ProcessorMixin):
    """Joins a tokenizer and [`DPSImageProcessor`].

    Args:
        tokenizer: has the tokens `<image>`, `<begin_of_image>`, `<end_of_image>` and one for each code. Its chat
            template is the default.
        num_image_tokens (`int`): placeholders that one picture in the prompt takes.
        grid_size (`int`): patches along one side of a drawing.
        num_codes (`int`, *optional*): codes in a drawing; by default one for each patch.

    `apply_chat_template(..., enable_thinking=True)` lets the model think first. Text may contain names of tokens:
    `<image>` in a question counts as a picture, and `<|im_end|>` ends the question. For text that you do not trust,
    use `apply_chat_template(..., tokenize=True, sanitize_control_tokens=True)` (transformers 5.23), which reads such
    names as plain text. Names of codes stay codes, because drawings use them.
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
        self.code_ids = range(self.first_code_id, self.first_code_id + codes)  # other tokens may follow
        name_tokens(tokenizer)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        """As in the library, but a text without pictures may have `None`, and texts that are none are refused."""
        texts = [text] if isinstance(text, str) else text
        if texts is not None:
            if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
                raise ValueError(f"text must be a string or a list of strings; got {text!r}.")
            if not texts:
                raise ValueError("text is an empty list. Give at least one string.")
            try:
                "".join(texts).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"text must be whole letters: {error}. Decode it as UTF-8.") from None
        images = group_pictures(images, None if texts is None else len(texts))
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """As in the library, and checks that each text has one placeholder for each of its own pictures."""
        if text is not None:
            rows = [[]] * len(text) if images is None else images
            found, where = [sample.count(self.image_token) for sample in text], ""
            if isinstance(rows, list) and all(isinstance(row, list) for row in rows):
                given = [len(row) for row in rows]
                unequal = (i for i, (one, other) in enumerate(zip_longest(found, given)) if one != other)
                where = f" in text {next(unequal, None)}"
            else:
                found, given = [sum(found)], [len(make_flat_list_of_images(rows))]
            if found != given:
                raise ValueError(
                    f"The number of {self.image_token} in the prompts should be the number of images passed; "
                    f"got {found} and {given}, which differ{where}. Give each text a list of its pictures."
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As in the library, but ignores keys of a part that are `None`, with which `datasets` fills rows up.

        In lists of pictures beside the chats, `None` stands for a chat without pictures.
        """
        chats = 1
        if isinstance(conversation, (list, tuple)) and conversation:
            chats = len(conversation) if isinstance(conversation[0], (list, tuple)) else 1
            conversation = _without_empty_keys(conversation)
        options = kwargs.get("processor_kwargs") or {}
        if "images" in options:
            kwargs["processor_kwargs"] = {**options, "images": group_pictures(options["images"], chats)}
        return super().apply_chat_template(conversation, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Returns as many placeholders as the tower gives vectors for a picture."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Sequence | None = None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        pictures = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * pictures, num_image_patches=[1] * pictures)

    def drawing_text(self, codes: torch.Tensor | Sequence[int]) -> str:
        """Writes codes `(num_codes,)`, no more and no fewer, as text from `<begin_of_image>` to `<end_of_image>`."""
        if len(codes) != self.num_codes:
            raise ValueError(f"codes must be {self.num_codes} for a grid of {self.grid_size}; got {len(codes)}.")
        return self.boi_token + "".join(self.code_token.format(int(code)) for code in codes) + self.eoi_token

    @staticmethod
    def split_thinking(text: str) -> tuple[str, str]:
        """Splits text into the thoughts between `<think>` and `</think>`, and the answer; either may be empty.

        `<think>` may be missing, because the prompt may end with it. Thoughts that never end leave an empty answer.
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
        """Turns generated tokens into text and pictures.

        Args:
            generated_outputs: token ids `(batch, sequence)`; in mode `"image"` the pixels
                `(batch, 3, size, size)` that `model.decode_image_tokens` gives.
            generation_mode: `"text"` (the default), `"image"` or `"interleaved"`.
            decode_image_tokens: `model.decode_image_tokens`, for mode `"interleaved"`.

        Returns:
            A list of strings, of PIL images, or of lists of both in order.

        Raises:
            ValueError: an unknown mode, tokens instead of pixels, or `"interleaved"` without `decode_image_tokens`.
        """
        if generation_mode in (None, "text"):
            return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return self._to_pictures(generated_outputs)
        if generation_mode != "interleaved":
            raise ValueError(f"generation_mode must be one of text, image, interleaved; got {generation_mode!r}.")
        if decode_image_tokens is None:
            raise ValueError("Mode 'interleaved' needs decode_image_tokens; got None. Pass model.decode_image_tokens.")
        return [self._split_drawings(row, skip_special_tokens, decode_image_tokens) for row in generated_outputs]

    def _to_pictures(self, pixels: torch.Tensor) -> list[Image.Image]:
        if pixels.ndim != 4:
            raise ValueError(
                "generation_mode='image' needs pixels (batch, 3, size, size); "
                f"got the shape {tuple(pixels.shape)}. Pass model.decode_image_tokens(tokens)."
            )
        images = list(pixels.detach().float().cpu())
        return self.image_processor.postprocess(images, return_tensors="PIL.Image.Image")["pixel_values"]

    def _split_drawings(self, row, skip_special_tokens: bool, decode_image_tokens) -> list:
        """Splits one row of token ids into strings and pictures; incomplete drawings are left out."""
        boi, eoi = self.tokenizer.convert_tokens_to_ids([self.boi_token, self.eoi_token])
        parts, ids = [], torch.as_tensor(row).tolist()
        if ids and ids[0] in self.code_ids:  # begin-of-image was cut off with the prompt
            ids = [boi, *ids]
        while ids:
            begin = ids.index(boi) if boi in ids else len(ids)
            end = ids.index(eoi, begin) if eoi in ids[begin:] else len(ids)
            text = self.tokenizer.decode(ids[:begin], skip_special_tokens=skip_special_tokens)
            parts += [text] if text.strip() else []
            if sum(token in self.code_ids for token in ids[begin:end]) == self.num_codes:
                parts += self._to_pictures(decode_image_tokens(torch.tensor([ids[begin:end]])))
            ids = ids[end + 1 :]
        return parts


def group_pictures(images, num_texts: int | None):
    """Groups pictures into a list for each text, where lists or `None` (a text without pictures) tell them apart.

    One picture, or one list for all texts, is returned as it is, and `None` where there are no pictures. Arrays of
    objects count as lists. A ValueError refuses `None` among the pictures of one text.
    """
    images = _to_list(images)
    if not isinstance(images, list):
        return images
    images = [_to_list(one) for one in images]
    if not any(isinstance(one, list) for one in images):
        if images and all(one is not None for one in images):
            return images
        if num_texts != len(images):
            images = [images]
    rows = [one if isinstance(one, list) else [one] for one in images]
    for i, row in enumerate(rows):
        missing = [j for j, picture in enumerate(row) if picture is None]
        if len(missing) == len(row):
            rows[i] = []
        elif missing:
            raise ValueError(
                f"images must hold only pictures for each text; those of text {i} are {len(row)}, and number "
                f"{missing[0]} is None. Leave it out together with its placeholder, or give the picture."
            )
    return rows if any(rows) else None


def _to_list(value):
    """Makes a list of a tuple and of an array of objects, and leaves all else as it is."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _without_empty_keys(value):
    """A copy of nested lists and dicts without the keys whose value is `None`."""
    if isinstance(value, Mapping):
        return {key: _without_empty_keys(one) for key, one in value.items() if one is not None}
    return [_without_empty_keys(one) for one in value] if isinstance(value, (list, tuple)) else value


def name_tokens(tokenizer) -> None:
    """Sets `image_token`, `boi_token` and `eoi_token` of a tokenizer, which pipelines and trainers ask for.

    Ids and encodings stay as they are. `save_pretrained` saves the names.
    """
    names = ("image_token", "boi_token", "eoi_token")
    # A list of its own: that of the class belongs to all tokenizers.
    tokenizer.SPECIAL_TOKENS_ATTRIBUTES = list(dict.fromkeys((*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *names)))
    for name in names:
        setattr(tokenizer, name, getattr(DPSProcessor, name))
