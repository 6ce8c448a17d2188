"""What every recipe looks for in simulations before it uses them.

Single values beyond all others are moved (`sbi_multilevel.data.extremes`), and
what no network could be trained on is refused. See also
`sbi_multilevel.data.constant_features`.
"""

from __future__ import annotations

from sbi_multilevel.data.constant_features import is_constant, varies
from sbi_multilevel.data.extremes import limit_extremes
from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.outputs import named, outputs_of
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations

_LARGEST = 1e15  # the sum of squares of a billion such numbers is a float32


def without_extremes(simulations: MultilevelSimulations) -> MultilevelSimulations:
    """Simulations without single values of x beyond all others.

    Args:
        simulations: Simulations of all levels.

    Returns:
        The simulations; the very same where there is nothing to do.

    Raises:
        ValueError: If features of x are too large for single precision.

    Warns:
        UserWarning: If values of x were moved.
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


def check_vectors(rows: LevelSimulations) -> None:
    """Raise unless x of a row is a vector, as likelihoods need it.

    Args:
        rows: Simulations of a level.

    Raises:
        ValueError: If it is not.
    """
    if rows.x.ndim != 2:
        raise ValueError(
            f"x has shape {tuple(rows.x.shape[1:])} a row, but likelihoods are learned "
            "of vectors. Flatten x, or summarise it."
        )


def check_theta_varies(rows: LevelSimulations) -> None:
    """Raise if a network would be z-scored by parameters that do not vary.

    Args:
        rows: The simulations that it would be built on.

    Raises:
        ValueError: If a column of theta is constant.
    """
    constant = ~varies(rows.theta)
    if bool(constant.any()):
        raise ValueError(
            f"Columns {named(constant)} of theta are the same in all {len(rows)} "
            f"simulations of level {rows.level}. Draw theta from the prior, or leave "
            "the columns out."
        )


def check_pretrained(
    moments: Moments | None, simulations: MultilevelSimulations
) -> None:
    """Raise if x varies where it did not in the simulations of a pre-trained network.

    Such a network was z-scored by a standard deviation of zero.

    Args:
        moments: Moments of the x that the network was built on, if they are known.
        simulations: Simulations to train it on.

    Raises:
        ValueError: If there are such features.
    """
    if moments is None or moments.std.ndim == 0:
        return
    std, size = moments.std.flatten(), moments.mean.flatten().abs()
    for rows in simulations:
        x = rows.x.flatten(1)
        if x.shape[1] != len(std):
            return  # refused when the network is taken over
        blind = is_constant(std, size).to(x.device) & varies(x)
        if bool(blind.any()):
            raise ValueError(
                f"Features {named(blind)} of x vary at level {rows.level}, but were "
                "constant in the simulations that the network was pre-trained on, so "
                "it cannot read them. Leave them out of x in both, or look at the "
                "simulator of pre-training."
            )
