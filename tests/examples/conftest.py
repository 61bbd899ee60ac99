"""The examples as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


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
