"""Runs a script so that a wrong setting ends in one sentence, and a bug in its traceback."""

import linecache
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


UNKNOWN_FIELDS = (
    "Unknown arguments from config file",
    "Some specified arguments are not used",
)  # trl's, transformers's
SEED = 0
"""Of the recipes, and of the training scripts where nothing else is said."""

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "transformers", "trl")


def run_script(main: Callable[..., Any], parser: Any) -> None:
    """Calls `main` with what the command line and the recipe say; errors are shown as [`show_errors`] does.

    Args:
        main: may return an exit status.
        parser: a `TrlParser` or `HfArgumentParser`, which has one dataclass for each argument of `main`.
    """
    parser.usage = "%(prog)s [--config RECIPE] [--FIELD VALUE ...]"  # all fields would fill pages
    parser.error = _raise
    parse = getattr(parser, "parse_args_and_config", parser.parse_args_into_dataclasses)
    with show_errors(parsing=True):
        arguments = parse()
    with show_errors():
        status = main(*arguments)
    if status:
        raise SystemExit(status)


def set_training_defaults(parser: Any) -> None:
    """Sets what the training scripts have in common where neither the command line nor a recipe says otherwise.

    The seed is that of the recipes, and `evaluate.py` supposes it, too. Without an accelerator, `use_cpu` is set, or
    `bf16` is taken for a mistake there, and memory is not pinned, of which torch would warn.
    """
    import torch  # only here: the other scripts may need no torch

    accelerated = torch.accelerator.is_available()
    parser.set_defaults(use_cpu=not accelerated, dataloader_pin_memory=accelerated, seed=SEED)


def _raise(message: str) -> None:
    """In place of `ArgumentParser.error`, which prints the usage first."""
    raise ValueError(f"{message}.")


@contextmanager
def show_errors(parsing: bool = False) -> Iterator[None]:
    """Prints `error: ...` and exits with 2 if an error was raised for the user; any other keeps its traceback.

    Errors for the user are files and data sets that do not exist, and those that a `raise` of this package, of a
    script, or, for a model or an extra that is missing, of a Hugging Face library raises on purpose. A `ValueError`
    that numpy or torch raises is a bug.

    Args:
        parsing: whether settings are being read; then every `ValueError`, wherever it is raised, is for the user.

    Raises:
        SystemExit: with 2, after the sentence was printed.
    """
    try:
        yield
    except Exception as error:
        if not (_is_for_user(error) or (parsing and _is_of_settings(error))):
            raise
        print(f"error: {_write_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_for_user(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):
        return True
    place = error.__traceback__
    assert place is not None
    loading = False
    while place.tb_next is not None:
        place = place.tb_next
        loading |= place.tb_frame.f_code.co_name == "from_pretrained"
    line = linecache.getline(place.tb_frame.f_code.co_filename, place.tb_lineno)
    on_purpose = line.strip().startswith("raise ")  # and not a call, such as `int("three")`
    module = place.tb_frame.f_globals.get("__name__", "").split(".")[0]
    kinds: tuple[type[Exception], ...] = ()
    if module in ("__main__", "dps_hf"):
        kinds = (ValueError, ImportError, OSError, RuntimeError)
    elif module in LIBRARIES:
        kinds = (ImportError, OSError, ValueError) if loading else (ImportError, OSError)
    return on_purpose and isinstance(error, kinds)


def _is_of_settings(error: Exception) -> bool:
    return isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith("yaml")


def _write_sentence(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file or folder {str(error.filename)!r}."
    sentence = " ".join(str(error).split())
    if sentence.startswith(UNKNOWN_FIELDS):
        fields = ", ".join(re.findall(r"'--([^']+)'", sentence))
        return f"the script has no field {fields}. Correct it; --help lists the fields."
    return sentence
