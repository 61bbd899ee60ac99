"""dps-nano on the real servers, where they are installed as the scripts in `examples/serve/` install them."""

import importlib.util
import sys
from pathlib import Path

import pytest

from dps_hf import NANO
from dps_hf.inference import load
from dps_hf.serving.client import Client
from dps_hf.serving.gguf import export


ROOT = Path(__file__).parents[2]
LLAMA_SERVER = ROOT / "outputs/llama.cpp/build/bin/llama-server"
VLLM_PYTHON = ROOT / "outputs/venv-vllm/bin/python"
ITEMS = 50


@pytest.fixture(scope="module")
def scripts():
    folders = [str(ROOT / "examples/nano"), str(ROOT / "examples/benchmarks")]
    sys.path[:0] = folders
    import parity
    import serving

    yield parity, serving
    for folder in folders:
        sys.path.remove(folder)
    for name in ("parity", "serving", "comparison"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module", params=["llama-server", "llama_cpp.server", "vLLM"])
def served(request, scripts, tmp_path_factory):
    """A client of one of the servers, started so that any client gets words."""
    name, folder = request.param, tmp_path_factory.mktemp("served")
    if name == "vLLM":
        if not VLLM_PYTHON.exists():
            pytest.skip("examples/serve/vllm.sh installs vLLM")
        command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(NANO)]
        command += ["--trust-remote-code", "--gpu-memory-utilization", "0.2", "--host", "127.0.0.1"]
        command += ["--logits-processors", "dps_hf.serving.vllm_words:WordsOnly"]
    else:
        if name == "llama-server" and not LLAMA_SERVER.exists():
            pytest.skip("examples/serve/llama_server.sh builds llama-server")
        if name == "llama_cpp.server" and importlib.util.find_spec("llama_cpp") is None:
            pytest.skip("examples/serve/llama_cpp_python.sh installs llama-cpp-python")
        text, mmproj = map(str, export(NANO, folder, "f16", prefer_words=True))
        command = [str(LLAMA_SERVER), "--model", text, "--mmproj", mmproj]
        if name == "llama_cpp.server":
            command = [sys.executable, "-m", "llama_cpp.server", "--model", text, "--clip_model_path", mmproj]
            command += ["--chat_format", "mtmd", "--n_ctx", "1024", "--logits_all", "true"]
    with scripts[1].start_server(name, command, 8092, folder / "log", str(NANO)) as client:
        assert client.server == name
        yield client


class PlainClient(Client):
    """A client that knows nothing of image codes in its questions."""

    def _choose_tokens(self, drawing):
        return super()._choose_tokens(drawing) if drawing else {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Client, PlainClient])
def test_short_answers_are_those_of_transformers(kind, served, scripts):
    parity, _ = scripts
    model, processor = load(NANO)
    client = kind(served.base_url, NANO)
    figures = parity.compare_texts(client, model, processor, parity.make_pictures(ITEMS), False, concurrency=2)
    assert figures["text_equal"]["value"] >= 49 / 50, figures["divergences"]


@pytest.mark.slow
def test_drawings_are_those_of_transformers(served, scripts):
    parity, _ = scripts
    model, processor = load(NANO)
    [prompt] = parity.make_prompts(1)
    reference = parity.generate(model, processor, prompt, generation_mode="image", guidance_scale=1.0)
    start = model.config.image_code_start_id
    assert served.draw_codes(prompt, temperature=0.0) == [int(t) - start for t in reference.tokens if t >= start]


@pytest.mark.slow
def test_several_drawings_of_one_prompt_differ(served):
    drawings = served.draw_codes_several("cat, noto style", 3, temperature=1.0, seed=1)
    assert len({tuple(codes) for codes in drawings}) == 3
