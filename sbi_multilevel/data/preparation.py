"""Preparation of simulations that all methods share, and what no network can use.

Extreme values are clamped (`sbi_multilevel.data.extremes`), and simulations that no
network could be trained on are refused. See also
`sbi_multilevel.data.constant_features`.
"""

from __future__ import annotations

from sbi_multilevel.data.constant_features import is_constant, varies
from sbi_multilevel.data.extremes import limit_extremes
from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.outputs import named, outputs_of
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations

_LARGEST = 1e15  # the sum of squares of a billion of these numbers is a float32


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
