"""Writes a DPS as two GGUF files for llama.cpp: the decoder with its tokenizer, and the tower with the connector.

python -m dps_hf.serving.gguf dps_hf/checkpoints/dps-nano outputs/gguf --type f16
llama-server --model outputs/gguf/dps-nano-f16.gguf --mmproj outputs/gguf/mmproj-dps-nano-f16.gguf

The decoder must be a Llama with a byte-level BPE tokenizer, and the tower must have the connector's activation. For
the folder of a LoRA adapter, the merged model is written. The image tokenizer is not written: llama.cpp gives the
codes of a drawing, and `dps_hf.serving.client` turns them into a picture.

With `--prefer_words`, the head has a bias against the tokens of drawings, so that answers hold none of them, whatever
the client. The decoder is then written as a Qwen2, which is a Llama whose head may have a bias.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import dps_hf  # noqa: F401  registers DPS with the Auto classes
from dps_hf.command_line import show_errors
from dps_hf.model.modeling_dps import DPSForConditionalGeneration
from dps_hf.model.processing_dps import DPSProcessor
from dps_hf.serving.drawing_tokens import find_drawing_tokens


TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

# llama.cpp's key for the activation of a tower and its projector, which share one; the default has no key.
ACTIVATIONS = {"gelu_pytorch_tanh": "use_gelu", "silu": "use_silu", "quick_gelu": None}

# Far below all logits of words. The bias that a request for a drawing asks for is twice as large.
WORDS_BIAS = -50.0

# How text is split before BPE merges it, by llama.cpp's name.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {("words",): "gpt-2", ("digits", "words"): "smollm", (LLAMA_3, "bytes"): "llama-bpe"}


def load(checkpoint: str | Path) -> tuple[DPSForConditionalGeneration, DPSProcessor]:
    """Loads a model in float32 and its processor; an adapter is merged into its base.

    Raises:
        ImportError: the folder holds an adapter, and peft is missing.
        ValueError: the adapter's tokens are not those of its tokenizer.
    """
    if not (Path(checkpoint) / "adapter_config.json").exists():
        model = AutoModelForMultimodalLM.from_pretrained(checkpoint, dtype=torch.float32)
        return model, AutoProcessor.from_pretrained(checkpoint)
    try:
        from peft import PeftConfig

        from dps_hf.merging import load_adapter, merge
    except ImportError as error:
        raise ImportError(
            f"{checkpoint} holds an adapter, and merging it needs peft. Install it with `pip install dps_hf[train]`."
        ) from error
    base = PeftConfig.from_pretrained(checkpoint).base_model_name_or_path
    model = AutoModelForMultimodalLM.from_pretrained(base, dtype=torch.float32)
    adapted, processor = load_adapter(model, AutoProcessor.from_pretrained(base), checkpoint)
    model = merge(adapted)
    print(f"Merged the adapter {checkpoint} into {base}.")
    return model, processor


def export(
    checkpoint: str | Path, output: str | Path, type: str = "f16", prefer_words: bool = False
) -> tuple[Path, Path]:
    """Writes `<name>-<type>.gguf` and `mmproj-<name>-<type>.gguf` into the folder `output`, and returns their paths.

    Vectors, the patch embedding and the position embedding are float32 whatever the type.

    Args:
        prefer_words: whether the logits of the tokens of drawings are lowered by 50. Answers then hold none of them,
            and a request for a drawing must raise them again, as the client of this package does.

    Raises:
        ValueError: an unknown type, or llama.cpp cannot compute what this model computes.
    """
    if type not in TYPES:
        raise ValueError(f"type must be one of {', '.join(TYPES)}; got {type!r}.")
    model, processor = load(checkpoint)
    check(model, processor, prefer_words)
    name = Path(checkpoint).resolve().name
    text, mmproj = Path(output) / f"{name}-{type}.gguf", Path(output) / f"mmproj-{name}-{type}.gguf"
    text.parent.mkdir(parents=True, exist_ok=True)
    write_text(model, processor, text, name, type, prefer_words)
    write_mmproj(model, processor, mmproj, name, type)
    return text, mmproj


def check(model: DPSForConditionalGeneration, processor: DPSProcessor, prefer_words: bool = False) -> None:
    """Raises a ValueError if llama.cpp would compute something else than this model."""
    config, text, pictures = model.config, model.config.text_config, processor.image_processor
    if text.model_type != "llama":
        raise _make_refusal("text_config.model_type", text.model_type, "'llama'")
    rotary = model.model.language_model.rotary_emb
    size = config.vision_config.image_size
    for field, value, supported in (
        ("text_config.hidden_act", text.hidden_act, ("silu",)),
        ("text_config.rope_parameters['rope_type']", rotary.rope_type, ("default", "linear", "llama3")),
        ("rotated dimensions of a head", 2 * len(rotary.inv_freq), (text.head_dim,)),
        ("vision_config.hidden_act", config.vision_config.hidden_act, tuple(ACTIVATIONS)),
        ("projector_hidden_act", config.projector_hidden_act, (config.vision_config.hidden_act,)),
        ("image_processor.size", (pictures.size["height"], pictures.size["width"]), ((size, size),)),
        ("image_processor.background_color", tuple(pictures.background_color), ((127, 127, 127),)),
        ("image_processor.resample", int(pictures.resample), (3,)),
    ):
        if value not in supported:
            raise _make_refusal(field, value, " or ".join(map(repr, supported)))
    if prefer_words:
        for field, found, wanted in (
            ("text_config.rope_parameters['rope_type']", str(rotary.rope_type), "default"),
            ("text_config.attention_bias", str(text.attention_bias), "False"),
            ("text_config.mlp_bias", str(text.mlp_bias), "False"),
        ):
            if found != wanted:
                raise ValueError(
                    f"prefer_words takes a DPS whose {field} is {wanted}; got {found}. Leave prefer_words out."
                )
    _find_pre_tokenizer(_read_tokenizer(processor))
    tokens = max(processor.tokenizer.get_vocab().values()) + 1
    if tokens > text.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokens} tokens, and text_config.vocab_size is {text.vocab_size}: some have no "
            f"embedding. Call model.resize_token_embeddings({tokens}) and save it, or save the tokenizer without them."
        )


def _make_refusal(field: str, value, supported: str) -> ValueError:
    return ValueError(
        f"llama.cpp takes a DPS whose {field} is {supported}; got {value!r}. Serve this one with vLLM or "
        "`transformers serve`."
    )


def _read_tokenizer(processor: DPSProcessor) -> dict:
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    tokenizer = (
        {"model": {"type": type(processor.tokenizer).__name__}} if backend is None else json.loads(backend.to_str())
    )
    if tokenizer["model"]["type"] != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise _make_refusal("tokenizer", tokenizer["model"]["type"], "byte-level BPE")
    if tokenizer["normalizer"] is not None:
        raise _make_refusal("tokenizer's normalizer", tokenizer["normalizer"], "null")
    return tokenizer


def _find_pre_tokenizer(tokenizer: dict) -> str:
    """llama.cpp's name for how the tokenizer splits text before it merges."""
    split = tokenizer["pre_tokenizer"] or {"type": None}
    steps = []
    for step in split.get("pretokenizers", [split]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            steps.append("words" if step["use_regex"] else "bytes")
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append(step["pattern"].get("Regex"))
        else:
            steps.append(None)
    if tuple(steps) not in PRE_TOKENIZERS:
        raise _make_refusal("tokenizer's pre_tokenizer", split, "that of GPT-2, of SmolLM or of Llama 3")
    return PRE_TOKENIZERS[tuple(steps)]


def write_text(
    model: DPSForConditionalGeneration,
    processor: DPSProcessor,
    path: Path,
    name: str,
    type: str,
    prefer_words: bool = False,
) -> None:
    """Writes the decoder, its tokenizer and the chat template; call [`check`] first."""
    config = model.config.text_config
    architecture = gguf.MODEL_ARCH.QWEN2 if prefer_words else gguf.MODEL_ARCH.LLAMA
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(TYPES[type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, processor, config.vocab_size)

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, tensor in model.model.language_model.state_dict().items():
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f".{projection}." in key and not prefer_words:
                tensor = _rotate_in_pairs(tensor, heads)
        _add_tensor(writer, names, f"model.{key}", tensor, type)
    head = model.get_output_embeddings().weight
    if not torch.equal(head, model.get_input_embeddings().weight):  # tied weights are in the file once
        _add_tensor(writer, names, "lm_head.weight", head, type)
    if prefer_words:
        bias = torch.zeros(config.vocab_size)
        bias[find_drawing_tokens(model.config)] = WORDS_BIAS
        writer.add_tensor("output.bias", bias.numpy())

    rotary = model.model.language_model.rotary_emb
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    factors = config.rope_parameters["rope_theta"] ** -steps / rotary.inv_freq.float().cpu()
    if not torch.allclose(factors, torch.ones_like(factors)):  # a context that was stretched, as in Llama 3.1
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    _write(writer)


def write_mmproj(
    model: DPSForConditionalGeneration, processor: DPSProcessor, path: Path, name: str, type: str
) -> None:
    """Writes the tower, and the connector as the equal projector of Janus-Pro; call [`check`] first."""
    config = model.config.vision_config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name)
    writer.add_file_type(TYPES[type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.JANUS_PRO)
    writer.add_vision_projection_dim(model.config.hidden_size)
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_block_count(config.num_hidden_layers)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean(list(processor.image_processor.image_mean))
    writer.add_vision_image_std(list(processor.image_processor.image_std))
    if activation := ACTIVATIONS[config.hidden_act]:
        writer.add_bool(f"clip.{activation}", True)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, config.num_hidden_layers)
    for key, tensor in model.model.vision_tower.state_dict().items():
        if not key.startswith("head."):  # pools the patches, which DPS reads one by one
            _add_tensor(writer, names, f"vision_tower.vision_model.{key}", tensor, type)
    for index, linear in enumerate((model.model.connector.linear_1, model.model.connector.linear_2)):
        for key, tensor in linear.state_dict().items():
            _add_tensor(writer, names, f"mm.{index}.{key}", tensor, type)
    _write(writer)


def _add_tokenizer(writer: gguf.GGUFWriter, processor: DPSProcessor, vocab_size: int) -> None:
    tokenizer, spec = processor.tokenizer, _read_tokenizer(processor)
    names = dict(enumerate(f"[PAD{i}]" for i in range(vocab_size)))
    types = dict.fromkeys(names, gguf.TokenType.UNUSED)
    for token, id in tokenizer.get_vocab().items():
        names[id], types[id] = token, gguf.TokenType.NORMAL
    for id, token in tokenizer.added_tokens_decoder.items():
        types[id] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    begins = tokenizer("").input_ids[:1]

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_find_pre_tokenizer(spec))
    writer.add_token_list([names[id] for id in range(vocab_size)])
    writer.add_token_types([types[id] for id in range(vocab_size)])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(begins == [tokenizer.bos_token_id])
    for name in ("bos", "eos", "pad"):
        if (id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_chat_template(processor.chat_template)


def _rotate_in_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection, from halves that rotate together (transformers) to neighbours (a Llama)."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_tensor(writer: gguf.GGUFWriter, names: gguf.TensorNameMap, key: str, tensor: torch.Tensor, type: str) -> None:
    name = key if key.startswith("mm.") else names.get_name(key, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise ValueError(
            f"llama.cpp has no place for the tensor {key}. Serve this model with vLLM or `transformers serve`."
        )
    qtype = TYPES[type][0]
    if tensor.dim() == 1 or name in ("v.patch_embd.weight", "v.position_embd.weight"):
        qtype = gguf.GGMLQuantizationType.F32
    elif qtype == gguf.GGMLQuantizationType.Q8_0 and tensor.shape[-1] % 32:  # rows are quantized in blocks of 32
        qtype = gguf.GGMLQuantizationType.F16
    array = gguf.quants.quantize(tensor.detach().float().cpu().numpy(), qtype)
    writer.add_tensor(name, array, raw_dtype=qtype)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a DPS as two GGUF files for llama.cpp.")
    parser.add_argument(
        "checkpoint", help="folder or name of a DPS, or of a LoRA adapter, which is merged into its base"
    )
    parser.add_argument("output", help="folder for the two files")
    parser.add_argument("--type", choices=list(TYPES), default="f16", help="of the matrices (default: f16)")
    parser.add_argument("--prefer_words", action="store_true", help="answers hold no image codes, whatever the client")
    arguments = parser.parse_args()
    for path in export(arguments.checkpoint, arguments.output, arguments.type, arguments.prefer_words):
        print(path)


if __name__ == "__main__":
    with show_errors():
        main()
