"""Reads the simulations of a store, and what became of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.simulation.arguments import simulations_per_level
from sbi_multilevel.simulation.noise import NoiseSampler
from sbi_multilevel.simulation.reading import (
    measured_costs,
    simulations_of,
    summary,
    valid_blocks,
)
from sbi_multilevel.simulation.table import FailedSimulation, LevelTable
from sbi_multilevel.storage import layout
from sbi_multilevel.storage.fingerprint import Fingerprint
from sbi_multilevel.utils.argument_types import check_types


class StoredSimulations:
    """The simulations of a store, and what became of them.

    Args:
        path: Folder of the store, resolved.
        noise: The noise sampler of the run, if given.
        mode: "r+", or "r" for a store that is not written to.
    """

    def __init__(self, path: Path, noise: NoiseSampler | None, mode: str):
        self.path = path
        self._noise = noise
        # no file stays open: zarr opens a file for each chunk that it reads or writes
        self._mode = mode
        self._read_root()

    def _read_root(self) -> None:
        """Read what is not in the tables, which another process may have changed."""
        self._root = layout.read_root(self.path, self._mode)
        self.fingerprint = Fingerprint.from_json(self._root.attrs["fingerprint"])

    @property
    def tables(self) -> tuple[LevelTable, ...]:
        """The table of each level as it is on disk."""
        return layout.tables(self.path, self._mode)

    @property
    def num_simulations(self) -> tuple[int, ...]:
        """Number of planned simulations of each level, with any status."""
        return tuple(len(table) for table in self.tables)

    @property
    def costs(self) -> tuple[float, ...] | None:
        """Mean seconds (or recorded cost) of one run of each simulator, if known."""
        return measured_costs(self.tables)

    def costs_of(self, level: int) -> tuple[Tensor, Tensor]:
        """Theta and cost of each finished simulation of a level, if known.

        The cost is in seconds, or as recorded; of a pair it is that of both sides. A
        batch shares its time equally: simulate in batches of one for the cost of each.

        Args:
            level: The level.

        Returns:
            Theta, shape `(n, d_theta)`, and costs, shape `(n,)`.
        """
        check_types(StoredSimulations.costs_of, locals())
        table = self._table(level)
        rows = table.finished()
        theta, seconds = table.tensor("theta", rows), table.tensor("seconds", rows)
        known = seconds.isfinite().any(dim=1)
        return theta[known], seconds[known].nansum(dim=1)

    def failures(self) -> list[FailedSimulation]:
        """Simulations that failed or timed out, with the reasons."""
        return [failure for table in self.tables for failure in table.failures()]

    def summary(self) -> str:
        """One line: the statuses of the simulations of each level, and the seconds."""
        return summary(self.tables, self.num_simulations)

    def to_simulations(
        self,
        num_simulations: Sequence[int] | None = None,
        *,
        costs: Sequence[float] | None = None,
        memory_map: str | os.PathLike | None = None,
    ) -> MultilevelSimulations:
        """The valid simulations, for training.

        Args:
            num_simulations: Number of simulations of each level to consider, counted
                from the first; all by default.
            costs: Cost of each level; by default the measured mean.
            memory_map: A folder for simulations that do not fit into memory: they are
                copied to `.npy` files there, which the returned tensors map.

        Raises:
            ValueError: If a level has fewer than two valid simulations.
            OSError: If a chunk cannot be read; `repair` then returns how many
                simulations are lost.
        """
        check_types(StoredSimulations.to_simulations, locals())
        tables, stops = self.tables, self._checked_stops(num_simulations)
        chosen = tuple(costs) if costs is not None else self.costs
        return simulations_of(tables, stops, chosen, memory_map)

    def batches(
        self, level: int, batch_size: int = 10_000
    ) -> Iterator[LevelSimulations]:
        """Valid simulations of a level in parts, e.g. if they do not fit into memory.

        Args:
            level: The level.
            batch_size: Number of stored simulations that are read at a time.
        """
        check_types(StoredSimulations.batches, locals())
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, but is {batch_size}.")
        table = self._table(level)
        return valid_blocks(table, len(table), batch_size)

    def _table(self, level: int) -> LevelTable:
        tables = self.tables
        if not 0 <= level < len(tables):
            raise ValueError(
                f"level={level} is not in the store, whose levels are 0 to "
                f"{len(tables) - 1}."
            )
        return tables[level]

    def _checked_stops(self, asked: Sequence[int] | None) -> tuple[int, ...]:
        """Number of simulations of each level to use, counted from the first."""
        planned = self.num_simulations
        if asked is None:
            return planned
        stops = simulations_per_level(asked, least=0)
        if len(stops) != len(planned) or any(a > b for a, b in zip(stops, planned)):
            raise ValueError(
                f"num_simulations={stops} must be a number for each level, no more "
                f"than the {planned} simulations of store={str(self.path)!r}. `create` "
                "adds simulations."
            )
        return stops
