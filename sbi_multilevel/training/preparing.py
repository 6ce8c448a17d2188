"""Simulations prepared for training, the same way for every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.preparation import (
    check_pretrained,
    check_theta_varies,
    check_vectors,
    fill_constant,
    for_scaling,
    without_extremes,
)
from sbi_multilevel.data.simulations import MultilevelSimulations, Target
from sbi_multilevel.estimators.observations import TrainingRange
from sbi_multilevel.training.network import moments_of

_SEED_OF_NOISE = 0  # the same in all trainings on the same simulations


def prepare(
    simulations: MultilevelSimulations,
    target: Target,
    warm_start: Any | None,
    is_new: bool,
) -> tuple[MultilevelSimulations, TrainingRange]:
    """Move single extreme values, fill constant features, and check the rest.

    Args:
        simulations: Simulations of all levels.
        target: `"theta"` (NPE) or `"x"` (NLE).
        warm_start: The network that training starts from, if there is one.
        is_new: Whether the network is still to be built.

    Returns:
        The prepared simulations, and the range of x in which they lie.

    Raises:
        ValueError: If no network can be trained on them.
    """
    if target == "x":
        check_vectors(simulations[0])
    simulations = without_extremes(simulations)
    highest, *lower = (level.x for level in reversed(simulations.levels))
    training_range = TrainingRange.of(highest, lower)
    simulations = fill_constant(simulations, target, _SEED_OF_NOISE)
    if warm_start is not None:
        moments = moments_of(warm_start, simulations[-1].x)
        check_pretrained(moments, simulations)
    elif is_new:
        check_theta_varies(simulations[0])
    return simulations, training_range


def with_spread(x: Tensor, indices: Tensor) -> Tensor:
    """x whose chosen entries vary in each feature, so that it can be z-scored.

    Args:
        x: Outputs, shape `(n, *x_shape)`.
        indices: The outputs that a network is built on.
    """
    chosen = x[indices]
    scaled = for_scaling(chosen)
    if scaled is chosen:
        return x
    return x.index_copy(0, torch.as_tensor(indices, device=x.device), scaled)
