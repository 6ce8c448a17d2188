r"""Features of x that do not vary, which no map and no z-scoring can scale.

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

import warnings
from typing import Literal

import torch
from torch import Tensor

from sbi_multilevel.data.outputs import map_outputs, named, replaced
from sbi_multilevel.data.simulations import MultilevelSimulations

_ROUNDING = 4 * torch.finfo(torch.float32).eps
_MIN_RANGE = 1e-14  # what varies less is constant to sbi's z-scoring
_SPREAD_FOR_SCALING = 1e-3  # of the value


def fill_constant(
    simulations: MultilevelSimulations, target: Literal["theta", "x"], seed: int
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
    generator = torch.Generator().manual_seed(seed)
    for level in range(len(simulations) - 1):
        simulations = _fill_level(simulations, level, generator)
    return _fill_all(simulations, generator) if target == "x" else simulations


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
    value = flat[0, chosen].cpu()
    generator = torch.Generator().manual_seed(0)
    return _noisy(x, chosen, (value, _SPREAD_FOR_SCALING * value.abs()), generator)


def varies(*sets: Tensor) -> Tensor:
    """Whether each of k features varies by more than rounding, shape `(k,)`.

    Args:
        *sets: Sets of outputs, each of shape `(n, *x_shape)`, taken together.
    """
    low = torch.stack([x.flatten(1).amin(0) for x in sets]).amin(0)
    high = torch.stack([x.flatten(1).amax(0) for x in sets]).amax(0)
    return ~is_constant(high - low, torch.maximum(low.abs(), high.abs()))


def is_constant(spread: Tensor, size: Tensor) -> Tensor:
    """Whether values of a size with this spread differ by rounding only."""
    return spread <= (_ROUNDING * size).clamp_min(_MIN_RANGE)


def _fill_level(
    simulations: MultilevelSimulations, level: int, generator: torch.Generator
) -> MultilevelSimulations:
    x, highest = simulations[level].x, simulations[-1].x
    constant = ~varies(x) & varies(x, highest)
    if not bool(constant.any()):
        return simulations
    _warn(
        constant,
        f"at level {level}, but not at level {simulations[-1].level}: they are "
        f"replaced by noise, as level {level} has no information on them",
    )
    above = highest.flatten(1)[:, constant].cpu()
    mean, scale = above.mean(0), above.std(0)
    if not bool(varies(highest)[constant].all()):
        # another constant at the highest level: noise as wide as the difference
        apart = (mean - x.flatten(1)[0, constant].cpu()).abs()
        scale = torch.where(varies(highest)[constant].cpu(), scale, apart)
    law = mean, scale
    return map_outputs(
        simulations, level, lambda x: _noisy(x, constant, law, generator)
    )


def _fill_all(
    simulations: MultilevelSimulations, generator: torch.Generator
) -> MultilevelSimulations:
    coarse = [each.x_coarse for each in simulations if each.x_coarse is not None]
    constant = ~varies(*(each.x for each in simulations), *coarse)
    if not bool(constant.any()):
        return simulations
    _warn(
        constant,
        "at all levels, so that their likelihood has no upper bound: they are replaced "
        "by noise, and have no influence on the posterior",
    )
    value = simulations[-1].x.flatten(1)[0, constant].cpu()
    law = value, value.abs().clamp_min(1.0)
    for level in range(len(simulations)):
        simulations = map_outputs(
            simulations, level, lambda x: _noisy(x, constant, law, generator)
        )
    return simulations


def _noisy(
    x: Tensor,
    features: Tensor,
    law: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Outputs with normal noise of a mean and scale in some features."""
    mean, scale = law
    noise = torch.randn(len(x), len(mean), generator=generator)
    return replaced(x, features, mean + scale * noise)


def _warn(constant: Tensor, what: str) -> None:
    warnings.warn(
        f"Features {named(constant)} of x are constant {what}. Leave them out of x, or "
        "check the simulator.",
        stacklevel=2,
    )
