"""The lock of a store, and messages for errors of the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

WAIT_SECONDS = 60.0


@contextlib.contextmanager
def writing(path: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of a store, a file next to it, which is released with its process.

    `RuntimeError` is raised if another process still writes after `wait` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock").acquire(timeout=wait):
            yield
    except Timeout as error:
        raise RuntimeError(
            f"store={str(path)!r} is being written by another process. Wait until it "
            "has ended, or use another store."
        ) from error
    except OSError as error:
        # errors of a cluster, and those with a message of their own, are not changed
        if isinstance(error, (TimeoutError, ConnectionError)) or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"store={str(path)!r} cannot be read or written: "
            f"{error.strerror or error}. All simulations that were reported as done "
            "are kept; fix the cause and run again",
        ) from error
