r"""A pilot run: the cost and the variance of each level.

A few simulations of each level give the cost :math:`C_l` of a run and the variances
:math:`V_l = \mathrm{Var}[f_l - f_{l-1}]` (`sbi_multilevel.allocation.variances`), from
which a budget is allocated (`sbi_multilevel.allocation.optimal`). At the theta and
noise of its simulations the pilot also runs the simulators further below, which costs
little compared with the simulation itself. So :math:`\mathrm{Var}[f_l - f_k]` is known
for all :math:`k < l`, which shows whether a level is useful
(`sbi_multilevel.allocation.advice`).

Variances of a loss have heavy tails: a few simulations may contribute most of them. The
bootstrap intervals show the precision of an estimate, but are themselves too short in
this case: of nominal 95 % intervals from 200 simulations about 90 % contain the
variance of chi-squared numbers, and 80 % that of log-normal ones. A wrong allocation
nevertheless costs little: with :math:`n_0 / n_1` wrong by a factor of 1.5 the variance
of the loss of two levels rises by at most 4 %. Pilots of 1 000 simulations of level 0
and 100 of each level above came within 4 to 10 % (g-and-k) and 4 to 10 % (toggle
switch) of the variance that a pilot of 20 000 and 5 000 simulations would reach, means
over 12 and over 5 other seeds, and within 31 % at worst; equal spending comes within 17
% and 12 %, equal numbers of simulations within 57 % and 27 %. Advice on levels is less
stable than allocations: if few simulations contribute most of a variance, resampling
does not account for those that are missing, and no interval accounts for the variation
between fits: with 20 simulations of the top level, ``num_folds`` of 2, 3 and 4 gave
variances that differ tenfold (tutorial on budgets). Compare several values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sbi_multilevel.allocation.advice import Advice, advise
from sbi_multilevel.allocation.measuring import Measuring
from sbi_multilevel.allocation.optimal import allocate, simulation_costs
from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.allocation.variances import Measurements, Method, Triangle
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.simulation.arguments import per_level
from sbi_multilevel.simulation.filling import RunOptions
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.utils.argument_types import check_types

_MIN_SIMULATIONS = 10
_NUM_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Pilot:
    r"""Result of a pilot.

    Args:
        simulations: Its simulations: the first ones of `simulate_multilevel` with the
            same seed, so that a longer run repeats them (or continues, with a store).
        num_simulations: Number of simulations of each level, including failed ones.
        costs: Cost :math:`C_l` of one run of each simulator.
        cost: Cost of the pilot, including its extra runs.
        measurements: Measurements of each pair of levels.
    """

    simulations: MultilevelSimulations
    num_simulations: tuple[int, ...]
    costs: tuple[float, ...]
    cost: float
    measurements: Measurements

    @property
    def difference_variances(self) -> Triangle:
        r"""For each l, :math:`\mathrm{Var}[f_l - f_k]` for each k < l, last Var f_l."""
        return self.measurements.triangle()

    @property
    def variances(self) -> tuple[float, ...]:
        r"""The variance of each term of the loss.

        :math:`V_0 = \mathrm{Var} f_0` and :math:`V_l = \mathrm{Var}[f_l - f_{l-1}]`;
        with the method "norm" up to a common factor.
        """
        table = self.difference_variances
        return tuple(row[max(level - 1, 0)] for level, row in enumerate(table))

    def intervals(self, confidence: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Bootstrap interval of each of `variances` (see the module: too short).

        Args:
            confidence: Its nominal level, in (0, 1).
        """
        check_types(Pilot.intervals, locals())
        pairs = [(level, max(level - 1, 0)) for level in range(len(self.costs))]
        return tuple(self.measurements.interval(p, confidence) for p in pairs)

    def allocate(self, budget: float) -> tuple[int, ...]:
        """Numbers of simulations for a budget, at least those of the pilot.

        Args:
            budget: Cost of all simulations, including the pilot.

        Raises:
            ValueError: If it is below the cost of the pilot.
        """
        check_types(Pilot.allocate, locals())
        pairs = float(np.dot(simulation_costs(self.costs), self.num_simulations))
        left = budget - (self.cost - pairs)  # after the extra runs
        return allocate(self.costs, self.variances, left, self.num_simulations)

    def advise(self, budget: float) -> Advice:
        """Which levels to use, and the share of resamples that agree.

        Args:
            budget: Cost of all simulations.
        """
        check_types(Pilot.advise, locals())
        advice = advise(self.costs, self.difference_variances, budget)
        rng = np.random.default_rng(0)
        agreeing = 0
        for _ in range(_NUM_RESAMPLES):
            triangle = self.measurements.resampled(rng)
            resampled = advise(self.costs, triangle, budget)
            of = {plan.levels: plan.error_variance for plan in resampled.plans}
            agreeing += of[advice.best.levels] < of[advice.full.levels]
        return replace(advice, support=agreeing / _NUM_RESAMPLES)

    def table(self) -> str:
        """Simulations, cost and variance of each level, as text."""
        name = "V" if self.measurements.method == "loss" else "V (bound)"
        lines = [f"level  simulations  cost of a run  {name:>10}  95 % interval"]
        for level, interval in enumerate(self.intervals()):
            lines.append(
                f"{level:>5}  {self.num_simulations[level]:>11}  "
                f"{self.costs[level]:>13.4g}  {self.variances[level]:>10.4g}  "
                f"{interval[0]:.4g} to {interval[1]:.4g}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\nThe pilot cost {self.cost:.6g}."


def pilot(
    simulators: Sequence[Simulator],
    prior: Any,
    num_simulations: Sequence[int],
    *,
    noise: NoiseSampler | None = None,
    seed: int = 0,
    inference: Inference | None = None,
    method: Method = "loss",
    num_folds: int = 2,
    train_options: Mapping[str, Any] | None = None,
    simulation_batch_size: int | Sequence[int] = 1_000,
    num_workers: int | None = None,
    costs: Sequence[float] | None = None,
    store: str | os.PathLike | None = None,
    timeout: float | None = None,
    max_failure_share: float = 0.2,
    show_progress_bars: bool = True,
) -> Pilot:
    r"""Run a few simulations of each level, and estimate its cost and variance.

    The simulations are those of `simulate_multilevel` with the same seed. With a store,
    a later `simulate_multilevel(..., store=store)` continues from them.

    Args:
        simulators: One per level, the lowest fidelity first.
        prior: Prior over theta.
        num_simulations: Number of simulations of each level, at least 10 each; about
            1 000 of level 0 and 100 of each level above are a good start.
        noise: Noise sampler, as of `simulate_multilevel`.
        seed: Root seed of simulations and fits, an integer >= 0.
        inference: The trainer whose loss is :math:`f_l`: one without simulations, e.g.
            `MLNLE(prior, density_estimator="nsf")`; a function of the prior that
            returns one; a trained one, which is used without a fit; `None` for NPE. It
            may be NPE, NLE or a vector field, of sbi or of this package, and is copied.
        method: `"loss"`, the variance of :math:`f_l - f_{l-1}` under a quick fit, or
            `"norm"`, the bound by fourth moments, which needs no fit but a second run
            of every simulation.
        num_folds: Number of quick fits, each evaluated on simulations that it was not
            fitted to; at least 2, and fewer than the simulations of any level.
        train_options: Arguments of `train` of the quick fits.
        simulation_batch_size: As of `simulate_multilevel`.
        num_workers: As of `simulate_multilevel`.
        costs: Cost of one run of each simulator; the measured seconds by default.
        store: As of `simulate_multilevel`.
        timeout: As of `simulate_multilevel`.
        max_failure_share: As of `simulate_multilevel`.
        show_progress_bars: Whether to show one progress bar per level.

    Returns:
        Simulations, costs and variances.

    Raises:
        ValueError: If the arguments do not fit.
        TooManyFailures: If a larger share of simulations fails than allowed.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import pilot
        >>> def coarse(theta, noise):
        ...     return theta + noise
        >>> def fine(theta, noise):
        ...     return theta + 0.1 * theta**3 + noise
        >>> found = pilot(
        ...     [coarse, fine],
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     num_simulations=(200, 50),
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     costs=(1.0, 10.0),
        ...     train_options={"max_num_epochs": 2},
        ...     show_progress_bars=False,
        ... )
        >>> found.cost
        750.0
        >>> numbers = found.allocate(budget=2_000)
    """
    check_types(pilot, locals())
    sizes = per_level(simulation_batch_size, len(simulators))
    options = RunOptions(
        sizes, num_workers, max_failure_share, show_progress_bars, timeout, costs
    )
    check_numbers("num_simulations", num_simulations, len(simulators))
    growing = GrowingSimulations(tuple(simulators), prior, noise, seed, store, options)
    measuring = Measuring(
        growing, num_simulations, inference, method, num_folds, train_options or {}
    )
    return estimated(measuring, measuring.num_simulations)


def check_numbers(name: str, num_simulations: Sequence[int], num_levels: int) -> None:
    """Raise unless there are enough simulations of each level."""
    least = min(num_simulations, default=0)
    if len(num_simulations) != num_levels or least < _MIN_SIMULATIONS:
        raise ValueError(
            f"{name}={tuple(num_simulations)} must hold a number of simulations >= "
            f"{_MIN_SIMULATIONS} for each of the {num_levels} simulators."
        )


def estimated(
    measuring: Measuring,
    num_simulations: tuple[int, ...],
    known: Measurements | None = None,
) -> Pilot:
    """Simulations with cost and measurements, which are made unless they are known."""
    simulations, costs = measuring.simulate(num_simulations)
    cost = measuring.cost(num_simulations, costs)
    if known is None:
        known = measuring.measure(simulations)
    return Pilot(simulations, num_simulations, costs, cost, known)
