"""Files that are written at once or not at all."""

import os
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once or not at all: neither a kill nor another process or machine that reads it finds a half.

    A file that holds the text already is left alone.
    """
    if path.exists() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{uuid4().hex}")
    own.write_text(text, encoding="utf-8")
    os.replace(own, path)
