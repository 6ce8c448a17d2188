"""The outputs of one simulator, wherever they stand: in x, and in x_coarse above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations

# what quantiles are taken of, at most, but of so many rows in any case
_MAX_NUMBERS, _MIN_ROWS = 1_000_000, 100


def map_outputs(
    simulations: MultilevelSimulations, level: int, change: Callable[[Tensor], Tensor]
) -> MultilevelSimulations:
    """Change the outputs of a simulator on both sides, so that sums still telescope.

    Args:
        simulations: Simulations of all levels.
        level: Level of the simulator.
        change: Function of outputs, shape `(n, *x_shape)`, that keeps the shape.
    """
    levels = list(simulations)
    rows = levels[level]
    levels[level] = _with(rows, change(rows.x), rows.x_coarse)
    if level + 1 < len(levels) and levels[level + 1].x_coarse is not None:
        above = levels[level + 1]
        levels[level + 1] = _with(above, above.x, change(above.x_coarse))
    return replace(simulations, levels=tuple(levels))


def outputs_of(simulations: MultilevelSimulations, level: int) -> tuple[Tensor, ...]:
    """The outputs of a simulator: x, and, if there is one, x_coarse of the level above.

    Args:
        simulations: Simulations of all levels.
        level: Level of the simulator.
    """
    coarse = None
    if level + 1 < len(simulations):
        coarse = simulations[level + 1].x_coarse
    return (simulations[level].x,) if coarse is None else (simulations[level].x, coarse)


def replaced(x: Tensor, features: Tensor, values: Tensor) -> Tensor:
    """A copy of outputs with other values of some features.

    Args:
        x: Outputs, shape `(n, *x_shape)`, with k entries a row.
        features: Whether each feature is replaced, shape `(k,)`.
        values: Their values, shape `(n, number of features)`.
    """
    flat = x.flatten(1).clone()
    flat[:, features] = values.to(flat)
    return flat.reshape(x.shape)


def sample_of(x: Tensor) -> np.ndarray:
    """Some rows of outputs, to take quantiles of: all of them where they are few.

    Args:
        x: Outputs, shape `(n, *x_shape)`.

    Returns:
        Rows in double precision, shape `(m, k)`.
    """
    flat = x.flatten(1)
    most = max(_MAX_NUMBERS // max(flat.shape[1], 1), _MIN_ROWS)
    return flat[:: -(-len(flat) // most)].detach().cpu().double().numpy()


def named(features: Tensor) -> str:
    """The first of some features, for a message.

    Args:
        features: Whether each feature is meant, shape `(k,)`.
    """
    numbers = features.nonzero().flatten().tolist()
    return ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)


def _with(
    rows: LevelSimulations, x: Tensor, x_coarse: Tensor | None
) -> LevelSimulations:
    return rows.trusted(rows.level, rows.theta, x, x_coarse, rows.weights)
