"""DPS for Hugging Face: a small model that reads images and text, draws images from text, and reasons.

import dps_hf

model, processor = dps_hf.load()
picture = dps_hf.draw(model, processor, ["a big red heart"])[0]
print(dps_hf.ask(model, processor, ["What colour is the heart?"], [picture])[0].text)

[`~dps_hf.inference.load`], [`~dps_hf.inference.draw`] and [`~dps_hf.inference.ask`] are in `inference.py`. Importing
the package also registers DPS with `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`,
`AutoModelForMultimodalLM`, `AutoModelForCausalLM`, `AutoImageProcessor` and `AutoProcessor`. The import is cheap:
modules, and torch, are imported when a name is first used.
"""

import importlib
import sys
from pathlib import Path

# Tables of names, which need no torch.
from transformers.models.auto import auto_mappings


__version__ = "0.1.0"

NANO = str(Path(__file__).parent / "checkpoints" / "dps-nano")

_MODULE_OF = {
    "DPSConfig": "model.configuration_dps",
    "DPSImageTokenizerConfig": "model.configuration_dps",
    "DPSModel": "model.modeling_dps",
    "DPSForConditionalGeneration": "model.modeling_dps",
    "DPSImageTokenizer": "model.image_tokenizer_dps",
    "DPSImageProcessor": "model.image_processing_dps",
    "DPSProcessor": "model.processing_dps",
    "from_components": "components",
    "load": "inference",
    "draw": "inference",
    "ask": "inference",
}
__all__ = ["NANO", "__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Imports all public names, and registers the classes with the Auto classes."""
    import transformers as auto

    dps = {name: getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name) for name in _MODULE_OF}
    globals().update(dps)

    config, model = dps["DPSConfig"], dps["DPSForConditionalGeneration"]
    auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.AutoModel.register(config, dps["DPSModel"], exist_ok=True)
    for auto_class in (auto.AutoModelForCausalLM, auto.AutoModelForImageTextToText, auto.AutoModelForMultimodalLM):
        auto_class.register(config, model, exist_ok=True)
    # One class for both backends, so that it also loads without torchvision.
    backends = dict.fromkeys(("pil", "torchvision"), dps["DPSImageProcessor"])
    auto.AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)
    auto.AutoProcessor.register(config, dps["DPSProcessor"], exist_ok=True)

    config = dps["DPSImageTokenizerConfig"]
    auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.AutoModel.register(config, dps["DPSImageTokenizer"], exist_ok=True)


def _register_names() -> None:
    """Registers names only. The Auto classes look them up in `transformers.models.<type>`, as for their own models.

    That module is this package, so the first look-up imports DPS.
    """
    for model_type, config in (("dps", "DPSConfig"), ("dps_image_tokenizer", "DPSImageTokenizerConfig")):
        sys.modules[f"transformers.models.{model_type}"] = sys.modules[__name__]
        auto_mappings.CONFIG_MAPPING_NAMES[model_type] = config
    auto_mappings.PROCESSOR_MAPPING_NAMES["dps"] = "DPSProcessor"
    auto_mappings.IMAGE_PROCESSOR_MAPPING_NAMES["dps"] = dict.fromkeys(("pil", "torchvision"), "DPSImageProcessor")


if "transformers.models.auto.configuration_auto" in sys.modules:  # it has read its names, and has imported torch
    _register()
else:
    _register_names()
