"""Files of records, a line of JSON per run, so that runs need not be repeated."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from sbi_multilevel_benchmarks.records import Record, fault_of

_FILES = ("--data", "--out", "--output", "--plugin")
PACKAGES = ("sbi_multilevel", "sbi", "torch", "nflows", "zuko", "numpy")


class Journal:
    """A file that records are appended to, one line each.

    The file of a process that was killed while writing ends with an incomplete line,
    which is removed.

    Args:
        path: The file, created with its folder if missing; `None` to keep records in
            memory only.
        command: The command line, added to each record.

    Raises:
        ValueError: If a line before the last is no record; the file is not changed.
    """

    def __init__(self, path: Path | None, command: str = ""):
        self._path, self._command = path, command
        self.records: list[Record] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.records = read_records(path)  # raises before the file is changed
        _end_with_a_line(path)

    def append(self, record: Record) -> Record:
        """Append a record with its provenance, and return it."""
        record = {**record, **provenance(self._command)}
        self.records.append(record)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        return record

    def extend(self, records: Iterable[Record]) -> list[Record]:
        """Append and print records as runs end, and return those of failures."""
        failures = []
        for record in records:
            record = self.append(record)
            print(json.dumps(record), flush=True)
            if "error" in record:
                failures.append(record)
        return failures


def command_of(program: str, given: Sequence[str]) -> str:
    """The command line for the record, without paths of the machine.

    Args:
        program: The command.
        given: Its arguments.
    """
    words: list[str] = []
    for word in given:
        option, equals, _ = word.partition("=")
        if words and words[-1] in _FILES:
            word = "FILE"
        elif equals and option in _FILES:
            word = f"{option}=FILE"
        words.append(word)
    return f"{program} {shlex.join(words)}"


def provenance(command: str) -> Record:
    """Date, command and versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def read_records(path: Path) -> list[Record]:
    """All records of a file, failures included, without an incomplete last line.

    Args:
        path: The file.

    Raises:
        ValueError: If there is no such file, or a complete line is no record.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is no file. Name one written by `--out`.")
    lines = path.read_bytes().split(b"\n")
    if _is_incomplete(lines[-1]):
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
    """Remove an incomplete last line, and end a complete one."""
    content = path.read_bytes()
    rest = content.rpartition(b"\n")[2]
    if not rest:
        return
    with path.open("r+b") as file:
        if _is_incomplete(rest):
            file.truncate(len(content) - len(rest))
        else:  # without a newline, e.g. by an editor
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _is_incomplete(line: bytes) -> bool:
    """Whether a last line is empty or the beginning of a record."""
    return not line or (line.startswith(b"{") and _parse(line) is None)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        return None
    return record if isinstance(record, dict) else None
