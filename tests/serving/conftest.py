"""A checkpoint that llama.cpp would take, and a server that says whatever a test wants."""

import json

import pytest
from scripted_server import scripted_server

from dps_hf.components import make_processor
from dps_hf.model.processing_dps import DPSProcessor


@pytest.fixture(scope="session")
def merging_processor(tiny_processor, tiny_config) -> DPSProcessor:
    """As `tiny_processor`, with a tokenizer that merges."""
    spec = json.loads(tiny_processor.tokenizer.backend_tokenizer.to_str())
    unused = spec["model"]["vocab"].pop("Ń")  # of a byte that no text has
    spec["model"]["vocab"]["he"], spec["model"]["merges"] = unused, [["h", "e"]]
    tokenizer = type(tiny_processor.tokenizer)(
        tokenizer_object=type(tiny_processor.tokenizer.backend_tokenizer).from_str(json.dumps(spec)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    return make_processor(tokenizer, tiny_config)


@pytest.fixture(scope="session")
def checkpoint(tiny_model, merging_processor, tmp_path_factory):
    """The folder of a tiny DPS."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_model.save_pretrained(folder)
    merging_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def server():
    with scripted_server() as script:
        yield script
