"""LevelArrays as the maps see them: double precision, one vector of features a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations


@dataclass(frozen=True, eq=False)
class LevelArrays:
    """LevelArrays of one level.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        x: Outputs, shape `(n, k)`.
        x_coarse: Outputs of the level below at the same theta and noise, shape
            `(n, k)`; `None` where rows are not paired.
    """

    theta: np.ndarray
    x: np.ndarray
    x_coarse: np.ndarray | None = None

    @classmethod
    def of(cls, rows: LevelSimulations) -> LevelArrays:
        """The rows of a level, flattened."""
        coarse = rows.x_coarse
        return cls(
            _flat(rows.theta),
            _flat(rows.x),
            None if coarse is None else _flat(coarse),
        )

    def shuffled(self, seed: int) -> LevelArrays:
        """The rows in an order that says nothing."""
        return self[np.random.default_rng(seed).permutation(len(self))]

    def first(self, count: int) -> LevelArrays:
        """The first of them, all where they are fewer."""
        return self[np.arange(min(len(self), count))]

    def apart_from(self, theta: np.ndarray) -> LevelArrays:
        """Those at none of these parameters; itself where none are shared.

        LevelArrays at the parameters of one that is held out, such as its own cheap twin,
        tell what it holds.

        Args:
            theta: Parameters, shape `(m, d_theta)`.
        """
        known = {row.tobytes() for row in np.ascontiguousarray(theta)}
        own = np.ascontiguousarray(self.theta)
        shared = np.array([row.tobytes() in known for row in own], dtype=bool)
        return self[~shared] if shared.any() and not shared.all() else self

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, index: np.ndarray) -> LevelArrays:
        coarse = None if self.x_coarse is None else self.x_coarse[index]
        return LevelArrays(self.theta[index], self.x[index], coarse)


def _flat(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().double().flatten(1).numpy()
