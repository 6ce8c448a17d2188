"""Checks signatures of functions before they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def check_simulators(simulators: Any) -> None:
    """Check that each simulator takes theta and noise.

    Raises:
        ValueError: If not, with the simulator.
    """
    if not isinstance(simulators, Sequence):
        raise ValueError(
            f"simulators is {_named(simulators)}, but must be a list of functions, one "
            "per level, the lowest fidelity first."
        )
    for level, simulator in enumerate(simulators):
        if simulator is not None:  # `None` for a level that is not run
            check_call(
                f"simulators[{level}]",
                simulator,
                ("theta", "noise"),
                "Let it take both, and draw all its randomness from the noise; wrap a "
                "function of one theta, (theta, seed), by `vectorize_simulator`.",
            )


def check_call(
    name: str, function: Callable, arguments: Sequence[str], remedy: str
) -> None:
    """Check that a function takes positional arguments, if its signature is known.

    Args:
        name: Name of the function in the message.
        function: The function.
        arguments: Names of the arguments it is called with.
        remedy: Last sentence of the message.

    Raises:
        ValueError: If it does not take them, or is not a function.
    """
    call = f"({', '.join(arguments)})"
    if not callable(function):
        raise ValueError(
            f"{name} is {_named(function)}, but must be a function of {call}. {remedy}"
        )
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # e.g. functions in C
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
