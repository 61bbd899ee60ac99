"""transformers' own test mixins, run on DPS.

make compat
TRANSFORMERS_TESTS=/path/to/transformers-5.24.0 python -m pytest -m mixins tests/model/test_common_mixins.py

The folder is an unpacked sdist (`pip download --no-deps --no-binary :all: transformers==5.24.0`), or a checkout of the
same version, whose `tests/generation` and `tests/exporters` hold more mixins; those that are not there are left out.
"""

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaConfig, SiglipVisionConfig
from transformers.models.auto import modeling_auto

from dps_hf.model.configuration_dps import DPSConfig, DPSImageTokenizerConfig
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel


pytestmark = [pytest.mark.slow, pytest.mark.mixins]
ROOT = os.environ.get("TRANSFORMERS_TESTS")
if ROOT is None:
    pytest.skip("set TRANSFORMERS_TESTS to an unpacked sdist of transformers", allow_module_level=True)


def mixin(module_name: str, class_name: str) -> type:
    """A mixin of transformers' tests; an empty class where its module is not in the folder."""
    path = Path(ROOT, *module_name.split(".")).with_suffix(".py")
    if path.exists():
        return getattr(importlib.import_module(module_name), class_name)
    stand_in = types.ModuleType(module_name)
    setattr(stand_in, class_name, type(class_name, (), {}))
    sys.modules[module_name] = stand_in
    return getattr(stand_in, class_name)


# The mixins know by this list which classes have no loss.
modeling_auto.MODEL_MAPPING_NAMES.setdefault("dps", "DPSModel")
sys.path.insert(0, ROOT)
mixin("tests.exporters.test_export", "ExportTesterMixin")  # the other two import these
GenerationTesterMixin = mixin("tests.generation.test_utils", "GenerationTesterMixin")
ModelTesterMixin = mixin("tests.test_modeling_common", "ModelTesterMixin")


class DPSModelTester:
    """A tiny DPS and a batch of three prompts, each with one picture of four placeholders."""

    batch_size, seq_length, is_training = 3, 12, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 99
    # The mixin cuts the vocabulary at its end, so all ids that are not text lie at its beginning, after those that
    # Llama has by default.
    image_token_id, image_code_start_id, pad_token_id, eos_token_id = 3, 6, 22, 23

    def __init__(self, parent):
        self.parent = parent

    def get_config(self) -> DPSConfig:
        return DPSConfig(
            text_config=LlamaConfig(
                vocab_size=self.vocab_size,
                hidden_size=self.hidden_size,
                intermediate_size=37,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                max_position_embeddings=512,
                bos_token_id=None,
                pad_token_id=self.pad_token_id,
                eos_token_id=self.eos_token_id,
            ),
            vision_config=SiglipVisionConfig(
                hidden_size=self.hidden_size,
                intermediate_size=37,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                image_size=16,
                patch_size=8,
                vision_use_head=False,
            ),
            image_tokenizer_config=DPSImageTokenizerConfig(
                image_size=16, patch_size=4, hidden_sizes=(8, 16), num_res_blocks=1, levels=(4, 4)
            ),
            image_token_id=self.image_token_id,
            boi_token_id=4,
            eoi_token_id=5,
            image_code_start_id=self.image_code_start_id,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[DPSConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(self.eos_token_id + 1, self.vocab_size, (self.batch_size, self.seq_length))
        input_ids[:, 1:5] = self.image_token_id
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, 16, 16) * 2 - 1,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return self.get_config(), inputs


class DPSModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (DPSModel, DPSForConditionalGeneration)
    all_generative_model_classes = (DPSForConditionalGeneration,)
    _is_composite = True
    # Up to 5.19 it unfreezes all weights, those of the image tokenizer too, which no loss reaches.
    test_all_params_have_gradient = not transformers.__version__.startswith("5.19.")

    def setUp(self):
        self.model_tester = DPSModelTester(self)
