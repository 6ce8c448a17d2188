"""Ends a call that takes too long, wherever it runs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

_RING_AGAIN = 0.1  # seconds


class TimeIsUp(BaseException):
    """A call took longer than it may.

    No `Exception`, so that a simulator which catches those does not catch this one.
    """


def call_within(seconds: float | None, function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, or `TimeIsUp` after so many seconds.

    In the main thread, which is where joblib's processes run their tasks, the call is
    interrupted by a signal. Other threads (of Dask's workers, of joblib's threading
    backend) cannot be interrupted: there the call is left behind in a thread of its
    own, which ends with the process.

    Raises:
        TimeIsUp: If it took longer.
    """
    if seconds is None or math.isinf(seconds):
        return function(*arguments)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "setitimer"):
        return _interrupted_by_signal(seconds, function, arguments)
    return _left_behind(seconds, function, arguments)


def _interrupted_by_signal(seconds: float, function: Callable, arguments: tuple) -> Any:
    def ring(*_: Any) -> None:
        raise TimeIsUp(_message(seconds))

    before = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    # rings again, for a simulator that catches everything
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _RING_AGAIN)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if delay > 0:  # a timer of somebody else was running
            left = max(delay - (time.monotonic() - start), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _left_behind(seconds: float, function: Callable, arguments: tuple) -> Any:
    ended: list[tuple[bool, Any]] = []

    def call() -> None:
        try:
            ended.append((True, function(*arguments)))
        except BaseException as error:
            ended.append((False, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeIsUp(_message(seconds))
    succeeded, result = ended[0]
    if not succeeded:
        raise result
    return result


def _message(seconds: float) -> str:
    return f"a call of the simulator took longer than timeout={seconds:g} seconds"
