r"""Single values of x that lie beyond all others, such as the 1e30 of a failed solver.

One such value sets the mean and the standard deviation of a feature, so that z-scoring
leaves nothing of the other simulations, or overflows. With m the median and r the range
between the 10 % and 90 % quantiles of a feature at a level, values with

.. math::  |x - m| > 10^6\, r

are moved to the range of the others, if they are at most three or 1 % of the
simulations of the level. Heavy tails are far from this limit: the largest of a million
Cauchy numbers lies at some :math:`10^5\, r`. The map is that of the level wherever its
outputs appear, also in `x_coarse` of the level above, so that the telescoping sum is
that of the moved outputs.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.outputs import (
    map_outputs,
    named,
    outputs_of,
    sample_of,
)
from sbi_multilevel.data.simulations import MultilevelSimulations

_LIMIT = 1e6
_MAX_ROWS, _MAX_SHARE = 3, 0.01


def limit_extremes(simulations: MultilevelSimulations) -> MultilevelSimulations:
    """Move extreme values of x to the range of the others, see the module.

    Args:
        simulations: Simulations of all levels.

    Returns:
        The simulations; the very same where no value is extreme.

    Warns:
        UserWarning: If there are extreme values.
    """
    for level in range(len(simulations)):
        limits = _limits(outputs_of(simulations, level))
        if limits is None:
            continue
        _warn(outputs_of(simulations, level), limits, level)
        shape = simulations[level].x.shape[1:]
        low, high = (limit.reshape(shape) for limit in limits)
        clamp = functools.partial(torch.clamp, min=low, max=high)
        simulations = map_outputs(simulations, level, clamp)
    return simulations


def _limits(sides: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
    """The range of what is not extreme, each of shape `(k,)`; `None` if nothing is."""
    median, reach = _bulk(sides)
    low = torch.stack([side.flatten(1).amin(0) for side in sides]).amin(0)
    high = torch.stack([side.flatten(1).amax(0) for side in sides]).amax(0)
    suspect = (reach > 0) & ((high > median + reach) | (low < median - reach))
    if not bool(suspect.any()):
        return None
    low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    num_rows = sum(len(side) for side in sides)
    for feature in suspect.nonzero().flatten().tolist():
        values = torch.cat([side.flatten(1)[:, feature] for side in sides])
        usual = (values - median[feature]).abs() <= reach[feature]
        if num_rows - int(usual.sum()) <= max(_MAX_ROWS, _MAX_SHARE * num_rows):
            low[feature], high[feature] = values[usual].amin(), values[usual].amax()
    return (low, high) if bool(low.isfinite().any()) else None


def _bulk(sides: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Median, and how far from it a value may lie, each of shape `(k,)`."""
    sample = sample_of(sides[0])
    # an extreme value itself must be no quantile
    low = np.percentile(sample, 10, axis=0, method="higher")
    high = np.percentile(sample, 90, axis=0, method="lower")
    median, reach = np.median(sample, axis=0), _LIMIT * (high - low)
    return torch.as_tensor(median).to(sides[0]), torch.as_tensor(reach).to(sides[0])


def _warn(sides: tuple[Tensor, ...], limits: tuple[Tensor, Tensor], level: int) -> None:
    flat = torch.cat([side.flatten(1) for side in sides])
    outside = (flat < limits[0]) | (flat > limits[1])
    largest = float(flat[outside].abs().max())
    warnings.warn(
        f"Features {named(outside.any(0))} of x of level {level} have single values, "
        f"up to {largest:.3g}, that lie a million times as far away as the others: "
        f"they are moved to the range of the others, in {int(outside.any(1).sum())} of "
        f"{len(flat)} simulations. Look at these simulations, or leave them out.",
        stacklevel=2,
    )
