"""Refuses functions that cannot be called as they will be, before they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def check_simulators(simulators: Any) -> None:
    """Check that each takes theta and noise.

    Raises:
        ValueError: If not; names the simulator.
    """
    if not isinstance(simulators, Sequence):
        raise ValueError(
            f"simulators is {_named(simulators)}, but must be a list of functions, one "
            "a level, the cheapest first."
        )
    for level, simulator in enumerate(simulators):
        if simulator is not None:  # of a level that is not run
            check_call(
                f"simulators[{level}]",
                simulator,
                ("theta", "noise"),
                "Let it take both, and draw all its randomness from the noise; wrap a "
                "function of one row, (theta, seed), by `vectorize_simulator`.",
            )


def check_call(
    name: str, function: Callable, arguments: Sequence[str], remedy: str
) -> None:
    """Check that a function takes arguments, by position, where its signature is known.

    Args:
        name: What the user calls the function.
        function: The function.
        arguments: Names of the arguments it is given.
        remedy: A sentence that ends the message.

    Raises:
        ValueError: If it does not, or is no function.
    """
    call = f"({', '.join(arguments)})"
    if not callable(function):
        raise ValueError(
            f"{name} is {_named(function)}, but must be a function of {call}. {remedy}"
        )
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # e.g. of functions in C
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"{name}, {_named(function)}, takes {signature}, but is called with "
            f"{call}: {error}. {remedy}"
        ) from None


def _named(value: Any) -> str:
    text = getattr(value, "__qualname__", None) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
