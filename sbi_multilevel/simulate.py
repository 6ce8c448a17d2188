"""Runs the simulators of all levels and pairs their outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.arguments import (
    CHECKED_ALONE,
    check_simulators,
    per_level,
    processed_prior,
    simulations_per_level,
)
from sbi_multilevel.simulation.filling import RunOptions, fill
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_theta,
    simulation_seeds,
)
from sbi_multilevel.simulation.reading import measured_costs, simulations_of
from sbi_multilevel.simulation.table import LevelTable, memory_table
from sbi_multilevel.simulation.tasks import Status, Work
from sbi_multilevel.storage import SimulationStore
from sbi_multilevel.utils.argument_types import check_types


def simulate_multilevel(
    simulators: Sequence[Simulator],
    prior: Any,
    num_simulations: Sequence[int],
    *,
    noise: NoiseSampler | None = None,
    seed: int = 0,
    simulation_batch_size: int | Sequence[int] = 1_000,
    num_workers: int | None = None,
    costs: Sequence[float] | None = None,
    store: str | os.PathLike | None = None,
    retry: str | Sequence[str] = (),
    timeout: float | None = None,
    max_failure_share: float = 0.2,
    show_progress_bars: bool = True,
) -> MultilevelSimulations:
    r"""Simulate all levels; each simulation above level 0 is a pair with the one below.

    Simulation i of level l is :math:`\theta_i \sim p(\theta)`, :math:`x = G_l(\theta_i,
    u_i)` and, for :math:`l \ge 1`, :math:`x_\mathrm{coarse} = G_{l-1}(\theta_i, u_i)`
    with the same noise. Theta and noise depend only on `seed`, the level and i.

    A failed simulation (an exception, a wrong shape, a dead worker, a `timeout`) does
    not stop the run: it is left out, with a warning that gives the reason. Simulations
    must not depend on the other simulations of their batch. If a batch fails as a
    whole, or its x has as many features as the batch has simulations, one simulation is
    repeated alone and compared.

    Args:
        simulators: One per level, the lowest fidelity first. Each takes `theta`, shape
            `(n, d_theta)`, and the noise of n simulations, and returns x, shape
            `(n, *x_shape)`. All its randomness must come from the noise. For a
            simulator of one theta at a time, see `vectorize_simulator`.
        prior: Prior over theta, anything that sbi takes.
        num_simulations: Number of simulations of each level, :math:`(n_0, \dots, n_L)`,
            at least 2 each.
        noise: Function `(n, generator)` that draws the noise of `n` simulations, a
            tensor (or tuple of tensors) with leading dimension n. By default the noise
            is one int64 seed per simulation, shape `(n,)`, for
            `np.random.default_rng(seed)` (`np.random.seed` takes only 32 bits).
        seed: Root seed, an integer >= 0.
        simulation_batch_size: Simulations per call of a simulator, one number for all
            levels or one per level. A batch is also the unit of storage and of parallel
            work: use 1 if a simulation takes minutes.
        num_workers: Number of parallel processes (joblib). `None` leaves the number and
            the backend to `joblib.parallel_config`, and is 1 without it.
        costs: Cost :math:`C_l` of one run of each simulator. By default the measured
            seconds, averaged over all runs.
        store: Folder to which simulations are written as they finish
            (`SimulationStore`). The same call resumes an interrupted run; a call with
            larger numbers adds simulations. Without it, simulations are kept in memory.
        retry: Stored simulations to run again, with the same theta and noise: any of
            "failed", "timed out", "invalid".
        timeout: Seconds that one call of a simulator may take. A batch that takes
            longer is halved until each simulation that hangs is alone. In threads, such
            as those of Dask, a call that takes longer cannot be ended and continues to
            use its core.
        max_failure_share: Share of failed simulations of a level, not counting those
            with NaN, above which the run stops.
        show_progress_bars: Whether to show one progress bar per level.

    Returns:
        The simulations of all levels, with costs.

    Raises:
        ValueError: If the arguments do not fit, the store belongs to another run, a
            simulator mixes the simulations of a batch, or a level has fewer than two
            valid simulations.
        TooManyFailures: If a larger share of simulations fails than allowed.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> def coarse(theta, noise):
        ...     return theta + noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**3 + noise
        >>> sims = simulate_multilevel(
        ...     [coarse, fine],
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     num_simulations=(100, 10),
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> sims.num_simulations
        (100, 10)
    """
    check_types(simulate_multilevel, locals(), but=CHECKED_ALONE)
    check_simulators(simulators)
    num_simulations = simulations_per_level(num_simulations, least=2)
    if len(simulators) != len(num_simulations):
        raise ValueError(
            f"simulators has {len(simulators)} levels, num_simulations "
            f"{len(num_simulations)}. Pass one simulator and one number per level, the "
            "lowest fidelity first."
        )
    if retry and store is None:
        raise ValueError(
            f"retry={retry!r} needs the store of an earlier run. Pass store=path."
        )
    sizes = per_level(simulation_batch_size, len(simulators))
    options = RunOptions(
        sizes, num_workers, max_failure_share, show_progress_bars, timeout, costs
    )
    growing = GrowingSimulations(tuple(simulators), prior, noise, seed, store, options)
    return growing.simulate(num_simulations, retry)


@dataclass(eq=False)
class GrowingSimulations:
    """Simulations of all levels, in a store or in memory, that can be extended.

    Existing simulations are not repeated. The simulators can also be run again at given
    theta and noise, e.g. those of levels further below, or at slightly different theta;
    these outputs stay in memory. Arguments are those of `simulate_multilevel`.
    """

    simulators: tuple[Simulator, ...]
    prior: Any
    noise: NoiseSampler | None
    seed: int
    store: str | os.PathLike | None
    options: RunOptions

    def __post_init__(self) -> None:
        self._work = Work(self.simulators, self.noise, self.options.timeout)
        self.prior = processed_prior(self.prior, self.seed)
        self._memory: tuple[LevelTable, ...] = ()

    def simulate(
        self, num_simulations: Sequence[int], retry: str | Sequence[str] = ()
    ) -> MultilevelSimulations:
        """The first simulations of each level; only new ones are run."""
        options = self.options
        if self.store is not None:
            store = self._stored(num_simulations)
            store.run_pending(self.simulators, options, num_simulations, retry)
            return store.to_simulations(num_simulations, costs=options.costs)
        if not self._memory:
            self._memory = tuple(
                memory_table(
                    level,
                    draw_theta(self.prior, self.seed, level, number),
                    simulation_seeds(self.seed, level, 0, number),
                )
                for level, number in enumerate(num_simulations)
            )
        for table, number in zip(self._memory, num_simulations):
            table.grow(number, self.prior, self.seed)
        fill(self._memory, num_simulations, self._work, options)
        costs = options.costs or measured_costs(self._memory)
        return simulations_of(self._memory, num_simulations, costs)

    def existing(self) -> tuple[int, ...]:
        """Number of simulations of each level up to the last existing one."""
        exists = self.store is not None and os.path.exists(self.store)
        tables = self._tables() if exists else self._memory
        done = [s for s in Status if s is not Status.PENDING]
        counts = [int(t.rows_with(*done).max(initial=-1)) + 1 for t in tables]
        return tuple(counts) or (0,) * len(self.simulators)

    def seeds(self, level: int, num_simulations: int) -> Tensor:
        """Seeds of the valid ones of the first `num_simulations` of a level."""
        table = self._tables()[level]
        return table.tensor("seed", table.rows_with(Status.OK, stop=num_simulations))

    def run_again(self, simulator: int, theta: Tensor, seeds: Tensor) -> Tensor:
        """Outputs of the simulator of one level at given theta and noise.

        Shape `(n, *x_shape)`, NaN where a run failed. Nothing is stored.
        """
        options = self.options
        table = memory_table(0, theta.contiguous(), seeds)
        work = Work((self.simulators[simulator],), self.noise, options.timeout)
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

    def _tables(self) -> tuple[LevelTable, ...]:
        if self.store is None:
            return self._memory
        return self._stored((0,) * len(self.simulators)).tables

    def _stored(self, num_simulations: Sequence[int]) -> SimulationStore:
        assert self.store is not None
        return SimulationStore.create(
            self.store,
            self.prior,
            num_simulations,
            noise=self.noise,
            seed=self.seed,
            chunk_size=self.options.batch_sizes,
        )
