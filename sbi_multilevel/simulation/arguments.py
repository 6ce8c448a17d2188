"""Checks of arguments: numbers of simulations, batch sizes, seeds, priors and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from numbers import Integral, Real
from typing import Any, SupportsIndex

import torch
from sbi.utils.user_input_checks import process_prior
from torch import Tensor

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
    """Simulations per batch, one number per level.

    Raises:
        ValueError: If there is not one integer >= 1 per level.
    """
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
    """Numbers of simulations as plain integers.

    Raises:
        ValueError: If there are none, or one is below `least`.
    """
    numbers = _integers(num_simulations)
    if not numbers or min(numbers) < least:
        raise ValueError(
            f"num_simulations is {numbers or num_simulations}, but must hold a number "
            f"for each level, at least {least}, e.g. (1_000, 100)."
        )
    return numbers


def check_seed(seed: int) -> None:
    """Check that a seed is an integer >= 0.

    Raises:
        ValueError: If not.
    """
    is_integer = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not is_integer or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, but is {seed!r}.")


def processed_prior(prior: Any) -> Any:
    """The prior as sbi uses it.

    Raises:
        TypeError: If sbi cannot convert it to a distribution.
    """
    try:
        if isinstance(prior, (list, tuple)) and any(isinstance(p, str) for p in prior):
            raise TypeError("strings are not distributions.")
        return process_prior(prior)[0]
    except Exception as error:
        raise TypeError(
            f"prior is a {type(prior).__name__} that sbi cannot use: {error} Pass a "
            "distribution of PyTorch or sbi over theta, e.g. `BoxUniform(low, high)`."
        ) from error


def check_num_costs(costs: Sequence[float] | None, num_levels: int) -> None:
    """Check that there is a cost >= 0 per level, if any.

    Raises:
        ValueError: If not.
    """
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
