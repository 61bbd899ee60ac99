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


@pytest.fixture(scope="session")
def snapshot():
    """What lies in a folder: each file's bytes and when it was written."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return take
