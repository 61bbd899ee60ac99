"""What DPS needs of transformers, in every version that it runs on.

The code of a checkpoint cannot pin the library that loads it. So names outside of the library's public interface,
which a version may lack, are looked up here, where one error tells which versions work.
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
    from transformers.activations import ACT2FN
    from transformers.cache_utils import Cache
    from transformers.generation import GenerateDecoderOnlyOutput
    from transformers.image_utils import infer_channel_dimension_format, is_valid_image, make_flat_list_of_images
    from transformers.masking_utils import create_masks_for_generate
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.auto import modeling_auto
    from transformers.processing_utils import ImagesKwargs, MultiModalData
    from transformers.quantizers import AutoQuantizationConfig
    from transformers.utils import ModelOutput, can_return_tuple, torch_compilable_check
except ImportError as error:
    raise ImportError(_SENTENCE) from error

# The library calls the cache of keys and values `past_key_values` up to 5.23, and `cache` from 5.24 on.
CACHE_NAMES = ("cache", "past_key_values")


def find_cache_name(function) -> str | None:
    """The name of a function's argument for the cache, `None` if it has none."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


CACHE: str = find_cache_name(transformers.GenerationMixin.prepare_inputs_for_generation) or ""
if not CACHE:
    raise ImportError(_SENTENCE)


def take_cache(cache: Cache | None, past_key_values: Cache | None, kwargs: dict) -> Cache | None:
    """The cache that was given by either name; a TypeError if by both, or by one that decoders would ignore."""
    for name, value in kwargs.items():
        if isinstance(value, Cache) or name.startswith("past") or name in ("cache_params", "kv_cache"):
            raise TypeError(f"forward() takes a cache as {' or '.join(CACHE_NAMES)}; got {name}. Rename it.")
    if cache is not None and past_key_values is not None:
        raise TypeError(f"forward() takes one cache; got {' and '.join(CACHE_NAMES)}. Leave one of them out.")
    if CACHE != "cache" and not isinstance(cache, Cache | None):  # continuous batching up to 5.23 has another `cache`
        kwargs["cache"], cache = cache, None
    if past_key_values is not None and CACHE == "cache" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated: transformers calls it `cache` now.", FutureWarning, 2)
    return cache if past_key_values is None else past_key_values
