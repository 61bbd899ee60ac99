"""The examples as modules, and a tiny model on disk for them to load."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import GenerationConfig


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example():
    """Imports an example by its path below `examples/`, without running it."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{Path(path).stem}", EXAMPLES / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def saved_model(make_model, tiny_processor, tmp_path_factory) -> str:
    """A folder with a random model that answers in a few bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    model = make_model()
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=4,
        guidance_scale=3.0,
        do_sample=True,
        top_k=7,
    )
    norm = model.model.language_model.norm.weight.data
    norm.copy_(torch.linspace(0.05, 2, len(norm)))  # as training leaves them: some are near 0
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)
