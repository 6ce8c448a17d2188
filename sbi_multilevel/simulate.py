"""Runs the simulators of all levels and pairs their outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulation.accounting import measured_costs
from sbi_multilevel.simulation.arguments import (
    CHECKED_ALONE,
    check_num_costs,
    check_seed,
    per_level,
    processed_prior,
    simulations_per_level,
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
from sbi_multilevel.simulation.table import memory_table
from sbi_multilevel.simulation.tasks import Work
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
    r"""Simulate all levels, each row above level 0 paired with the level below.

    Row i of level l is :math:`\theta_i \sim p(\theta)`, :math:`x = G_l(\theta_i, u_i)`
    and, for :math:`l \ge 1`, :math:`x_\mathrm{coarse} = G_{l-1}(\theta_i, u_i)` with
    the same noise. Theta and noise depend on `seed`, the level and the row alone.

    A row that fails (an exception, a wrong shape, a dead worker, a `timeout`) stops
    nothing: it is left out, with a warning that says why. Rows must not depend on the
    others of their batch; of a batch that fails as a whole, or whose x has as many
    features as rows, one row is simulated again, alone, and must be the same.

    Args:
        simulators: One a level, cheapest first. Each takes `theta`, shape
            `(n, d_theta)`, and the noise of the rows, and returns x, shape
            `(n, *x_shape)`. All its randomness must come from the noise. For a
            simulator of one row at a time, see `vectorize_simulator`.
        prior: Prior over theta, anything that sbi takes.
        num_simulations: Rows of each level, :math:`(n_0, \dots, n_L)`, at least 2 each.
        noise: Function `(n, generator)` that draws the noise of `n` rows, a tensor (or
            tuple of tensors) with leading dimension n. By default the noise is one
            int64 seed a row, shape `(n,)`, for `np.random.default_rng(seed)`
            (`np.random.seed` takes 32 bits only).
        seed: Root seed, an integer >= 0.
        simulation_batch_size: Rows that a simulator is given at once, for all levels or
            a number each. They are also the unit of what is stored and what runs in
            parallel: 1 where a simulation takes minutes.
        num_workers: Processes to run in parallel (joblib). `None` leaves it, and the
            backend, to `joblib.parallel_config`; 1 without one.
        costs: Cost :math:`C_l` of a run of each simulator. By default the seconds
            measured, averaged over all runs.
        store: Folder where the rows are written as they come (`SimulationStore`). The
            same call goes on where an earlier one was stopped; one with more rows adds
            to it. Without, rows are kept in memory.
        retry: Rows of the store to run again, with the same theta and noise: any of
            "failed", "timed out", "invalid".
        timeout: Seconds that one call of a simulator may take. A batch that takes
            longer is halved until the rows that hang are alone. In threads, as of Dask,
            a call beyond it is left behind and goes on using its core.
        max_failure_share: Share of failed rows of a level, those with NaN not counted,
            above which the run stops.
        show_progress_bars: Whether to show one progress bar a level.

    Returns:
        The rows of all levels, with costs.

    Raises:
        ValueError: If the arguments do not fit, the store belongs to another run, rows
            of a batch are mixed up, or a level has fewer than two valid rows.
        TooManyFailures: If a larger share of rows fails than is allowed.

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
    work = Work(simulators, noise, timeout)
    num_simulations = simulations_per_level(num_simulations, least=2)
    _check_arguments(simulators, num_simulations, seed)
    check_num_costs(costs, len(simulators))
    sizes = per_level(simulation_batch_size, len(simulators))
    if store is not None:
        stored = SimulationStore.create(
            store, prior, num_simulations, noise=noise, seed=seed, chunk_rows=sizes
        ).run(
            simulators,
            num_simulations=num_simulations,
            simulation_batch_size=sizes,
            num_workers=num_workers,
            retry=retry,
            timeout=timeout,
            max_failure_share=max_failure_share,
            costs=costs,
            show_progress_bars=show_progress_bars,
        )
        return stored.to_simulations(num_simulations, costs=costs)
    if retry:
        raise ValueError(
            f"retry={retry!r} needs the store of an earlier run. Pass store=path."
        )
    with seeded(seed):  # sbi draws from the prior to check it
        prior = processed_prior(prior)
    tables = tuple(
        memory_table(
            level, draw_theta(prior, seed, level, n), row_seeds(seed, level, 0, n)
        )
        for level, n in enumerate(num_simulations)
    )
    effort = Effort(sizes, num_workers, max_failure_share, show_progress_bars)
    fill(tables, num_simulations, work, effort, costs)
    chosen = tuple(costs) if costs is not None else measured_costs(tables)
    return simulations_of(tables, num_simulations, chosen)


def _check_arguments(
    simulators: Sequence[Simulator],
    num_simulations: Sequence[int],
    seed: int,
) -> None:
    if len(simulators) != len(num_simulations) or not simulators:
        raise ValueError(
            f"simulators has {len(simulators)} levels, num_simulations "
            f"{len(num_simulations)}. Pass one simulator and one number a level, the "
            "cheapest first."
        )
    check_seed(seed)
