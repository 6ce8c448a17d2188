"""Records as JSON lines: what is done is on disk, and need not be done again."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sbi_multilevel_benchmarks.records import fault_of

Record = dict[str, Any]

PACKAGES = ("sbi_multilevel", "sbi", "torch", "nflows", "zuko", "numpy")


class Journal:
    """A file that records are added to, one a line, each at once.

    Where a process was killed while it wrote, the file ends in half a line: it is cut
    off.

    Args:
        path: The file, made with its folder if missing; `None` to keep records in
            memory only.
        command: The command line, noted with each record.

    Raises:
        ValueError: If a line before the last is no record, or the file is something
            else, which is left as it is.
    """

    def __init__(self, path: Path | None, command: str = ""):
        self._path, self._command = path, command
        self.records: list[Record] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.records = read_records(path)  # before anything is cut off
        _end_with_a_line(path)

    def append(self, record: Record) -> Record:
        """Add a record, with its provenance, and return both."""
        record = {**record, **provenance(self._command)}
        self.records.append(record)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        return record


def provenance(command: str) -> Record:
    """When, by which command, and with which versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def read_records(path: Path) -> list[Record]:
    """All records of a file, failures included; half a line at its end is ignored.

    Args:
        path: The file.

    Raises:
        ValueError: If there is no such file, or a whole line is no record; names the
            line and what is wrong with it.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is no file. Name one written by `--out`.")
    lines = path.read_bytes().split(b"\n")
    if _is_half(lines[-1]):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        fault = "it is no JSON object" if record is None else fault_of(record)
        if record is None or fault is not None:
            raise ValueError(
                f"Line {number} of path={str(path)!r} is no record: {fault}. It begins "
                f"with {line[:40]!r}. Remove the line, or name a file of JSON lines."
            )
        records.append(record)
    return records


def _end_with_a_line(path: Path) -> None:
    """End the file with a whole line."""
    content = path.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    if not rest:
        return
    with path.open("r+b") as file:
        if _is_half(rest):
            file.truncate(len(content) - len(rest))
        else:  # an editor left out the last newline
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _is_half(line: bytes) -> bool:
    """Whether a last line is nothing, or the beginning of a record."""
    return not line or (line.startswith(b"{") and _parse(line) is None)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # of JSON, and of UTF-8
        return None
    return record if isinstance(record, dict) else None
