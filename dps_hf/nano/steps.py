"""Scripts of `examples/` as the steps of a longer experiment."""

import multiprocessing
import os
import runpy
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml


def run_step(examples: Path, name: str, recipe: str | None, output: Path, done: str, fields: dict) -> Path:
    """Runs the script `name` with a recipe of dps-nano and some fields, unless its output is finished already.

    Args:
        examples: the folder of the scripts and of their recipes.
        done: the file that the script writes last.
        fields: on top of those of the recipe.

    Raises:
        ValueError: the output was made with other fields.
    """
    base = yaml.safe_load((examples / "recipes/nano" / f"{recipe}.yaml").read_text()) if recipe else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    config, text = output.with_name(output.name + ".yaml"), yaml.safe_dump({**base, **fields})
    if (output / done).exists():
        if config.read_text() != text:
            raise ValueError(
                f"{output} was made with other fields, those in {config}. Remove it, or give another work."
            )
        return output
    config.write_text(text)
    print(f"\n{output}: {name}")
    run_script(examples / f"{name}.py", "--config", config)
    return output


def run_script(script: Path, *arguments: str | Path) -> None:
    """Runs a script in a new process, on Linux forked with the libraries loaded, which saves seconds.

    Raises:
        RuntimeError: the script failed.
    """
    command = [str(script), *map(str, arguments)]
    if sys.platform == "linux":
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["dps_hf.training.loading", "peft", "trl.trainer.dpo_trainer"])
        process: BaseProcess = server.Process(target=_as_main, args=(command,))
    else:  # threads of a library may not survive a fork there
        process = multiprocessing.get_context("spawn").Process(target=_as_main, args=(command,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.exitcode}; its output is above.")


def _as_main(command: list[str]) -> None:
    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)  # otherwise a second attempt would meet the first one still writing

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
