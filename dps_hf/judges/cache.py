"""The replies of judges, in a file that only grows, so that none has to be paid for twice."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from threading import Lock


Reply = str | Mapping
"""A text, or the whole message if it has more than a text."""


class ReplyCache:
    """Replies by key, each a line of JSON that is written as soon as the reply is there.

    A process that is killed loses at most the line that it is writing. Broken lines are skipped, and counted in
    `broken_lines`; lines with an empty text are skipped, too. To ask a question again, delete its line.

    Args:
        path: the file, made if it is missing.
        others: files of other processes, which are read once and not written.
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
        # Bytes, since a broken line may end within a letter.
        with self.path.open("a+b") as file:
            file.seek(0)
            for line in file:
                whole = line.endswith(b"\n")
                self._read(line)
            if not whole:
                file.write(b"\n")  # or the next line would be appended to the broken one

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
        """Appends a reply to the file. `about` has further fields, for people who read the file.

        Raises:
            OSError: the file cannot be written, the disk being full for instance.
        """
        line = json.dumps({"key": key, **about, "reply": reply}) + "\n"  # ASCII: no letter can be cut in two
        # One write in append mode, so that lines of two processes do not mix.
        with self._lock, self.path.open("ab") as file:
            file.write(line.encode())
            self._replies[key] = reply
