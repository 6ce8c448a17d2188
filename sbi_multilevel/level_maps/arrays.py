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
        weights: Weight of each simulation, shape `(n,)`, with mean 1; `None` for equal
            weights. Maps, which are fitted given theta, do not depend on them.
    """

    theta: np.ndarray
    x: np.ndarray
    x_coarse: np.ndarray | None = None
    weights: np.ndarray | None = None
    _known: dict[Callable, Any] = field(default_factory=dict, init=False, repr=False)
    _known_of_theta: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, simulations: LevelSimulations) -> LevelArrays:
        """The simulations of a level, x flattened."""
        coarse, weights = simulations.x_coarse, None
        if simulations.weights is not None:
            weights = simulations.loss_weights.detach().cpu().double().numpy()
        columns = _flat(simulations.theta), _flat(simulations.x)
        return cls(*columns, None if coarse is None else _flat(coarse), weights)

    def cached(self, function: Callable[[LevelArrays], Result]) -> Result:
        """`function(self)`, computed once: maps of several kinds and folds share it."""
        if function not in self._known:
            self._known[function] = function(self)
        return self._known[function]

    def of_theta(self, function: Callable[..., Result], *args: Any) -> Result:
        """`function(theta, *args)`, computed once: all with this theta share it."""
        key = function, args
        if key not in self._known_of_theta:
            self._known_of_theta[key] = function(self.theta, *args)
        return self._known_of_theta[key]

    def with_x(self, x: np.ndarray, x_coarse: np.ndarray | None = None) -> LevelArrays:
        """Other outputs at the same theta, with what is known of theta."""
        return LevelArrays(self.theta, x, x_coarse, self.weights, self._known_of_theta)

    def map_x(self, function: Callable[[np.ndarray], np.ndarray]) -> LevelArrays:
        """The same with a function of x and x_coarse in their place."""
        coarse = None if self.x_coarse is None else function(self.x_coarse)
        return self.with_x(function(self.x), coarse)

    def shuffled(self, seed: int) -> LevelArrays:
        """The simulations in random order."""
        return self[np.random.default_rng(seed).permutation(len(self))]

    def followed_by(self, other: LevelArrays) -> LevelArrays:
        """These simulations, then others; paired if both are."""
        coarse = None
        if self.x_coarse is not None and other.x_coarse is not None:
            coarse = np.concatenate((self.x_coarse, other.x_coarse))
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = np.concatenate((self.all_weights, other.all_weights))
        theta = np.concatenate((self.theta, other.theta))
        return LevelArrays(theta, np.concatenate((self.x, other.x)), coarse, weights)

    @property
    def all_weights(self) -> np.ndarray:
        """Weight of each simulation, shape `(n,)`."""
        return np.ones(len(self)) if self.weights is None else self.weights

    def first(self, count: int) -> LevelArrays:
        """The first `count` simulations, or all if there are fewer."""
        return self if len(self) <= count else self[np.arange(count)]

    def apart_from(self, theta: np.ndarray) -> LevelArrays:
        """The simulations at none of these parameters; itself where none are shared.

        The low-fidelity simulation at the parameters of a high-fidelity simulation that
        is held out has information on it.

        Args:
            theta: Parameters, shape `(m, d_theta)`.
        """
        own, others = bit_patterns(self.theta), bit_patterns(theta)
        shared = np.isin(own[:, 0], others[:, 0])
        if shared.any():  # few have the first parameter in common
            row = f"V{8 * own.shape[1]}"
            candidates = own[shared].view(row).ravel()
            shared[shared] = np.isin(candidates, others.view(row).ravel())
        return self[~shared] if shared.any() and not shared.all() else self

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: np.ndarray) -> LevelArrays:
        coarse = None if self.x_coarse is None else self.x_coarse[index]
        weights = None if self.weights is None else self.weights[index]
        return LevelArrays(self.theta[index], self.x[index], coarse, weights)


def drawn(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of values, drawn at random with replacement, shape `(count, k)`."""
    return values[np.random.default_rng(seed).integers(len(values), size=count)]


def bit_patterns(values: np.ndarray) -> np.ndarray:
    """Double precision numbers as integers that are equal where all bits are."""
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().flatten(1).numpy()
