"""Files that are written at once or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a file at once or not at all: a process that is killed leaves no half of it, and none reads a half.

    A file that already has this text or these bytes is left alone. A missing folder is made.

    Args:
        content: a text, written as UTF-8; bytes; or a function that writes the file at the path it is given.
    """
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes) and path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        if isinstance(content, bytes):
            own.write_bytes(content)
        else:
            content(own)
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
