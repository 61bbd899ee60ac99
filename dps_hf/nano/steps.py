"""Scripts as steps of a longer work."""

import multiprocessing
import os
import runpy
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path


def run_script(script: Path, *arguments: str | Path) -> None:
    """Runs a script in a process of its own, which has its libraries already: importing them takes longer than some steps.

    Raises:
        RuntimeError: it failed.
    """
    command = [str(script), *map(str, arguments)]
    if sys.platform == "linux":
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["dps_hf.training.loading", "peft", "trl.trainer.dpo_trainer"])
        process: BaseProcess = server.Process(target=_as_main, args=(command,))
    else:  # where a library's threads may not survive a fork
        process = multiprocessing.get_context("spawn").Process(target=_as_main, args=(command,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.exitcode}; what it said stands above.")


def _as_main(command: list[str]) -> None:
    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)  # or a second try would find the first one still writing

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
