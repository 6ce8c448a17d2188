"""Simulations of a level as level maps use them: double precision, x as a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class LevelArrays:
    """Simulations of one level.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        x: Outputs, shape `(n, k)`.
        x_coarse: Outputs of the level below at the same theta and noise, shape
            `(n, k)`; `None` where simulations are not paired.
    """

    theta: np.ndarray
    x: np.ndarray
    x_coarse: np.ndarray | None = None
    _known: dict[Callable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, simulations: LevelSimulations) -> LevelArrays:
        """The simulations of a level, x flattened."""
        coarse = simulations.x_coarse
        columns = _flat(simulations.theta), _flat(simulations.x)
        return cls(*columns, None if coarse is None else _flat(coarse))

    def cached(self, function: Callable[[LevelArrays], Result]) -> Result:
        """`function(self)`, computed once: maps of several kinds and folds share it."""
        if function not in self._known:
            self._known[function] = function(self)
        return self._known[function]

    def map_x(self, function: Callable[[np.ndarray], np.ndarray]) -> LevelArrays:
        """The same with a function of x and x_coarse in their place."""
        coarse = None if self.x_coarse is None else function(self.x_coarse)
        return LevelArrays(self.theta, function(self.x), coarse)

    def shuffled(self, seed: int) -> LevelArrays:
        """The simulations in random order."""
        return self[np.random.default_rng(seed).permutation(len(self))]

    def first(self, count: int) -> LevelArrays:
        """The first `count` simulations, or all if there are fewer."""
        return self[np.arange(min(len(self), count))]

    def apart_from(self, theta: np.ndarray) -> LevelArrays:
        """The simulations at none of these parameters; itself where none are shared.

        The low-fidelity simulation at the parameters of a high-fidelity simulation that
        is held out has information on it.

        Args:
            theta: Parameters, shape `(m, d_theta)`.
        """
        known = {each.tobytes() for each in np.ascontiguousarray(theta)}
        own = np.ascontiguousarray(self.theta)
        shared = np.array([each.tobytes() in known for each in own], dtype=bool)
        return self[~shared] if shared.any() and not shared.all() else self

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: np.ndarray) -> LevelArrays:
        coarse = None if self.x_coarse is None else self.x_coarse[index]
        return LevelArrays(self.theta[index], self.x[index], coarse)


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().flatten(1).numpy()
