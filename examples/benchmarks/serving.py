"""Times llama-server and vLLM: several drawings in one request, speculative decoding, and the ban of codes in answers.

python examples/benchmarks/serving.py
python examples/benchmarks/serving.py --llama_server /usr/bin/llama-server --vllm_python ""

The servers are those that `examples/serve/llama_server.sh` and `vllm.sh` install. One that is missing is skipped.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

from comparison import Comparison, compare, write_report
from transformers import HfArgumentParser

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.serving.client import Client
from dps_hf.serving.gguf import export


PROMPTS = ("a big red heart", "a small blue star above a green circle", "two yellow squares", "cat, noto style")
QUESTIONS = ("Describe the picture.", "How many things are there?", "What colour is the heart?", "What is this?")
SPECULATION = {  # of the settings tried, those with which dps-nano draws fastest
    "llama-server": ["--spec-type", "ngram-simple", "--spec-ngram-simple-min-hits", "1"]
    + ["--spec-ngram-simple-size-n", "1", "--spec-ngram-simple-size-m", "8"],
    "vLLM": [
        "--speculative-config",
        json.dumps({"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 2}),
    ],
}
START_SECONDS = 300


@dataclass
class ScriptArguments:
    """
    model: folder of a DPS.
    rounds: turns of each comparison.
    drawings: number of drawings of one prompt.
    llama_server, vllm_python: the program llama-server, and the Python with vLLM.
    """

    model: str = NANO
    output: Path = Path("outputs/benchmarks/serving.json")
    rounds: int = 5
    drawings: int = 4
    llama_server: str = "outputs/llama.cpp/build/bin/llama-server"
    vllm_python: str = "outputs/venv-vllm/bin/python"


@contextmanager
def start_server(name: str, command: list[str], port: int, log: Path, model: str) -> Iterator[Client]:
    """A client of a server that runs as long as the context."""
    with log.open("wb") as file:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT)
        try:
            limit = time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError as error:
                    if isinstance(error, HTTPError) and error.code == 404:  # llama_cpp.server is up without /health
                        break
                    if server.poll() is not None or time.monotonic() > limit:
                        raise RuntimeError(f"{name} does not start: {log.read_text()[-2000:]}") from None
                    time.sleep(0.5)
            yield Client(f"http://127.0.0.1:{port}/v1", model)
        finally:
            server.terminate()
            server.wait()


def compare_server(name: str, plain: Client, speculative: Client, script: ScriptArguments) -> list[Comparison]:
    """All comparisons of one server."""
    n, prompt = script.drawings, PROMPTS[1]

    def ask(**choice) -> None:
        for question in QUESTIONS:
            plain.chat(question, max_tokens=32, temperature=0.0, **choice)

    def draw(client: Client, temperature: float) -> None:
        for text in PROMPTS:
            client.draw_codes(text, temperature, seed=0)

    rounds = script.rounds
    return [
        compare(
            f"{n} drawings of one prompt",
            lambda: plain.draw_codes_several(prompt, n, seed=0),
            lambda: [plain.draw_codes(prompt, seed=seed) for seed in range(n)],
            rounds,
            peer_name=f"{name}, one by one",
        ),
        compare(
            "answers without image codes",
            ask,
            lambda: ask(extra_body={"logit_bias": None, "allowed_token_ids": None}),
            rounds,
            peer_name=f"{name}, all tokens allowed",
        ),
        *(
            compare(
                f"speculative drawings, {kind}",
                lambda temperature=temperature: draw(speculative, temperature),
                lambda temperature=temperature: draw(plain, temperature),
                rounds,
                peer_name=f"{name}, one code at a time",
            )
            for kind, temperature in (("greedy", 0.0), ("sampled", 0.5))
        ),
    ]


def make_commands(script: ScriptArguments, folder: Path) -> dict[str, list[str]]:
    """The commands of the servers that are installed, by their names."""
    commands = {}
    if script.llama_server and Path(script.llama_server).exists():
        text, mmproj = export(script.model, folder, "f16", prefer_words=False)
        commands["llama-server"] = [script.llama_server, "--model", str(text), "--mmproj", str(mmproj)]
    if script.vllm_python and Path(script.vllm_python).exists():
        commands["vLLM"] = [script.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", script.model]
        commands["vLLM"] += ["--trust-remote-code", "--gpu-memory-utilization", "0.2", "--host", "127.0.0.1"]
    return commands


def main(script: ScriptArguments) -> None:
    comparisons = []
    with TemporaryDirectory() as folder:
        for name, command in make_commands(script, Path(folder)).items():
            with ExitStack() as stack:
                clients = []
                for port, more in ((8090, []), (8091, SPECULATION[name])):
                    log = Path(folder) / f"{port}.log"
                    server = start_server(name, [*command, *more], port, log, script.model)
                    clients.append(stack.enter_context(server))
                comparisons += compare_server(name, *clients, script)
    if not comparisons:
        print("No server is installed. Run examples/serve/llama_server.sh or vllm.sh first.", file=sys.stderr)
    write_report(script.output, comparisons, model=Path(script.model).name, speculation=SPECULATION)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
