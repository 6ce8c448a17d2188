"""The outputs of one simulator: x of its level, and x_coarse of the level above.

A *feature* is one entry of x; the k features of an array are in the order of `flatten`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations

# numbers that quantiles are taken of, at most, but of so many simulations in any case
_MAX_NUMBERS, _MIN_SIMULATIONS = 1_000_000, 100
_ROUNDING = 4 * torch.finfo(torch.float32).eps
_MIN_RANGE = 1e-14  # what varies less is constant to sbi's z-scoring


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
    for each, name in zip(levels[level : level + 2], ("x", "x_coarse")):
        outputs = getattr(each, name)
        if outputs is not None:
            columns = {**vars(each), name: change(outputs)}
            levels[each.level] = LevelSimulations.trusted(**columns)
    return replace(simulations, levels=tuple(levels))


def outputs_of(simulations: MultilevelSimulations, level: int) -> tuple[Tensor, ...]:
    """The outputs of the simulator of a level: x, and x_coarse of the level above."""
    above = simulations.levels[level + 1 : level + 2]
    coarse = [each.x_coarse for each in above if each.x_coarse is not None]
    return (simulations[level].x, *coarse)


def range_of(*sets: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of each of k features, each of shape `(k,)`.

    Args:
        *sets: Sets of outputs, each of shape `(n, *x_shape)`, taken together.
    """
    low = torch.stack([x.flatten(1).amin(0) for x in sets]).amin(0)
    high = torch.stack([x.flatten(1).amax(0) for x in sets]).amax(0)
    return low, high


def varies(*sets: Tensor) -> Tensor:
    """Whether each of k features varies by more than rounding, shape `(k,)`.

    Args:
        *sets: As for `range_of`.
    """
    low, high = range_of(*sets)
    return ~is_constant(high - low, torch.maximum(low.abs(), high.abs()))


def is_constant(spread: Tensor, size: Tensor) -> Tensor:
    """Whether values of a size with this spread differ by rounding only."""
    return spread <= (_ROUNDING * size).clamp_min(_MIN_RANGE)


def sample_of(x: Tensor) -> np.ndarray:
    """A sample of outputs for quantiles, in double precision, shape `(m, k)`."""
    flat = x.flatten(1)
    most = max(_MAX_NUMBERS // max(flat.shape[1], 1), _MIN_SIMULATIONS)
    return flat[:: -(-len(flat) // most)].detach().cpu().double().numpy()


def named(features: Tensor) -> str:
    """The first features for which a mask of shape `(k,)` is true, for a message."""
    numbers = features.nonzero().flatten().tolist()
    return ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
