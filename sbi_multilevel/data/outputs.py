"""The outputs of one simulator: x of its level, and x_coarse of the level above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations

# numbers that quantiles are taken of, at most, but of so many simulations in any case
_MAX_NUMBERS, _MIN_SIMULATIONS = 1_000_000, 100


def map_outputs(
    simulations: MultilevelSimulations, level: int, change: Callable[[Tensor], Tensor]
) -> MultilevelSimulations:
    """Apply a function to the outputs of a simulator, wherever they appear.

    Args:
        simulations: Simulations of all levels.
        level: Level of the simulator.
        change: Function of outputs, shape `(n, *x_shape)`, that keeps the shape.
    """
    levels = list(simulations)
    own = levels[level]
    make = LevelSimulations.trusted
    levels[level] = make(level, own.theta, change(own.x), own.x_coarse, own.weights)
    above = levels[level + 1] if level + 1 < len(levels) else None
    if above is not None and above.x_coarse is not None:
        coarse = change(above.x_coarse)
        levels[level + 1] = make(level + 1, above.theta, above.x, coarse, above.weights)
    return replace(simulations, levels=tuple(levels))


def outputs_of(simulations: MultilevelSimulations, level: int) -> tuple[Tensor, ...]:
    """The outputs of the simulator of a level: x, and x_coarse of the level above."""
    above = simulations.levels[level + 1 : level + 2]
    coarse = [each.x_coarse for each in above if each.x_coarse is not None]
    return (simulations[level].x, *coarse)


def replaced(x: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """A copy of outputs with other values of some features.

    Args:
        x: Outputs, shape `(n, *x_shape)`, with k entries a simulation.
        features: Whether each feature is replaced, shape `(k,)`.
        values: Their values, shape `(n, number of features)`.
    """
    flat = x.flatten(1).clone()
    flat[:, features] = values.to(flat)
    return flat.reshape(x.shape)


def sample_of(x: Tensor) -> np.ndarray:
    """A sample of outputs for quantiles, in double precision, shape `(m, k)`."""
    flat = x.flatten(1)
    most = max(_MAX_NUMBERS // max(flat.shape[1], 1), _MIN_SIMULATIONS)
    return flat[:: -(-len(flat) // most)].detach().cpu().double().numpy()


def named(features: Tensor) -> str:
    """The first features for which a mask of shape `(k,)` is true, for a message."""
    numbers = features.nonzero().flatten().tolist()
    return ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
