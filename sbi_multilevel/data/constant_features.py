r"""Features of x that do not vary: no map can scale them, and no z-scoring.

*Constant at a lower level, but not at the highest.* A network z-scored by that level
can make nothing of x of the highest one. Noise of the right scale stands in for the
feature: it tells nothing about theta, which is the truth, and high-fidelity simulations
put it right. In `x_coarse` of pairs noise of the same law stands in, so that the
telescoping sum stays exact.

*Constant at all levels*, where x is modelled (NLE). The density has no upper bound.
Noise stands in at all levels, so that the likelihood does not depend on the feature.
Where x is the condition (NPE) it stays as it is: a network learns to ignore a constant.

*Constant and large*, where x is the condition. sbi divides by the standard deviation,
but by at least 1e-7. The mean of many numbers like 1000.1 is off by rounding, a
thousand times as much, and what should be zero reaches the network as a large number.
`for_scaling` prevents it.
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
    r"""Let noise stand in for features that are constant where they must not be.

    At a lower level :math:`x_j \sim N(m_j, s_j)`, with the mean and standard deviation
    of the feature at the highest level; see the module for the rest.

    Args:
        simulations: Simulations of all levels.
        target: `"theta"` (NPE) or `"x"` (NLE).
        seed: Seed of the noise.

    Returns:
        The simulations; the very same where there is nothing to do.

    Warns:
        UserWarning: If there are such features.
    """
    generator = torch.Generator().manual_seed(seed)
    for level in range(len(simulations) - 1):
        simulations = _fill_level(simulations, level, generator)
    return _fill_all(simulations, generator) if target == "x" else simulations


def for_scaling(x: Tensor) -> Tensor:
    """Outputs to z-score by: as they are, but large constants spread a little.

    Args:
        x: Outputs, shape `(n, *x_shape)`.

    Returns:
        Outputs of the same shape; the very same where no constant is large.
    """
    flat = x.flatten(1)
    chosen = ~varies(x) & (flat.abs().amax(0) > 1)
    if not bool(chosen.any()):
        return x
    value = flat[0, chosen].cpu()
    generator = torch.Generator().manual_seed(0)
    drawn = _normal(len(x), value, _SPREAD_FOR_SCALING * value.abs(), generator)
    return replaced(x, chosen, drawn)


def varies(*sets: Tensor) -> Tensor:
    """Whether each feature varies by more than rounding, shape `(k,)`.

    Args:
        *sets: Sets of outputs, each of shape `(n, *x_shape)`, taken together; k is the
            number of entries of a row.
    """
    low = torch.stack([x.flatten(1).amin(0) for x in sets]).amin(0)
    high = torch.stack([x.flatten(1).amax(0) for x in sets]).amax(0)
    return ~is_constant(high - low, torch.maximum(low.abs(), high.abs()))


def is_constant(spread: Tensor, size: Tensor) -> Tensor:
    """Whether values of a size that spread so little differ by rounding only."""
    return spread <= (_ROUNDING * size).clamp_min(_MIN_RANGE)


def _fill_level(
    simulations: MultilevelSimulations, level: int, generator: torch.Generator
) -> MultilevelSimulations:
    x, highest = simulations[level].x, simulations[-1].x
    constant = ~varies(x) & varies(x, highest)
    if not bool(constant.any()):
        return simulations
    top = simulations[-1].level
    _warn(
        constant,
        f"at level {level}, but not the same as at level {top}: noise stands in for "
        f"them, as level {level} tells nothing about them",
    )
    above = highest.flatten(1)[:, constant].cpu()
    mean, scale = above.mean(0), above.std(0)
    if not bool(varies(highest)[constant].all()):
        # two constants: noise as wide as they are apart
        apart = (mean - x.flatten(1)[0, constant].cpu()).abs()
        scale = torch.where(varies(highest)[constant].cpu(), scale, apart)
    return _filled(simulations, level, constant, (mean, scale), generator)


def _fill_all(
    simulations: MultilevelSimulations, generator: torch.Generator
) -> MultilevelSimulations:
    coarse = [rows.x_coarse for rows in simulations if rows.x_coarse is not None]
    constant = ~varies(*(rows.x for rows in simulations), *coarse)
    if not bool(constant.any()):
        return simulations
    _warn(
        constant,
        "at all levels, so that their likelihood has no upper bound: noise stands in "
        "for them, and they have no influence on the posterior",
    )
    value = simulations[-1].x.flatten(1)[0, constant].cpu()
    law = value, value.abs().clamp_min(1.0)
    for level in range(len(simulations)):
        simulations = _filled(simulations, level, constant, law, generator)
    return simulations


def _filled(
    simulations: MultilevelSimulations,
    level: int,
    features: Tensor,
    law: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> MultilevelSimulations:
    """Normal noise of a mean and scale in the outputs of a level."""

    def fill(x: Tensor) -> Tensor:
        return replaced(x, features, _normal(len(x), *law, generator))

    return map_outputs(simulations, level, fill)


def _normal(
    count: int, mean: Tensor, scale: Tensor, generator: torch.Generator
) -> Tensor:
    return mean + scale * torch.randn(count, len(mean), generator=generator)


def _warn(constant: Tensor, what: str) -> None:
    warnings.warn(
        f"Features {named(constant)} of x are constant {what}. Leave them out of x, or "
        "look at the simulator.",
        stacklevel=2,
    )
