"""Estimators of discrete and continuous features of x: `MixedDensityEstimator` of sbi.

The last features of x are categories. They cannot be shifted or scaled, so alignments
leave them as they are, and level maps take them as real numbers
(`sbi_multilevel.level_maps.discrete_features`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sbi.neural_nets.estimators import MixedDensityEstimator

from sbi_multilevel.data.simulations import LevelSimulations, Target
from sbi_multilevel.utils.seeds import seeded


def probe_mixed(
    build: Callable[..., Any], level: LevelSimulations, target: Target
) -> MixedDensityEstimator | None:
    """The mixed estimator that a builder makes of likelihoods; `None` if it makes none.

    It is built, and not trained, only if the last feature of x has integers only.

    Args:
        build: The builder of the user.
        level: Simulations of one level.
        target: `"theta"` (NPE) or `"x"` (NLE).
    """
    if target != "x" or level.x.ndim != 2:
        return None
    last = level.x[:, -1]
    if not bool((last == last.round()).all()):
        return None
    with seeded(0):
        network = build(level.theta, level.x)
    mixed = (p for p in network.modules() if isinstance(p, MixedDensityEstimator))
    return next(mixed, None)


def num_discrete(mixed: MixedDensityEstimator | None) -> int:
    """Number of discrete features of x, the last ones."""
    return 0 if mixed is None else int(mixed.discrete_net.net.num_variables)
