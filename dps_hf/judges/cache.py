"""What judges replied, in a file that only grows: whoever pays for replies keeps them, whatever happens."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from threading import Lock


Reply = str | Mapping
"""A text, or the message as it came, where there is more to it than a text."""


class ReplyCache:
    """Replies by key, each a line of JSON that is written as soon as the reply is there.

    A process that is killed loses at most the line that it was writing: that line is skipped from then on, and counted
    in `broken_lines`. To have something asked again, delete its line. Lines with an empty text are skipped, too: earlier
    versions kept those of replies that they could not read.

    Args:
        path: the file, made where it is missing.
        others: files of other processes, read once, never written: what those paid for need not be paid for again.
    """

    def __init__(self, path: str | PathLike, others: Sequence[str | PathLike] = ()):
        self.path = Path(path)
        self.broken_lines = 0
        self._replies: dict[str, Reply] = {}
        self._lock = Lock()
        for other in others:
            if Path(other).resolve() == self.path.resolve():
                continue  # is read below
            with Path(other).open("rb") as file:
                for line in file:
                    self._read(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = True
        # Bytes, since a line that was cut may end within a letter.
        with self.path.open("a+b") as file:
            file.seek(0)
            for line in file:
                whole = line.endswith(b"\n")
                self._read(line)
            if not whole:
                file.write(b"\n")  # else the next line would be lost with this one

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, reply = entry["key"], entry["reply"]
        except (ValueError, KeyError, TypeError, RecursionError):
            key = reply = None
        if isinstance(key, str) and isinstance(reply, Reply):
            if reply:
                self._replies[key] = reply
        else:
            self.broken_lines += bool(line.strip())

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __len__(self) -> int:
        return len(self._replies)

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, reply: Reply, **about: str | int) -> None:
        """Writes the reply down before it is used; `about` is for whoever reads the file.

        Raises:
            OSError: the file cannot be written, the disk being full for instance.
        """
        line = json.dumps({"key": key, **about, "reply": reply}) + "\n"  # ASCII: any letter survives any cut
        # One write in append mode: lines of two processes do not mix. Open for the line only, no handle is left over.
        with self._lock, self.path.open("ab") as file:
            file.write(line.encode())
            self._replies[key] = reply
