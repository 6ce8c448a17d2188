"""Calls in processes that take group after group, and may fail or die."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from joblib.externals.loky import ProcessPoolExecutor

from sbi_multilevel.benchmark.registry import load_plugin

T = TypeVar("T")
Record = dict[str, Any]

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
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
) -> Iterator[tuple[T, Record | Failure]]:
    """Call a function with each item, and yield what came of it as it ends.

    The items of a group go to one process, one after the other, so that what the first
    has cached serves the others. A process that dies takes one item with it.

    Args:
        call: Function of an item, on one thread.
        groups: The items.
        num_workers: Processes; with 1, all runs in this one.
        plugins: Files that a process must have loaded.

    Yields:
        Items with what was returned, or why nothing was.
    """
    if num_workers == 1:
        for group in groups:
            for item in group:
                yield item, _attempt(call, item, plugins)
        return
    pool = _Pool(call, deque(groups), tuple(plugins))
    threads = [
        threading.Thread(target=pool.serve, daemon=True)
        for _ in range(min(num_workers, len(groups)))
    ]
    for thread in threads:
        thread.start()
    try:
        ended = 0
        while ended < len(threads):
            result = pool.results.get()
            if result is None:
                ended += 1
            else:
                yield result
    finally:
        pool.stop()
        for thread in threads:
            thread.join()


@dataclass
class _Pool(Generic[T]):
    """Groups to do, and a thread for each process that does them.

    A process is a pool of one: joblib's would hand back a group as a whole, and all
    would be lost with one process.
    """

    call: Callable[[T], Record]
    waiting: deque[Sequence[T]]
    plugins: tuple[str | os.PathLike, ...]
    # None where a thread ends
    results: queue.Queue[Any] = field(default_factory=queue.Queue)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _processes: list[ProcessPoolExecutor] = field(default_factory=list)

    def serve(self) -> None:
        """Take groups while there are any."""
        process = None
        try:
            while not self._stopped.is_set():
                try:
                    group = self.waiting.popleft()
                except IndexError:
                    return
                for item in group:
                    process = process or self._start()
                    if process is None:
                        return
                    try:
                        future = process.submit(_attempt, self.call, item, self.plugins)
                        result = future.result()
                    except Exception as error:
                        if self._stopped.is_set():
                            return
                        result = Failure(f"{type(error).__name__}: its process died")
                        if not isinstance(error, BrokenProcessPool):
                            result = _failure(error)
                        process.shutdown(kill_workers=True)
                        process = None
                    self.results.put((item, result))
        finally:
            self.results.put(None)
            if process is not None:
                process.shutdown(kill_workers=True)

    def stop(self) -> None:
        """Let nothing begin, and end what runs."""
        with self._lock:  # none may start unseen
            self._stopped.set()
        self.waiting.clear()
        for process in self._processes:
            process.shutdown(wait=False, kill_workers=True)

    def _start(self) -> ProcessPoolExecutor | None:
        env = {name: "1" for name in _ONE_THREAD}
        with self._lock:
            if self._stopped.is_set():
                return None
            process = ProcessPoolExecutor(max_workers=1, env=env)
            self._processes.append(process)
            return process


def _attempt(
    call: Callable[[T], Record], item: T, plugins: Sequence[str | os.PathLike]
) -> Record | Failure:
    try:
        for plugin in plugins:
            load_plugin(plugin)
        return call(item)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> Failure:
    trace = "".join(traceback.format_exception(error))
    return Failure(f"{type(error).__name__}: {error}", trace)
