"""Runs the simulators of all levels and pairs their outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sbi.utils.user_input_checks import process_prior
from torch import Tensor
from tqdm.auto import tqdm

from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    draw_noise,
    draw_theta,
    row_seeds,
    seeded,
)
from sbi_multilevel.simulations import LevelSimulations, MultilevelSimulations


@dataclass(frozen=True, eq=False)
class Task:
    """A batch of rows of one level, ready to run anywhere.

    Args:
        level: Level of the rows.
        rows: First row and one past the last.
        theta: Their parameters, shape `(n, d_theta)`.
        seeds: Their seeds, shape `(n,)`.
    """

    level: int
    rows: tuple[int, int]
    theta: Tensor
    seeds: Tensor


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a task returns: outputs and the seconds spent in each simulator."""

    x: Tensor
    x_coarse: Tensor | None
    seconds: float
    seconds_coarse: float


def simulate_multilevel(
    simulators: Sequence[Simulator],
    prior: Any,
    num_simulations: Sequence[int],
    *,
    noise: NoiseSampler | None = None,
    seed: int = 0,
    simulation_batch_size: int = 1_000,
    num_workers: int = 1,
    costs: Sequence[float] | None = None,
    show_progress_bars: bool = True,
) -> MultilevelSimulations:
    r"""Simulate all levels, each row above level 0 paired with the level below.

    Row i of level l is :math:`\theta_i \sim p(\theta)`, :math:`x = G_l(\theta_i, u_i)`
    and, for :math:`l \ge 1`, :math:`x_\mathrm{coarse} = G_{l-1}(\theta_i, u_i)` with
    the same noise. Theta and noise depend on `seed`, the level and the row alone.

    Args:
        simulators: One a level, cheapest first. Each takes `theta`, shape
            `(n, d_theta)`, and the noise of the rows, and returns x, shape
            `(n, *x_shape)`. All its randomness must come from the noise. For a
            simulator of one row at a time, see `one_at_a_time`.
        prior: Prior over theta, anything that sbi takes.
        num_simulations: Rows of each level, :math:`(n_0, \dots, n_L)`, at least 2 each.
        noise: Function `(n, generator)` that draws the noise of `n` rows, a tensor (or
            tuple of tensors) with leading dimension n. By default the noise is one
            int64 seed a row.
        seed: Root seed, an integer >= 0.
        simulation_batch_size: Rows that a simulator is given at once.
        num_workers: Processes to run in parallel (joblib). Any joblib backend set by
            `joblib.parallel_config` is used.
        costs: Cost :math:`C_l` of a run of each simulator. By default the seconds
            measured, averaged over all runs.
        show_progress_bars: Whether to show one progress bar a level.

    Returns:
        The rows of all levels, with costs.

    Raises:
        ValueError: If the arguments do not fit, or a simulator returns x of a wrong
            length.

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
    _check_arguments(simulators, num_simulations, seed, simulation_batch_size)
    with seeded(seed):  # sbi draws from the prior to check it
        prior, *_ = process_prior(prior)
    levels, seconds, runs = [], np.zeros(len(simulators)), np.zeros(len(simulators))
    for level, num_rows in enumerate(num_simulations):
        tasks = list(_tasks(prior, seed, level, num_rows, simulation_batch_size))
        pair = simulators[level], simulators[level - 1] if level > 0 else None
        with tqdm(
            total=num_rows, desc=f"Level {level}", disable=not show_progress_bars
        ) as bar:
            results = []
            for result in _run_all(tasks, pair, noise, num_workers):
                results.append(result)
                bar.update(len(result.x))
        seconds[level] += sum(result.seconds for result in results)
        runs[level] += num_rows
        if level > 0:
            seconds[level - 1] += sum(result.seconds_coarse for result in results)
            runs[level - 1] += num_rows
        levels.append(_rows(level, tasks, results))
    measured = costs if costs is not None else (seconds / runs).tolist()
    return MultilevelSimulations(tuple(levels), tuple(measured))


def run_task(
    task: Task,
    simulators: tuple[Simulator, Simulator | None],
    noise: NoiseSampler | None,
) -> TaskResult:
    """Run one batch: the simulator of its level, and the one below on the same noise.

    Args:
        task: The batch.
        simulators: Those of the level and of the level below (`None` at level 0).
        noise: Noise sampler, or `None` for seeds.
    """
    fine, coarse = simulators
    x, seconds = _timed(fine, task, task.level, noise)
    if coarse is None:
        return TaskResult(x, None, seconds, 0.0)
    x_coarse, seconds_coarse = _timed(coarse, task, task.level - 1, noise)
    return TaskResult(x, x_coarse, seconds, seconds_coarse)


def _timed(
    simulator: Simulator, task: Task, level: int, noise: NoiseSampler | None
) -> tuple[Tensor, float]:
    # drawn anew for each simulator: one that writes to its noise spoils no other
    drawn = draw_noise(noise, task.seeds.clone())
    start = time.perf_counter()
    x = simulator(task.theta.clone(), drawn)
    seconds = time.perf_counter() - start
    x = torch.as_tensor(x, dtype=torch.float32)
    if x.ndim < 2 or x.shape[0] != len(task.theta):
        raise ValueError(
            f"The simulator of level {level} returned x of shape {tuple(x.shape)} for "
            f"{len(task.theta)} rows of theta. Return shape (n, *x_shape) with n = "
            f"{len(task.theta)}; a simulator of one row at a time can be wrapped by "
            "`one_at_a_time`."
        )
    return x.detach(), seconds


def _tasks(
    prior: Any, seed: int, level: int, num_rows: int, batch_size: int
) -> Iterator[Task]:
    theta = draw_theta(prior, seed, level, num_rows)
    for start in range(0, num_rows, batch_size):
        stop = min(start + batch_size, num_rows)
        seeds = row_seeds(seed, level, start, stop)
        yield Task(level, (start, stop), theta[start:stop], seeds)


def _run_all(
    tasks: Sequence[Task],
    simulators: tuple[Simulator, Simulator | None],
    noise: NoiseSampler | None,
    num_workers: int,
) -> Iterable[TaskResult]:
    if num_workers == 1:
        return (run_task(task, simulators, noise) for task in tasks)
    parallel = Parallel(n_jobs=num_workers, return_as="generator")
    return parallel(delayed(run_task)(task, simulators, noise) for task in tasks)


def _rows(
    level: int, tasks: Sequence[Task], results: Sequence[TaskResult]
) -> LevelSimulations:
    coarse = [result.x_coarse for result in results if result.x_coarse is not None]
    return LevelSimulations(
        level,
        torch.cat([task.theta for task in tasks]),
        torch.cat([result.x for result in results]),
        torch.cat(coarse) if coarse else None,
    )


def _check_arguments(
    simulators: Sequence[Simulator],
    num_simulations: Sequence[int],
    seed: int,
    batch_size: int,
) -> None:
    if len(simulators) != len(num_simulations) or not simulators:
        raise ValueError(
            f"simulators has {len(simulators)} levels, num_simulations "
            f"{len(num_simulations)}. Pass one simulator and one number a level, the "
            "cheapest first."
        )
    if min(num_simulations) < 2:
        raise ValueError(
            f"num_simulations is {tuple(num_simulations)}, but each level needs at "
            "least 2 rows. Leave a level out to do without it."
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, but is {seed!r}.")
    if batch_size < 1:
        raise ValueError(f"simulation_batch_size must be >= 1, but is {batch_size}.")
