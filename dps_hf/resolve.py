"""Finds your own function or class by its dotted path, such as `my_package.my_module.my_function`."""

import os
import pkgutil
import sys
from typing import Any


def resolve(path: str, field: str) -> Any:
    """The object at a dotted path; modules in the current folder count, as for a script.

    Args:
        field: what errors call it.

    Raises:
        ValueError: there is no such object.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field} must be the dotted path of a function or class, such as my_package.my_module.my_function; "
            f"got {path!r}: {error}."
        ) from error
