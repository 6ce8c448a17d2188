"""Ends a call that takes too long, in any thread."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

_REPEAT_SECONDS = 0.1


class TimeIsUp(BaseException):
    """A call took longer than its limit.

    Not an `Exception`, so that a simulator which catches those does not catch this one.
    """


def call_within(seconds: float | None, function: Callable, *arguments: Any) -> Any:
    """Call `function(*arguments)`; raise `TimeIsUp` if it takes longer than `seconds`.

    In the main thread, where joblib's processes run their tasks, a signal interrupts
    the call. Other threads (of Dask's workers, of joblib's threading backend) cannot be
    interrupted: the call then runs in a separate thread, which is abandoned after the
    limit and ends with the process.
    """
    if seconds is None or math.isinf(seconds):
        return function(*arguments)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "setitimer"):
        return _interrupted_by_signal(seconds, function, arguments)
    return _in_abandoned_thread(seconds, function, arguments)


def _interrupted_by_signal(seconds: float, function: Callable, arguments: tuple) -> Any:
    def interrupt(*_: Any) -> None:
        raise TimeIsUp(_message(seconds))

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.monotonic()
    # repeated, in case the simulator catches every exception
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_SECONDS)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if delay > 0:  # another timer was running
            left = max(delay - (time.monotonic() - start), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _in_abandoned_thread(seconds: float, function: Callable, arguments: tuple) -> Any:
    future: futures.Future[Any] = futures.Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    futures.wait([future], seconds)
    if not future.done():
        raise TimeIsUp(_message(seconds))
    error = future.exception()
    if error is not None:
        raise error  # not by `result`, whose frames `describe` would report
    return future.result()


def _message(seconds: float) -> str:
    return f"a call of the simulator took longer than timeout={seconds:g} seconds"
