"""A page to draw, to describe pictures and to reason; votes on the results are kept.

python examples/app.py
python examples/app.py --model runs/nano --votes outputs/votes/votes.jsonl --port 7861
python examples/app.py --server http://127.0.0.1:8080/v1    # llama-server or another server that runs the model
python examples/app.py --host 0.0.0.0    # everybody who opens the page can draw and vote

Votes are lines of a JSONL file that `examples/build_preferences.py --votes` reads; their pictures are saved beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.judges.votes import Votes
from dps_hf.page import CSS, LocalModel, ServedModel, build_page


@dataclass
class ScriptArguments:
    """
    model: folder or name of the model.
    server: address of a server of the OpenAI protocol that runs it (`examples/serve/`), in place of this process.
    votes: JSONL file that votes are appended to.
    host: address to listen at; by default this machine alone, or what GRADIO_SERVER_NAME says, as it does in a Space.
    port: by default the first free one from 7860 on.
    """

    model: str = NANO
    server: str | None = None
    votes: Path = Path("outputs/votes/votes.jsonl")
    host: str | None = None
    port: int | None = None


def main(script: ScriptArguments) -> None:
    model = ServedModel(script.server, script.model) if script.server else LocalModel(script.model)
    blocks = build_page(model, Votes(script.votes))
    blocks.launch(server_name=script.host, server_port=script.port, css=CSS, footer_links=[], ssr_mode=False)


if __name__ == "__main__":
    run_script(main, HfArgumentParser(ScriptArguments))
