"""Growing sets of simulations: those of `simulate_multilevel`, in several steps.

Existing simulations are not repeated, with a store or in memory. The simulators can
also be run again at given theta and noise, e.g. those of levels further below, or at
slightly different theta; these outputs stay in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.accounting import measured_costs
from sbi_multilevel.simulation.arguments import check_seed, processed_prior
from sbi_multilevel.simulation.filling import RunOptions, fill
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_theta,
    simulation_seeds,
)
from sbi_multilevel.simulation.reading import simulations_of
from sbi_multilevel.simulation.table import LevelTable, memory_table
from sbi_multilevel.simulation.tasks import Status, Work
from sbi_multilevel.storage import SimulationStore
from sbi_multilevel.utils.seeds import seeded


@dataclass(frozen=True, eq=False)
class Source:
    """The simulators, their inputs, and how they are run.

    Args:
        simulators: As of `simulate_multilevel`.
        prior: As of `simulate_multilevel`.
        noise: As of `simulate_multilevel`.
        seed: As of `simulate_multilevel`.
        store: As of `simulate_multilevel`.
        options: How the simulations are run.
    """

    simulators: tuple[Simulator, ...]
    prior: Any
    noise: NoiseSampler | None
    seed: int
    store: str | os.PathLike | None
    options: RunOptions

    def __post_init__(self) -> None:
        check_seed(self.seed)
        with seeded(self.seed):  # sbi samples from the prior to check it
            prior = processed_prior(self.prior)
        object.__setattr__(self, "prior", prior)

    def check_numbers(
        self, name: str, num_simulations: Sequence[int], least: int
    ) -> None:
        """Raise unless there is a number >= `least` for each level."""
        if len(num_simulations) != len(self.simulators) or (
            min(num_simulations, default=0) < least
        ):
            raise ValueError(
                f"{name}={tuple(num_simulations)} must hold a number of simulations >= "
                f"{least} for each of the {len(self.simulators)} simulators."
            )


class GrowingSimulations:
    """Simulations of all levels, in a store or in memory, that can be extended.

    Args:
        source: The simulators, and how they are run.
    """

    def __init__(self, source: Source):
        self.source = source
        self._memory: tuple[LevelTable, ...] = ()

    def simulate(self, num_simulations: Sequence[int]) -> MultilevelSimulations:
        """The first simulations of each level; only new ones are run.

        Raises:
            ValueError: If the cost of a level is neither given nor measured.
        """
        simulations = self._simulated(num_simulations)
        if simulations.costs is None:
            raise ValueError(
                "costs is None and the cost of some level is unknown: the store holds "
                "simulations that were recorded without it. Pass costs, one number per "
                "level."
            )
        return simulations

    def _simulated(self, num_simulations: Sequence[int]) -> MultilevelSimulations:
        source, options = self.source, self.source.options
        if source.store is not None:
            store = self._store(num_simulations)
            store.run_pending(source.simulators, options, num_simulations)
            return store.to_simulations(num_simulations, costs=options.costs)
        self._memory = tuple(
            self._grown(level, number) for level, number in enumerate(num_simulations)
        )
        work = Work(source.simulators, source.noise, options.timeout)
        fill(self._memory, num_simulations, work, options)
        costs = options.costs or measured_costs(self._memory)
        return simulations_of(self._memory, num_simulations, costs)

    def existing(self) -> tuple[int, ...]:
        """Number of simulations of each level up to the last existing one."""
        source = self.source
        if source.store is not None and os.path.exists(source.store):
            tables = self._store((0,) * len(source.simulators)).tables
        else:
            tables = self._memory
        done = [s for s in Status if s is not Status.PENDING]
        counts = [int(t.rows_with(*done).max(initial=-1)) + 1 for t in tables]
        return tuple(counts) or (0,) * len(source.simulators)

    def seeds(self, level: int, num_simulations: int) -> Tensor:
        """Seeds of the valid ones of the first `num_simulations` of a level."""
        tables = self._memory
        if self.source.store is not None:
            tables = self._store((0,) * len(self.source.simulators)).tables
        rows = tables[level].rows_with(Status.OK, stop=num_simulations)
        return tables[level].tensor("seed", rows)

    def run_again(self, simulator: int, theta: Tensor, seeds: Tensor) -> Tensor:
        """Run the simulator of one level at given theta and noise; nothing is stored.

        Args:
            simulator: Level of the simulator.
            theta: Parameters, shape `(n, d_theta)`.
            seeds: Seeds of the noise, shape `(n,)`.

        Returns:
            Outputs, shape `(n, *x_shape)`, NaN where a run failed.
        """
        source, options = self.source, self.source.options
        table = memory_table(0, theta.contiguous(), seeds)
        work = Work((source.simulators[simulator],), source.noise, options.timeout)
        quiet = replace(
            options,
            batch_sizes=options.batch_sizes[simulator : simulator + 1],
            costs=None,
            show_progress_bars=False,
        )
        fill((table,), (len(theta),), work, quiet)
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
            chunk_size=source.options.batch_sizes,
        )

    def _grown(self, level: int, number: int) -> LevelTable:
        """The table of a level with at least `number` simulations, old ones copied."""
        old = self._memory[level] if self._memory else None
        if old is not None and len(old) >= number:
            return old
        source, start = self.source, 0 if old is None else len(old)
        theta = draw_theta(source.prior, source.seed, level, number, start=start)
        seeds = simulation_seeds(source.seed, level, start, number)
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
                table.columns.create(name, (number, *values.shape[1:]))
            table.columns[name][:start] = values
        return table
