"""Simulations that grow: the same rows as `simulate_multilevel`, a few more at a time.

Rows that were made are never made again, with a store or in memory. Beside the rows of
a level, the simulators can be run at their theta and noise again, e.g. those of levels
further below, or at a theta a little aside; what comes back then stays in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.accounting import measured_costs
from sbi_multilevel.simulation.arguments import (
    check_num_costs,
    check_seed,
    per_level,
    processed_prior,
)
from sbi_multilevel.simulation.filling import Effort, fill
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_theta,
    row_seeds,
    seeded,
)
from sbi_multilevel.simulation.reading import simulations_of
from sbi_multilevel.simulation.table import LevelTable, memory_table
from sbi_multilevel.simulation.tasks import Status, Work
from sbi_multilevel.storage import SimulationStore


@dataclass(frozen=True, eq=False)
class Source:
    """The simulators, and how they are run; arguments as of `simulate_multilevel`."""

    simulators: tuple[Simulator, ...]
    prior: Any
    noise: NoiseSampler | None = None
    seed: int = 0
    simulation_batch_size: int | Sequence[int] = 1_000
    num_workers: int | None = None
    costs: tuple[float, ...] | None = None
    store: str | os.PathLike | None = None
    timeout: float | None = None
    max_failure_share: float = 0.2
    show_progress_bars: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        with seeded(self.seed):  # sbi draws from the prior to check it
            prior = processed_prior(self.prior)
        object.__setattr__(self, "prior", prior)
        check_num_costs(self.costs, len(self.simulators))

    def check_rows(self, name: str, num_simulations: Sequence[int], least: int) -> None:
        """Raise unless there is a number of rows, at least `least`, for each level."""
        if len(num_simulations) != len(self.simulators) or (
            min(num_simulations, default=0) < least
        ):
            raise ValueError(
                f"{name}={tuple(num_simulations)} must hold a number of rows >= "
                f"{least} for each of the {len(self.simulators)} simulators."
            )

    def effort(self, batch_sizes: tuple[int, ...], is_shown: bool) -> Effort:
        """How a run is carried out."""
        return Effort(batch_sizes, self.num_workers, self.max_failure_share, is_shown)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows that the simulator of each level is given at once."""
        return per_level(self.simulation_batch_size, len(self.simulators))


class GrowingSimulations:
    """Rows of all levels, in a store or in memory, and more of them when asked.

    Args:
        source: The simulators, and how they are run.
    """

    def __init__(self, source: Source):
        self.source = source
        self._memory: tuple[LevelTable, ...] = ()

    def simulate(self, num_simulations: Sequence[int]) -> MultilevelSimulations:
        """The first rows of each level; only those that are new are simulated.

        Raises:
            ValueError: If the cost of a level is neither given nor measured.
        """
        simulations = self._simulated(num_simulations)
        if simulations.costs is None:
            raise ValueError(
                "costs is None and the cost of some level is unknown: the store holds "
                "rows that were recorded without. Pass costs, a number a level."
            )
        return simulations

    def _simulated(self, num_simulations: Sequence[int]) -> MultilevelSimulations:
        source = self.source
        if source.store is not None:
            store = self._store(num_simulations)
            store.run(
                source.simulators,
                num_simulations=num_simulations,
                simulation_batch_size=source.batch_sizes,
                num_workers=source.num_workers,
                timeout=source.timeout,
                max_failure_share=source.max_failure_share,
                costs=source.costs,
                show_progress_bars=source.show_progress_bars,
            )
            return store.to_simulations(num_simulations, costs=source.costs)
        self._memory = tuple(
            self._grown(level, num_rows)
            for level, num_rows in enumerate(num_simulations)
        )
        work = Work(source.simulators, source.noise, source.timeout)
        effort = source.effort(source.batch_sizes, source.show_progress_bars)
        fill(self._memory, num_simulations, work, effort, source.costs)
        costs = source.costs or measured_costs(self._memory)
        return simulations_of(self._memory, num_simulations, costs)

    def existing(self) -> tuple[int, ...]:
        """Rows of each level up to the last that was run before, e.g. in the store."""
        source = self.source
        if source.store is not None and os.path.exists(source.store):
            tables = self._store((0,) * len(source.simulators)).tables
        else:
            tables = self._memory
        done = [s for s in Status if s is not Status.PENDING]
        counts = [int(t.rows_with(*done).max(initial=-1)) + 1 for t in tables]
        return tuple(counts) or (0,) * len(source.simulators)

    def seeds(self, level: int, num_rows: int) -> Tensor:
        """Seeds of the valid rows among the first `num_rows` of a level."""
        tables = self._memory
        if self.source.store is not None:
            tables = self._store((0,) * len(self.source.simulators)).tables
        rows = tables[level].rows_with(Status.OK, stop=num_rows)
        return tables[level].tensor("seed", rows)

    def run_again(self, simulator: int, theta: Tensor, seeds: Tensor) -> Tensor:
        """Run the simulator of one level at given rows; nothing is stored.

        Args:
            simulator: Level of the simulator.
            theta: Parameters, shape `(n, d_theta)`.
            seeds: Seeds of the noise, shape `(n,)`.

        Returns:
            Outputs, shape `(n, *x_shape)`, NaN where a run failed.
        """
        source = self.source
        table = memory_table(0, theta.contiguous(), seeds)
        work = Work((source.simulators[simulator],), source.noise, source.timeout)
        size = source.batch_sizes[simulator]
        fill((table,), (len(theta),), work, source.effort((size,), is_shown=False))
        if "x" not in table.columns:
            return torch.full((len(theta), 1), torch.nan)
        return table.tensor("x", np.arange(len(theta)))

    def _store(self, num_simulations: Sequence[int]) -> SimulationStore:
        source = self.source
        assert source.store is not None
        return SimulationStore.create(
            source.store,
            source.prior,
            num_simulations,
            noise=source.noise,
            seed=source.seed,
            chunk_rows=source.batch_sizes,
        )

    def _grown(self, level: int, num_rows: int) -> LevelTable:
        """The table of a level with at least so many rows, the old ones copied."""
        old = self._memory[level] if self._memory else None
        if old is not None and len(old) >= num_rows:
            return old
        source, start = self.source, 0 if old is None else len(old)
        theta = draw_theta(source.prior, source.seed, level, num_rows, start=start)
        seeds = row_seeds(source.seed, level, start, num_rows)
        if old is None:
            return memory_table(level, theta, seeds)
        rows = np.arange(start)
        table = memory_table(
            level,
            torch.cat([old.tensor("theta", rows), theta]),
            torch.cat([old.tensor("seed", rows), seeds]),
        )
        for name in ("status", "seconds", "error", "x", "x_coarse"):
            if name not in old.columns:
                continue
            values = old.columns[name]
            if name not in table.columns:
                table.columns.create(name, (num_rows, *values.shape[1:]))
            table.columns[name][:start] = values
        return table
