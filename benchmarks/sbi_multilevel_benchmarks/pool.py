"""Calls in processes that take group after group, and may fail or die.

A process is told each item by a pipe, and answers by it, so what ends is known at once,
one after the other, and a process that dies loses one item. Pools of the standard
library and of joblib hand back a group as a whole, or lose all that is under way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import cloudpickle

from sbi_multilevel_benchmarks.registry import load_plugin

T = TypeVar("T")
Record = dict[str, Any]

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class FailedRun:
    """What a call raised.

    Args:
        reason: Type and message.
        trace: The traceback, empty if the process died.
    """

    reason: str
    trace: str = ""


def run_groups(
    call: Callable[[T], Record],
    groups: Sequence[Sequence[T]],
    num_workers: int = 1,
    plugins: Sequence[str | os.PathLike] = (),
) -> Iterator[tuple[T, Record | FailedRun]]:
    """Call a function with each item, and yield what came of it as it ends.

    The items of a group go to one process, one after the other, so that what the first
    has cached serves the others. A process that dies takes one item with it.

    Args:
        call: Function of an item.
        groups: The items.
        num_workers: Processes, each of one thread; with 1, all runs in this one.
        plugins: Files that a process must have loaded.

    Yields:
        Items with what was returned, or why nothing was.
    """
    if num_workers == 1:
        for group in groups:
            for item in group:
                yield item, _attempt(call, item, plugins)
        return
    waiting = deque(deque(group) for group in groups)
    workers: list[_Worker[T]] = []
    try:
        for _ in range(min(num_workers, len(groups))):
            workers.append(_Worker(call, plugins, waiting.popleft()))
        while workers:
            ready = wait([worker.connection for worker in workers])
            for worker in [each for each in workers if each.connection in ready]:
                yield worker.take()
                worker.group = worker.group or (waiting.popleft() if waiting else None)
                if worker.group:
                    worker.begin()
                else:
                    workers.remove(worker)
                    worker.end()
    finally:
        for worker in workers:
            worker.kill()


class _Worker(Generic[T]):
    """A process, and the group it is at.

    Args:
        call: Function of an item.
        plugins: Files to load first.
        group: What to do, the first of which begins.
    """

    def __init__(
        self,
        call: Callable[[T], Record],
        plugins: Sequence[str | os.PathLike],
        group: deque[T],
    ):
        self.group: deque[T] | None = group
        self._call, self._plugins = call, tuple(plugins)
        self._start()
        self.begin()

    def begin(self) -> None:
        """Send the next item of the group."""
        assert self.group
        self._item = self.group.popleft()
        message = cloudpickle.dumps((self._call, self._item, self._plugins))
        with suppress(BrokenPipeError):  # if it died in between: `take` finds out
            self.connection.send_bytes(message)

    def take(self) -> tuple[T, Record | FailedRun]:
        """The item under way, and what came of it; a new process if this one died."""
        try:
            return self._item, self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.kill()
            self._start()
            return self._item, FailedRun(
                f"Died: its process ended with exit code {code}"
            )

    def end(self) -> None:
        """Let the process end, which waits for the next item."""
        self.connection.close()
        self._process.join(timeout=5)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        with _environment(dict.fromkeys(_ONE_THREAD, "1")):
            self._process.start()
        other.close()  # so that its end is the end of the connection


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment that processes begin with: libraries read it when imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection) -> None:
    """Call for each item that comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: for the parent
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        connection.send(_attempt(*cloudpickle.loads(message)))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _attempt(
    call: Callable[[T], Record], item: T, plugins: Sequence[str | os.PathLike]
) -> Record | FailedRun:
    try:
        for plugin in plugins:
            load_plugin(plugin)
        return call(item)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return FailedRun(f"{type(error).__name__}: {error}", trace)
