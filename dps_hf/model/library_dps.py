"""All that DPS imports from transformers, in every version that it runs on.

The code of a checkpoint cannot pin the library that loads it. So names that a version may lack are imported here,
where one error tells which versions work, and names that changed between versions are looked up.
"""

import inspect
import warnings

import torch
import transformers


RUNS_ON = "5.19 to 5.24"
_SENTENCE = f"DPS runs on transformers {RUNS_ON}; this is {transformers.__version__}. Install one of those."

# Some older versions load a checkpoint without half of its weights.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 19):
    raise ImportError(_SENTENCE)
try:
    from huggingface_hub.dataclasses import strict
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoModel,
        BatchFeature,
        GenerationMixin,
        JanusImageProcessorPil,
        JanusVQVAE,
        LogitsProcessor,
        LogitsProcessorList,
        MinPLogitsWarper,
        PreTrainedConfig,
        PreTrainedModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )
    from transformers.activations import ACT2FN
    from transformers.cache_utils import Cache
    from transformers.generation import GenerateDecoderOnlyOutput
    from transformers.image_utils import (
        infer_channel_dimension_format,
        is_valid_image,
        make_flat_list_of_images,
    )
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.auto import modeling_auto
    from transformers.processing_utils import MultiModalData, ProcessorMixin, Unpack
    from transformers.quantizers import AutoQuantizationConfig
    from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, torch_compilable_check
except ImportError as error:
    raise ImportError(_SENTENCE) from error

# The library calls the cache of keys and values `past_key_values` up to 5.23, and `cache` from 5.24 on.
CACHE_NAMES = ("cache", "past_key_values")


def find_cache_name(function) -> str | None:
    """The name of a function's argument for the cache, `None` if it has none."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


CACHE: str = find_cache_name(GenerationMixin.prepare_inputs_for_generation) or ""
if not CACHE:
    raise ImportError(_SENTENCE)


def take_cache(cache: Cache | None, past_key_values: Cache | None, kwargs: dict) -> Cache | None:
    """Returns the cache that was given by either of its names.

    Args:
        kwargs: the other arguments. Up to 5.23, continuous batching passes something else as `cache`; it is put back
            here.

    Raises:
        TypeError: both names are given, or `kwargs` hold a cache by a name that no version of the library has. The
            decoder would ignore that cache and compute wrong logits.
    """
    unknown = [name for name, value in kwargs.items() if isinstance(value, Cache)]
    unknown += [name for name in kwargs if name.startswith("past") or name in ("cache_params", "kv_cache")]
    if unknown:
        raise TypeError(f"forward() takes a cache as {' or '.join(CACHE_NAMES)}; got {unknown[0]}. Rename it.")
    if cache is not None and past_key_values is not None:
        raise TypeError(f"forward() takes one cache; got {' and '.join(CACHE_NAMES)}. Leave one of them out.")
    if past_key_values is not None:
        if CACHE != "past_key_values" and not torch.compiler.is_compiling():
            warnings.warn("`past_key_values` is deprecated: transformers calls it `cache` now.", FutureWarning, 2)
        return past_key_values
    if CACHE != "cache" and cache is not None and not isinstance(cache, Cache):
        kwargs["cache"] = cache
        return None
    return cache
