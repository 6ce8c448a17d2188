r"""Preparation of simulations that all methods share, and what no network can use.

**Single extreme values** of x, such as the 1e30 of a failed solver, set the mean and
the standard deviation of a feature, so that z-scored values of the other simulations
are all the same, or overflow. With m the median and r the range between the 10 % and
90 % quantiles of a feature at a level, values with

.. math::  |x - m| > 10^6\, r

are clamped to the range of the other values, if they are at most three or 1 % of the
simulations of the level. Heavy tails are far from this limit: the largest of a million
Cauchy numbers is about :math:`10^5\, r`. The clamp is the same in `x_coarse` of the
level above, so that the telescoping sum is that of the clamped outputs.

**Features that do not vary** cannot be scaled by a map or by z-scoring.

*Constant at a lower level, but not at the highest.* A network z-scored by that level
cannot use x of the highest one. The feature is replaced by noise of the scale at the
highest level, which is independent of theta, as the constant is. In `x_coarse` of pairs
noise of the same law is used, so that the telescoping sum stays exact.

*Constant at all levels*, for NLE. The density has no upper bound. The feature is
replaced by noise at all levels, so that the likelihood does not depend on it. For NPE
it stays as it is: a network learns to ignore a constant.

*Constant and large*, for NPE. sbi divides by the standard deviation, but by at least
1e-7. The mean of many numbers like 1000.1 is off by rounding, a thousand times as much,
so that the network would see a large number instead of zero. `for_scaling` prevents it.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.outputs import (
    is_constant,
    map_outputs,
    named,
    outputs_of,
    range_of,
    sample_of,
    varies,
)
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    Target,
)

_LIMIT = 1e6
_MAX_EXTREMES, _MAX_SHARE = 3, 0.01
_LARGEST = 1e15  # the sum of squares of a billion of these numbers is a float32
_SPREAD_FOR_SCALING = 1e-3  # of the value


def without_extremes(simulations: MultilevelSimulations) -> MultilevelSimulations:
    """Simulations without single extreme values of x.

    Args:
        simulations: Simulations of all levels.

    Returns:
        The simulations; the same object where there is nothing to do.

    Raises:
        ValueError: If features of x are too large for single precision.

    Warns:
        UserWarning: If values of x were clamped.
    """
    simulations = limit_extremes(simulations)
    for level in range(len(simulations)):
        for x in outputs_of(simulations, level):
            largest = x.flatten(1).abs().amax(0)
            if bool((largest > _LARGEST).any()):
                raise ValueError(
                    f"Features {named(largest > _LARGEST)} of x of level {level} reach "
                    f"{float(largest.max()):.3g}, which is too large for single "
                    f"precision (at most {_LARGEST:g}). Divide them, at all levels and "
                    "in the observation, or leave them out."
                )
    return simulations


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
        low, high = _limits(sides)
        if not bool(low.isfinite().any()):
            continue
        x = torch.cat(sides)
        outside = (x < low) | (x > high)
        warnings.warn(
            f"Features {named(outside.any(0))} of x of level {level} have single "
            f"values, up to {float(x[outside].abs().max()):.3g}, a million times as "
            "far from the median as the others: they are clamped to the range of the "
            f"others, in {int(outside.any(1).sum())} of {len(x)} simulations. Check "
            "these simulations, or leave them out.",
            stacklevel=2,
        )
        shape = simulations[level].x.shape[1:]
        low, high = low.reshape(shape), high.reshape(shape)
        clamp = functools.partial(torch.clamp, min=low, max=high)
        simulations = map_outputs(simulations, level, clamp)
    return simulations


def fill_constant(
    simulations: MultilevelSimulations, target: Target, seed: int
) -> MultilevelSimulations:
    r"""Replace features by noise that are constant where they must not be.

    At a lower level :math:`x_j \sim N(m_j, s_j)`, with the mean and standard deviation
    of the feature at the highest level; see the module for the other cases.

    Args:
        simulations: Simulations of all levels.
        target: `"theta"` (NPE) or `"x"` (NLE).
        seed: Seed of the noise.

    Returns:
        The simulations; the same object where there is nothing to do.

    Warns:
        UserWarning: If there are such features.
    """
    levels, highest = range(len(simulations)), simulations[-1].x
    noisy = functools.partial(_noisy, generator=torch.Generator().manual_seed(seed))
    for level in levels[:-1]:
        x = simulations[level].x
        constant = ~varies(x) & varies(x, highest)
        if not bool(constant.any()):
            continue
        _warn(
            constant,
            f"at level {level}, but not at level {levels[-1]}: they are replaced by "
            f"noise, as level {level} has no information on them",
        )
        above = highest.flatten(1)[:, constant].cpu()
        mean, scale = above.mean(0), above.std(0)
        # another constant at the highest level: noise as wide as the difference
        apart = (mean - x.flatten(1)[0, constant].cpu()).abs()
        scale = torch.where(varies(highest)[constant].cpu(), scale, apart)
        change = functools.partial(noisy, features=constant, mean=mean, scale=scale)
        simulations = map_outputs(simulations, level, change)
    if target == "theta":
        return simulations
    constant = ~varies(*(x for level in levels for x in outputs_of(simulations, level)))
    if not bool(constant.any()):
        return simulations
    _warn(
        constant,
        "at all levels, so that their likelihood has no upper bound: they are replaced "
        "by noise, and have no influence on the posterior",
    )
    mean = highest.flatten(1)[0, constant].cpu()
    scale = mean.abs().clamp_min(1.0)
    change = functools.partial(noisy, features=constant, mean=mean, scale=scale)
    for level in levels:
        simulations = map_outputs(simulations, level, change)
    return simulations


def for_scaling(x: Tensor) -> Tensor:
    """Outputs to z-score by: as they are, but large constants vary a little.

    Args:
        x: Outputs, shape `(n, *x_shape)`.

    Returns:
        Outputs of the same shape; the same object where no constant is large.
    """
    flat = x.flatten(1)
    chosen = ~varies(x) & (flat.abs().amax(0) > 1)
    if not bool(chosen.any()):
        return x
    mean = flat[0, chosen].cpu()
    scale = _SPREAD_FOR_SCALING * mean.abs()
    return _noisy(x, chosen, mean, scale, torch.Generator().manual_seed(0))


def check_vectors(level: LevelSimulations) -> None:
    """Raise unless x is a vector, as likelihoods need it."""
    if level.x.ndim != 2:
        raise ValueError(
            f"x has shape {tuple(level.x.shape[1:])}, but likelihoods are learned of "
            "vectors. Flatten x, or summarise it."
        )


def check_theta_varies(level: LevelSimulations) -> None:
    """Raise if a network would be z-scored by parameters that do not vary."""
    constant = ~varies(level.theta)
    if bool(constant.any()):
        raise ValueError(
            f"Columns {named(constant)} of theta are the same in all {len(level)} "
            f"simulations of level {level.level}. Draw theta from the prior, or leave "
            "the columns out."
        )


def check_pretrained(
    moments: Moments | None, simulations: MultilevelSimulations
) -> None:
    """Raise if x varies where it did not in pre-training, as z-scores divide by 0.

    Args:
        moments: Moments of the x that the network was built on, if they are known.
        simulations: Simulations to train it on.
    """
    if moments is None or moments.std.ndim == 0:
        return
    constant = is_constant(moments.std.flatten(), moments.mean.flatten().abs())
    for level in simulations:
        if level.x[0].numel() != len(constant):
            return  # refused when the network is taken over
        blind = constant.to(level.x.device) & varies(level.x)
        if bool(blind.any()):
            raise ValueError(
                f"Features {named(blind)} of x vary at level {level.level}, but were "
                "constant in the simulations that the network was pre-trained on, so "
                "it cannot use them. Leave them out of x in both, or check the "
                "simulator of pre-training."
            )


def _limits(sides: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The range without extreme values, infinite where there are none.

    Args:
        sides: Outputs of one simulator, each of shape `(n, k)`.
    """
    sample = sample_of(sides[0])
    # quantiles that are never the extreme value itself
    lower = np.percentile(sample, 10, axis=0, method="higher")
    upper = np.percentile(sample, 90, axis=0, method="lower")
    median = torch.as_tensor(np.median(sample, axis=0)).to(sides[0])
    reach = torch.as_tensor(_LIMIT * (upper - lower)).to(sides[0])
    least, most = range_of(*sides)
    suspect = (reach > 0) & ((most > median + reach) | (least < median - reach))
    low, high = torch.full_like(least, -torch.inf), torch.full_like(most, torch.inf)
    # one at a time, as all of a large x may be suspect
    for feature in suspect.nonzero().flatten().tolist():
        values = torch.cat([side[:, feature] for side in sides])
        usual = (values - median[feature]).abs() <= reach[feature]
        num_extreme = len(values) - int(usual.sum())
        if num_extreme <= max(_MAX_EXTREMES, _MAX_SHARE * len(values)):
            low[feature], high[feature] = values[usual].amin(), values[usual].amax()
    return low, high


def _noisy(
    x: Tensor, features: Tensor, mean: Tensor, scale: Tensor, generator: torch.Generator
) -> Tensor:
    """A copy of outputs with normal noise in place of some features.

    Args:
        x: Outputs, shape `(n, *x_shape)`, with k entries a simulation.
        features: Whether each feature is replaced, shape `(k,)`.
        mean: Mean of the noise in each that is.
        scale: Its standard deviation.
        generator: Draws the noise.
    """
    flat = x.flatten(1).clone()
    noise = torch.randn(len(x), len(mean), generator=generator)
    flat[:, features] = (mean + scale * noise).to(flat)
    return flat.reshape(x.shape)


def _warn(constant: Tensor, what: str) -> None:
    warnings.warn(
        f"Features {named(constant)} of x are constant {what}. Leave them out of x, or "
        "check the simulator.",
        stacklevel=2,
    )
