"""Asks a served DPS for text and drawings: llama-server, `python -m llama_cpp.server`, vLLM or `transformers serve`.

client = Client("http://127.0.0.1:8080/v1", "dps_hf/checkpoints/dps-nano")
drawing = client.draw("a big red heart")
drawings = client.draw_several("a big red heart", 4)
answer = client.ask("What is this?", [drawing])

The servers give a drawing as codes. The client turns them into a picture with the processor and the image tokenizer
of the same checkpoint; it loads no other weights.
"""

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

import dps_hf
from dps_hf.inference import MAX_NEW_TOKENS, TEMPERATURE, Answer, attach_codes
from dps_hf.model.image_tokenizer_dps import IMAGE_TOKENIZERS
from dps_hf.serving.drawing_tokens import find_drawing_tokens


# What servers call themselves in their list of models. `transformers serve` lists the Hub's cache instead.
SERVERS = {"llamacpp": "llama-server", "me": "llama_cpp.server", "vllm": "vLLM"}
TRANSFORMERS = "transformers serve"

# Switches off what llama.cpp does to a distribution by default. vLLM knows two of the three and ignores the third.
PLAIN_SAMPLING = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}

GUIDED_CODES = 64  # how many codes guidance in this client chooses among


class ServerError(RuntimeError):
    """The server cannot be reached, refuses a request, or returns no valid answer or drawing."""


class Client:
    """A client of one of the four servers. Several threads may share it.

    Args:
        base_url: such as "http://127.0.0.1:8080/v1".
        checkpoint: folder or name of the served DPS.
        model: the name of the model on the server, if the server has several.
        key_variable: the environment variable that holds the server's key, if it needs one.
        timeout_seconds: of one request.

    Raises:
        ImportError: openai is missing.
        ServerError: no server answers at `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        checkpoint: str | os.PathLike = dps_hf.NANO,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout_seconds: float = 300.0,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError("Client needs openai. Install it with `pip install dps_hf[serve]`.") from error
        self._openai, self._key = openai, os.environ.get(key_variable, "").strip() or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=self._key, timeout=timeout_seconds)
        self.base_url = base_url
        listed = self._call(self._list_models)
        name, owner = next((entry for entry in listed if model in (None, entry[0])), (None, ""))
        self.server = SERVERS.get(owner, TRANSFORMERS)
        if self.server == TRANSFORMERS:
            name = None  # what it lists is the Hub's cache
        self.model: Any = model or name  # None where the server was started with its one model
        self.config, self.processor = AutoConfig.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
        self._image_tokenizer = load_image_tokenizer(checkpoint)
        start = self.config.image_code_start_id
        self._code_ids = list(range(start, start + self.config.codebook_size))
        self._drawing_fields, self._answer_fields = (
            self._choose_tokens(drawing=True),
            self._choose_tokens(drawing=False),
        )

    def _list_models(self) -> list[tuple[str, str]]:
        """Names and owners of the server's models."""
        try:
            return [
                (entry.id, entry.owned_by) for entry in self._client.with_options(max_retries=0).models.list().data
            ]
        except self._openai.InternalServerError:  # of `transformers serve`, where the Hub's cache is no folder yet
            return []

    def ask(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        think: bool = False,
        max_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
    ) -> Answer:
        """Answers a question, about the pictures before it if there are any.

        The answer holds no image codes: they are banned in the request, as `model.generate` bans them.

        Args:
            think: whether the model thinks before it answers. llama_cpp.server takes this from its own command line:
                `--chat_template_kwargs '{"enable_thinking": true}'`.
            temperature: 0 is greedy.

        Raises:
            ServerError: no answer; see [`ServerError`].
        """
        text = self.chat(question, pictures, think, max_tokens=max_tokens, temperature=temperature).message.content
        if not isinstance(text, str):
            raise self._error(f"answers without text ({text!r})")
        return self._answer(text, think)

    def ask_stream(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        think: bool = False,
        max_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
    ) -> Iterator[Answer]:
        """Yields the answer of [`ask`] as it grows; the last one is complete."""
        fields = {"max_tokens": max_tokens, "temperature": temperature, "stream": True}
        chunks, text = self._chat(question, pictures, think, **fields), ""
        while (chunk := self._call(lambda: next(chunks, None))) is not None:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                text += piece
                yield self._answer(text, think)
        if not text:
            raise self._error("answers without text")

    def _answer(self, text: str, think: bool) -> Answer:
        # Some servers repeat the <think> that the prompt ends in.
        return Answer(*self.processor.split_thinking(text if "<think>" in text or not think else "<think>" + text))

    def chat(self, question: str, pictures: Sequence[Image.Image] = (), think: bool = False, **options):
        """The first choice of a chat completion, an object of openai; `options` are fields of the request.

        Image codes are banned.
        """
        completion = self._chat(question, pictures, think, **options)
        return self._call(lambda: completion.choices[0])

    def _chat(self, question: str, pictures: Sequence[Image.Image], think: bool, **options):
        content: list[dict] = [{"type": "image_url", "image_url": {"url": self._make_data_url(p)}} for p in pictures]
        content.append({"type": "text", "text": question})
        extra = {"chat_template_kwargs": {"enable_thinking": think}, **options.pop("extra_body", {})}
        if self.server != TRANSFORMERS:
            extra = {**self._answer_fields, **PLAIN_SAMPLING, "reasoning_format": "none", **extra}
        return self._call(
            lambda: self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}], extra_body=extra, **options
            )
        )

    def _choose_tokens(self, drawing: bool) -> dict:
        """Fields of a request after which a drawing holds only codes, and an answer none."""
        if self.server == "vLLM":  # with speculative decoding, it ignores logit_bias
            others = set(find_drawing_tokens(self.config))
            words = [token for token in range(self.config.vocab_size) if token not in others]
            return {"allowed_token_ids": self._code_ids if drawing else words}
        if drawing:
            return {"logit_bias": dict.fromkeys(map(str, self._code_ids), 100)}
        return {"logit_bias": dict.fromkeys(map(str, find_drawing_tokens(self.config)), -100)}

    def draw(
        self, prompt: str, temperature: float = TEMPERATURE, guidance_scale: float = 1.0, seed: int | None = None
    ) -> Image.Image:
        """Draws a prompt; see [`draw_codes`]."""
        return self._decode([self.draw_codes(prompt, temperature, guidance_scale, seed)])[0]

    def draw_several(
        self,
        prompt: str,
        n: int,
        temperature: float = TEMPERATURE,
        guidance_scale: float = 1.0,
        seed: int | None = None,
    ) -> list[Image.Image]:
        """Draws a prompt `n` times; see [`draw_codes_several`]."""
        return self._decode(self.draw_codes_several(prompt, n, temperature, guidance_scale, seed))

    def _decode(self, drawings: list[list[int]]) -> list[Image.Image]:
        with torch.no_grad():
            pixels = self._image_tokenizer.decode(torch.tensor(drawings)).clamp(-1, 1)  # (drawings, 3, size, size)
        pictures = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        return [attach_codes(picture, self.processor, codes) for picture, codes in zip(pictures, drawings)]

    def draw_codes(
        self, prompt: str, temperature: float = TEMPERATURE, guidance_scale: float = 1.0, seed: int | None = None
    ) -> list[int]:
        """The codes of a drawing, row by row: `num_codes` numbers in `[0, codebook_size)`.

        Args:
            temperature: 0 is greedy.
            guidance_scale: strength of classifier-free guidance (https://huggingface.co/papers/2207.12598); 1 is none.
                `transformers serve` applies guidance itself. For llama-server, the client asks for the probabilities
                of the 64 likeliest codes with and without the prompt, two requests for each code, and samples itself.
            seed: the same seed gives the same drawing on the same server.

        Raises:
            ValueError: guidance from a server that does not support it.
            ServerError: the server gave another number of codes, or no answer.
        """
        return self.draw_codes_several(prompt, 1, temperature, guidance_scale, seed)[0]

    def draw_codes_several(
        self,
        prompt: str,
        n: int,
        temperature: float = TEMPERATURE,
        guidance_scale: float = 1.0,
        seed: int | None = None,
    ) -> list[list[int]]:
        """The codes of `n` drawings of one prompt.

        vLLM and llama-server draw them at the same time, in one request, and read the prompt once. llama-server draws
        at most as many at a time as it has slots (`--parallel`). The other servers draw one after another.

        Args:
            temperature, guidance_scale: see [`draw_codes`].
            seed: that of the first drawing; each further one has the next number.

        Raises:
            ValueError: `n` is below 1, or greedy drawings, which are all the same; see also [`draw_codes`].
            ServerError: see [`draw_codes`].
        """
        if n < 1:
            raise ValueError(f"n must be 1 or more; got {n}.")
        if n > 1 and not temperature:
            raise ValueError(f"temperature 0 gives the same drawing {n} times. Set n to 1, or temperature above 0.")
        seeds = [None] * n if seed is None else list(range(seed, seed + n))
        slots = self._count_slots(n)
        if self.server == TRANSFORMERS:
            drawings = [self._draw_by_transformers(prompt, temperature, guidance_scale, one) for one in seeds]
        elif guidance_scale != 1:
            with ThreadPoolExecutor(slots) as pool:
                guided = [
                    pool.submit(self._sample_guided_codes, prompt, temperature, guidance_scale, one) for one in seeds
                ]
                drawings = [one.result() for one in guided]
        else:
            drawings = []
            for start in range(0, n, slots):
                count = min(slots, n - start)
                drawings += self._draw_codes_alone(prompt, count, temperature, seeds[start])
        for codes in drawings:
            if len(codes) != self.config.num_codes or max(codes) >= self.config.codebook_size:
                raise self._error(
                    f"gave {len(codes)} codes for a drawing of {self.config.num_codes}. Is it the model of this "
                    "checkpoint, and is its context long enough?"
                )
        return drawings

    def _count_slots(self, n: int) -> int:
        """How many of `n` drawings the server makes at a time."""
        if n == 1 or self.server == "vLLM":
            return n
        if self.server != "llama-server":
            return 1
        root = self._client.with_options(base_url=self.base_url.rstrip("/").removesuffix("/v1"))
        return min(n, self._call(lambda: int(root.get("/props", cast_to=object)["total_slots"])))

    def _draw_by_transformers(self, prompt, temperature, guidance_scale, seed) -> list[int]:
        """Sends the generation config for `model.generate` on the server."""
        generation = {"generation_mode": "image", "guidance_scale": guidance_scale, "do_sample": temperature > 0}
        generation |= {"pad_token_id": self.config.eoi_token_id, "top_k": 0} | (
            {"temperature": temperature} if temperature else {}
        )
        extra = {"generation_config": json.dumps(generation)}
        text = self.chat(prompt, extra_body=extra, **({} if seed is None else {"seed": seed})).message.content
        return self._find_codes(text)

    def _draw_codes_alone(self, prompt, n, temperature, seed) -> list[list[int]]:
        extra = {**self._drawing_fields, **PLAIN_SAMPLING}
        fields = {"temperature": temperature, "extra_body": extra}
        fields |= ({} if seed is None else {"seed": seed}) | ({} if n == 1 else {"n": n})
        choices = self._complete(self._write_beginning(prompt), max_tokens=self.config.num_codes, **fields)
        if len(choices) != n:
            raise self._error(f"gave {len(choices)} drawings instead of {n}")
        return [self._find_codes(choice.text) for choice in choices]

    def _sample_guided_codes(self, prompt, temperature, guidance_scale, seed) -> list[int]:
        """As `drawing_sample` in `generation_dps.py`, among codes that are likely with the prompt."""
        if self.server != "llama-server":
            raise ValueError(
                f"guidance_scale needs llama-server or `transformers serve`; got {guidance_scale} for {self.server}. "
                "Set guidance_scale=1."
            )
        begun, drawn = self._write_beginning(prompt), ""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for index in range(self.config.num_codes):
            scores = self._score_codes(begun + drawn)
            unguided = self._score_codes(self.processor.boi_token + drawn, scores)
            codes = [code for code in scores if code in unguided]
            if not codes:
                raise self._error(f"gave {index} codes for a drawing of {self.config.num_codes}")
            guided = torch.tensor([unguided[c] + guidance_scale * (scores[c] - unguided[c]) for c in codes])
            if temperature:
                choice = torch.multinomial((guided / temperature).softmax(-1), 1, generator=generator)
            else:
                choice = guided.argmax()
            drawn += self.processor.code_token.format(codes[int(choice)])
        return self._find_codes(drawn)

    def _score_codes(self, prompt: str, candidates: Iterable[int] | None = None) -> dict[int, float]:
        """Log-probabilities, up to a constant, of the likeliest next codes, or of the candidates."""
        start = self.config.image_code_start_id
        raised = self._code_ids if candidates is None else [start + code for code in candidates]
        [choice, *_] = self._complete(
            prompt,
            max_tokens=1,
            temperature=1.0,
            logprobs=GUIDED_CODES,
            logit_bias=dict.fromkeys(map(str, raised), 100),
            extra_body={**PLAIN_SAMPLING, "top_p": 1.0, "post_sampling_probs": True},
        )
        try:
            likely = {entry["id"] - start: entry["prob"] for entry in choice.logprobs.content[0]["top_probs"]}
        except (AttributeError, IndexError, KeyError, TypeError):
            raise self._error("gives no probabilities. Set guidance_scale=1") from None
        return {code: math.log(max(p, 1e-30)) for code, p in likely.items() if 0 <= code < self.config.codebook_size}

    def _write_beginning(self, prompt: str) -> str:
        """The prompt up to the first code."""
        message = [{"role": "user", "content": prompt}]
        return self.processor.apply_chat_template(message, add_generation_prompt=True) + self.processor.boi_token

    def _complete(self, prompt: str, **fields) -> list:
        """The choices of a completion, at least one, by their indices."""

        def request():
            choices = self._client.completions.create(model=self.model, prompt=prompt, **fields).choices
            return sorted([choices[0], *choices[1:]], key=lambda choice: choice.index or 0)

        return self._call(request)

    def _find_codes(self, text: str) -> list[int]:
        before, after = map(re.escape, self.processor.code_token.split("{}"))
        return [int(code) for code in re.findall(f"{before}(\\d+){after}", text or "")]

    def _make_data_url(self, picture: Image.Image) -> str:
        """Encodes a picture after the processor has made it a square, which servers do in other ways."""
        pixels = torch.as_tensor(self.processor.image_processor(picture)["pixel_values"][0])
        square = self.processor.post_process_multimodal_output(pixels[None], generation_mode="image")[0]
        square.save(file := BytesIO(), "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _call(self, request):
        """Returns the result of a request; every failure becomes a [`ServerError`]."""
        try:
            return request()
        except self._openai.APITimeoutError:
            raise self._error("did not answer in time") from None
        except self._openai.APIConnectionError:
            raise self._error("cannot be reached, or broke off. Is it running, and is the address right?") from None
        except self._openai.APIStatusError as error:
            reason = error.response.text if self._key == "none" else error.response.text.replace(self._key, "[key]")
            raise self._error(f"refuses with HTTP {error.status_code}: {reason[:300]}") from None
        except (self._openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise self._error(f"gave an answer that is not of the OpenAI protocol ({type(error).__name__})") from None

    def _error(self, what: str) -> ServerError:
        return ServerError(f"The server at {self.base_url} {what}.".replace("?.", "?"))


def load_image_tokenizer(checkpoint: str | os.PathLike) -> PreTrainedModel:
    """Loads the image tokenizer of a DPS in float32, without its other weights.

    Raises:
        ValueError: the checkpoint holds none.
    """
    prefix = "model.image_tokenizer."
    weights: dict[str, torch.Tensor] = {}
    folder = Path(checkpoint)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(checkpoint), allow_patterns="*.safetensors"))
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118  it is no dict
            weights |= {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
    if not weights:
        raise ValueError(f"{checkpoint} holds no image tokenizer. Give the folder or the name of a whole DPS.")
    config = AutoConfig.from_pretrained(checkpoint).image_tokenizer_config
    tokenizer = IMAGE_TOKENIZERS[config.model_type](config)
    tokenizer.load_state_dict(weights)
    return tokenizer.float().eval()
