"""Checks of arguments: functions, numbers of simulations, seeds, priors and costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Sized
from numbers import Integral, Real
from typing import Any, SupportsIndex

import torch
from sbi.utils.user_input_checks import process_prior
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded

Cost = Callable[[Tensor], Tensor]

# arguments with checks of their own, which give more detail than a type
CHECKED_ALONE = (
    "simulators",
    "num_simulations",
    "noise",
    "seed",
    "simulation_batch_size",
    "chunk_size",
    "costs",
)


def per_level(sizes: SupportsIndex | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Simulations per batch, one integer >= 1 per level."""
    given = (sizes,) * num_levels if isinstance(sizes, SupportsIndex) else sizes
    numbers = _integers(given)
    if len(numbers) != num_levels or min(numbers) < 1:
        raise ValueError(
            f"simulation_batch_size must be an integer >= 1, or one for each of the "
            f"{num_levels} levels, but is {numbers or sizes}."
        )
    return numbers


def simulations_per_level(
    num_simulations: Sequence[int], least: int
) -> tuple[int, ...]:
    """Numbers of simulations as plain integers, each at least `least`."""
    numbers = _integers(num_simulations)
    if not numbers or min(numbers) < least:
        raise ValueError(
            f"num_simulations is {numbers or num_simulations}, but must hold a number "
            f"for each level, at least {least}, e.g. (1_000, 100)."
        )
    return numbers


def check_seed(seed: int) -> None:
    """Raise unless a seed is an integer >= 0."""
    is_integer = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not is_integer or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, but is {seed!r}.")


def processed_prior(prior: Any, seed: int) -> Any:
    """The prior as sbi uses it, which samples from it in this check; checks the seed.

    Raises:
        TypeError: If sbi cannot convert it to a distribution.
    """
    check_seed(seed)
    try:
        if isinstance(prior, (list, tuple)) and any(isinstance(p, str) for p in prior):
            raise TypeError("strings are not distributions.")
        with seeded(seed):
            return process_prior(prior)[0]
    except Exception as error:
        raise TypeError(
            f"prior is a {type(prior).__name__} that sbi cannot use: {error} Pass a "
            "distribution of PyTorch or sbi over theta, e.g. `BoxUniform(low, high)`."
        ) from error


def check_num_costs(costs: Sequence[float] | None, num_levels: int) -> None:
    """Raise unless there is a cost >= 0 per level, if any."""
    if costs is not None and not _are_costs(costs, num_levels):
        raise ValueError(
            f"costs must hold one number for each of the {num_levels} levels, the cost "
            f"of one run of its simulator, but is {costs}."
        )


def costs_at(cost: Cost, theta: Tensor) -> Tensor:
    """Costs of parameters by a function of the user, shape `(n,)`.

    Args:
        cost: The function.
        theta: Parameters, shape `(n, d_theta)`.

    Raises:
        ValueError: If they are not positive, finite numbers, one for each theta.
    """
    costs = torch.as_tensor(cost(theta), device=theta.device).double()
    if costs.shape != theta.shape[:1]:
        raise ValueError(
            f"cost returned the shape {tuple(costs.shape)} for {len(theta)} "
            "parameters. Return one cost for each, shape "
            f"{tuple(theta.shape[:1])}."
        )
    is_wrong = ~((costs > 0) & costs.isfinite())
    if is_wrong.any():
        index = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"cost returned {float(costs[index])} at theta={theta[index].tolist()}. "
            "Return positive, finite numbers."
        )
    return costs


def _are_costs(costs: Any, num_levels: int) -> bool:
    if isinstance(costs, (str, Mapping)) or not isinstance(costs, Sized):
        return False
    numbers = costs.tolist() if hasattr(costs, "tolist") else costs
    return len(costs) == num_levels and all(
        isinstance(cost, Real) and not isinstance(cost, bool) and cost >= 0
        for cost in numbers
    )


def _integers(values: Any) -> tuple[int, ...]:
    """Numbers as plain integers; an empty tuple if one is not an integer."""
    try:
        numbers = tuple(map(int, values))
    except (TypeError, ValueError, OverflowError):
        return ()
    if isinstance(values, str) or any(isinstance(value, bool) for value in values):
        return ()
    return numbers if all(n == value for n, value in zip(numbers, values)) else ()


def check_simulators(simulators: Any) -> None:
    """Raise unless each simulator takes theta and noise."""
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
    """Raise unless a function takes positional arguments; a remedy ends the message.

    Functions without a known signature are not checked.
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
