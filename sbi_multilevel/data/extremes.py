r"""Single extreme values of x, such as the 1e30 of a failed solver.

One such value sets the mean and the standard deviation of a feature, so that z-scored
values of the other simulations are all the same, or overflow. With m the median and r
the range between the 10 % and 90 % quantiles of a feature at a level, values with

.. math::  |x - m| > 10^6\, r

are clamped to the range of the other values, if they are at most three or 1 % of the
simulations of the level. Heavy tails are far from this limit: the largest of a million
Cauchy numbers is about :math:`10^5\, r`. The clamp is the same in `x_coarse` of the
level above, so that the telescoping sum is that of the clamped outputs.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.outputs import map_outputs, named, outputs_of, sample_of
from sbi_multilevel.data.simulations import MultilevelSimulations

_LIMIT = 1e6
_MAX_EXTREMES, _MAX_SHARE = 3, 0.01


def limit_extremes(simulations: MultilevelSimulations) -> MultilevelSimulations:
    """Clamp extreme values of x to the range of the other values, see the module.

    Args:
        simulations: Simulations of all levels.

    Returns:
        The simulations; the same object where no value is extreme.

    Warns:
        UserWarning: If there are extreme values.
    """
    for level in range(len(simulations)):
        sides = [x.flatten(1) for x in outputs_of(simulations, level)]
        limits = _limits(sides)
        if limits is None:
            continue
        _warn(torch.cat(sides), limits, level)
        shape = simulations[level].x.shape[1:]
        low, high = (limit.reshape(shape) for limit in limits)
        clamp = functools.partial(torch.clamp, min=low, max=high)
        simulations = map_outputs(simulations, level, clamp)
    return simulations


def _limits(sides: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The range without extreme values, each of shape `(k,)`; `None` without any."""
    sample = sample_of(sides[0])
    # quantiles that are never the extreme value itself
    low = np.percentile(sample, 10, axis=0, method="higher")
    high = np.percentile(sample, 90, axis=0, method="lower")
    median = torch.as_tensor(np.median(sample, axis=0)).to(sides[0])
    reach = torch.as_tensor(_LIMIT * (high - low)).to(sides[0])
    low = torch.stack([side.amin(0) for side in sides]).amin(0)
    high = torch.stack([side.amax(0) for side in sides]).amax(0)
    suspect = (reach > 0) & ((high > median + reach) | (low < median - reach))
    low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    for feature in suspect.nonzero().flatten().tolist():
        values = torch.cat([side[:, feature] for side in sides])
        usual = (values - median[feature]).abs() <= reach[feature]
        num_extreme = len(values) - int(usual.sum())
        if num_extreme <= max(_MAX_EXTREMES, _MAX_SHARE * len(values)):
            low[feature], high[feature] = values[usual].amin(), values[usual].amax()
    return (low, high) if bool(low.isfinite().any()) else None


def _warn(x: Tensor, limits: tuple[Tensor, Tensor], level: int) -> None:
    outside = (x < limits[0]) | (x > limits[1])
    largest = float(x[outside].abs().max())
    warnings.warn(
        f"Features {named(outside.any(0))} of x of level {level} have single values, "
        f"up to {largest:.3g}, a million times as far from the median as the others: "
        f"they are clamped to the range of the others, in {int(outside.any(1).sum())} "
        f"of {len(x)} simulations. Check these simulations, or leave them out.",
        stacklevel=2,
    )
