"""Outputs of the runs of `check_pairing`, read from tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.pairing_report import LevelPairing
from sbi_multilevel.diagnostics.shared_noise import noise_variance, shared_noise
from sbi_multilevel.simulation.accounting import failure_text
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Status

MIN_THETAS = 4
# differences attributed to rounding, relative to standard deviation and largest value
_TOLERANCE, _ROUNDING = 1e-2, 1e-5


@dataclass(frozen=True, eq=False)
class PairingRuns:
    """Outputs of all levels at the same theta and noise, and repeated outputs.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        groups: Index of the theta of each simulation, shape `(n,)`.
        x: Outputs of each level, shape `(n, *x_shape)`, NaN for failures.
        x_again: Repeated outputs of the simulations `again`, shape `(r, *x_shape)`.
        again: Indices of the repeated simulations, shape `(r,)`.
        valid: Mask of simulations that are finite at all levels and share their theta
            with another one, shape `(n,)`.
    """

    theta: Tensor
    groups: np.ndarray
    x: tuple[Tensor, ...]
    x_again: tuple[Tensor, ...]
    again: Tensor
    valid: np.ndarray

    @classmethod
    def of(
        cls, tables: Sequence[LevelTable], theta: Tensor, again: Tensor
    ) -> PairingRuns:
        """Read the outputs from the tables.

        Raises:
            ValueError: If outputs differ in shape, or too few simulations are valid.
        """
        outputs = [read_outputs(table) for table in tables]
        shapes = [tuple(x.shape[1:]) for x in outputs]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"x of the levels has shapes {shapes}, but must have one shape. "
                "Return common summaries at all levels."
            )
        count = len(theta)
        _, groups = np.unique(theta.numpy(), axis=0, return_inverse=True)
        finite = [x[:count].isfinite().flatten(1).all(dim=1) for x in outputs]
        valid = torch.stack(finite).all(dim=0).numpy()
        groups = groups.reshape(-1)
        valid &= np.bincount(groups, weights=valid)[groups] > 1
        if len(np.unique(groups[valid])) < MIN_THETAS:
            reasons = [failure_text(table, len(table)) for table in tables]
            why = "; ".join(text for text in reasons if text) or "NaN or inf in x"
            raise ValueError(
                f"Only {int(valid.sum())} of {count} simulations are valid at all "
                f"levels: {why}. Increase num_simulations, or fix the simulators."
            )
        first = tuple(x[:count] for x in outputs)
        second = tuple(x[count:] for x in outputs)
        return cls(theta, groups, first, second, again, valid)

    def pairing(self, level: int, seed: int) -> LevelPairing:
        """Compare a level with the lower level."""
        x, x_coarse = (self.flat(self.x[side]) for side in (level, level - 1))
        groups = self.groups[self.valid]
        shared = shared_noise(x[self.valid], x_coarse[self.valid], groups, seed=seed)
        shares = [self.irreproducible(side) for side in (level, level - 1)]
        return LevelPairing(level, shared, np.stack(shares))

    def irreproducible(self, level: int) -> np.ndarray:
        """Share of the variance given theta that a repeated run does not reproduce."""
        x, x_again = self.flat(self.x[level]), self.flat(self.x_again[level])
        change = x_again - x[self.again.numpy()]
        change = change[np.isfinite(change).all(axis=1)] ** 2
        valid = x[self.valid]
        variance = noise_variance(valid, self.groups[self.valid])
        rounding = _ROUNDING * np.abs(valid).max(axis=0)
        largest = change.max(axis=0, initial=0.0)
        differs = largest > _TOLERANCE**2 * variance + rounding**2
        share = (
            change.sum(axis=0)
            / max(len(change), 1)
            / 2
            / np.where(variance > 0, variance, np.inf)
        )
        share = np.where(variance > 0, share.clip(max=1.0), 1.0)
        return np.where(differs, share, 0.0)

    @staticmethod
    def flat(x: Tensor) -> np.ndarray:
        """Outputs as vectors in double precision, shape `(n, k)`."""
        return x.flatten(1).double().numpy()

    def simulations(self, costs: tuple[float, ...] | None) -> MultilevelSimulations:
        """The valid simulations of all levels, as pairs."""
        valid = torch.from_numpy(self.valid)
        theta, x = self.theta[valid], [side[valid] for side in self.x]
        levels = [
            LevelSimulations.trusted(level, theta, x[level], below)
            for level, below in enumerate([None, *x[:-1]])
        ]
        return MultilevelSimulations(tuple(levels), costs)


def read_outputs(table: LevelTable) -> Tensor:
    """Outputs of all simulations, NaN for failures."""
    rows = np.arange(len(table))
    x = torch.full((len(table), 1), torch.nan)
    if "x" in table.columns:
        x = table.tensor("x", rows)
        failed = np.setdiff1d(rows, table.rows_with(Status.OK))
        x[failed] = torch.nan
    return x
