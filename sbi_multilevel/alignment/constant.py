"""Features that cheap rows keep constant: noise of the right scale stands in for them.

No map scales up what does not vary, and a network z-scored by cheap rows can make
nothing of dear rows that vary there: one such feature would cost all that the others
tell. As noise it tells nothing, which is the truth, and dear rows put it right.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from sbi_multilevel.simulations import MultilevelSimulations


def fill_constant(
    simulations: MultilevelSimulations, seed: int
) -> MultilevelSimulations:
    r"""Replace features that are constant at a lower level, but not at the highest.

    At the lower level :math:`x_j \sim N(m_j, s_j)` instead, with the mean and standard
    deviation of the feature at the highest level, in `x_coarse` of pairs as well.

    Args:
        simulations: Rows of all levels.
        seed: Seed of the noise.

    Returns:
        The rows; the very same where no feature is constant.

    Warns:
        UserWarning: If there are such features.
    """
    highest = simulations[-1].x.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    levels = list(simulations)
    for index, rows in enumerate(levels[:-1]):
        constant = _varies(highest) & ~_varies(rows.x.flatten(1))
        if not bool(constant.any()):
            continue
        _warn(constant, rows.level, simulations[-1].level)
        levels[index] = replace(rows, x=_noise(rows.x, constant, highest, generator))
        above = levels[index + 1]
        if above.x_coarse is not None:
            coarse = _noise(above.x_coarse, constant, highest, generator)
            levels[index + 1] = replace(above, x_coarse=coarse)
    if all(new is old for new, old in zip(levels, simulations)):
        return simulations
    return MultilevelSimulations(tuple(levels), simulations.costs)


def _varies(x: Tensor) -> Tensor:
    """Whether each feature varies, by more than rounding."""
    return x.amax(0) - x.amin(0) > 1e-9 * x.abs().amax(0)


def _noise(
    x: Tensor, constant: Tensor, highest: Tensor, generator: torch.Generator
) -> Tensor:
    filled = x.flatten(1).clone()
    mean, scale = highest[:, constant].mean(0), highest[:, constant].std(0)
    drawn = torch.randn(len(x), len(mean), generator=generator).to(x)
    filled[:, constant] = mean + scale * drawn
    return filled.reshape(x.shape)


def _warn(constant: Tensor, level: int, highest: int) -> None:
    features = constant.nonzero().flatten().tolist()
    named = ", ".join(map(str, features[:5])) + ", ..." * (len(features) > 5)
    warnings.warn(
        f"Features {named} of x are constant at level {level}, but not at level "
        f"{highest}: noise stands in for them, as level {level} tells nothing of them. "
        "Leave them out of x, or look at the simulator.",
        stacklevel=2,
    )
