"""Calls in worker processes, where an error or a crash loses one call only.

Each worker is an executor of one process: an executor of several, as well as joblib,
loses the calls of all processes if one of them dies.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing import connection, get_context, parent_process
from typing import Any

from threadpoolctl import threadpool_limits

from sbi_multilevel_benchmarks.records import Record
from sbi_multilevel_benchmarks.registry import load_plugin


@dataclass(frozen=True)
class FailedRun:
    """An error of a call.

    Args:
        reason: Type and message.
        trace: The traceback; empty if the process died.
    """

    reason: str
    trace: str = ""


def run_records(
    call: Callable[[Any], Record],
    groups: Sequence[Sequence[Any]],
    num_workers: int = 1,
    plugins: Sequence[str | os.PathLike] = (),
) -> Iterator[Record]:
    """Records of all items as they end.

    The record of a call that fails has the identity of the item and an `error`; the
    traceback is printed.

    Args:
        call: Function of an item, see `run_groups` for this and other arguments.
        groups: Items with an `identity`, the beginning of their record.
        num_workers: Processes.
        plugins: Files that a process loads first.
    """
    for item, result in run_groups(call, groups, num_workers, plugins):
        if isinstance(result, FailedRun):
            print(result.trace, file=sys.stderr, flush=True)
            # records are published, without paths of the machine
            reason = result.reason.replace(getattr(item, "data", None) or "\0", "FILE")
            result = {**item.identity, "error": reason}
        yield result


def run_groups(
    call: Callable[[Any], Any],
    groups: Sequence[Sequence[Any]],
    num_workers: int = 1,
    plugins: Sequence[str | os.PathLike] = (),
) -> Iterator[tuple[Any, Any]]:
    """Call a function with each item, and yield items and results as they end.

    The items of a group are run by one process, one after the other, so that they can
    share what is cached.

    Args:
        call: Function of an item.
        groups: The items.
        num_workers: Processes of one thread each; with 1, all runs in this process.
        plugins: Files that a process loads first.

    Yields:
        An item, with the value returned or a `FailedRun`.
    """
    if num_workers == 1:
        for item in chain.from_iterable(groups):
            yield item, _attempt(call, item, plugins)
        return
    waiting = deque(deque(group) for group in groups)
    workers = [_Worker() for _ in range(min(num_workers, len(groups)))]
    running: dict[Future, tuple[_Worker, deque, Any]] = {}

    def start_next(worker: _Worker, group: deque) -> None:
        group = group or (waiting.popleft() if waiting else group)
        if group:
            item = group.popleft()
            future = worker.submit(_attempt, call, item, plugins)
            running[future] = worker, group, item

    try:
        for worker in workers:
            start_next(worker, deque())
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, group, item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    code = worker.end()
                    result = FailedRun(f"Died: its process ended with exit code {code}")
                    worker.start()
                yield item, result
                start_next(worker, group)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """An executor of one process."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start an executor; its process starts with the first call."""
        context = get_context("spawn")
        self._executor = ProcessPoolExecutor(1, context, initializer=_prepare)
        self._process: Any = None

    def submit(self, *call: Any) -> Future:
        """Call a function in the process."""
        future = self._executor.submit(*call)
        if self._process is None:
            (self._process,) = self._executor._processes.values()
        return future

    def end(self) -> int | None:
        """Kill the process, and return its exit code."""
        if self._process is not None:
            self._process.kill()
        self._executor.shutdown()
        return None if self._process is None else self._process.exitcode


def _prepare() -> None:
    """Limit a process to one thread, and end it with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _attempt(
    call: Callable[[Any], Any], item: Any, plugins: Sequence[str | os.PathLike]
) -> Any:
    try:
        for plugin in plugins:
            load_plugin(plugin)
        return call(item)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return FailedRun(f"{type(error).__name__}: {error}", trace)
