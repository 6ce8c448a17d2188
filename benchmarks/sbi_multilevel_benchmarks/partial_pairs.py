r"""Pairs whose sides share a part of their noise, and simulations without pairs.

A pair :math:`(\theta, G_l(\theta, u), G_{l-1}(\theta, u'))` usually has :math:`u' = u`.
Here each component of the noise is shared with probability :math:`\rho`,

.. math:: u'_i = \begin{cases} u_i & \text{with probability } \rho, \\
    \text{a new draw} & \text{otherwise,} \end{cases}

which leaves the distribution of :math:`u'` as it is if components are independent, be
they uniform, normal or seeds: each side of a pair has the same distribution at each
:math:`\rho`. With :math:`\rho = 1` the simulations are those of the task, with
:math:`\rho = 0` the sides are independent given :math:`\theta`. Theta and the output of
each level are the same for all :math:`\rho`, and what is shared for one is shared for
all larger ones.

*Unpaired.* If the coarse side also has a :math:`\theta` of its own, the correction is a
difference of two means, :math:`\frac1{n_l} \sum f_l - \frac1{n_l} \sum f_{l-1}`. It is
unbiased, with variance :math:`(\mathrm{Var} f_l + \mathrm{Var} f_{l-1}) / n_l` in place
of :math:`\mathrm{Var}[f_l - f_{l-1}] / n_l`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sbi_multilevel import (
    MLNLE,
    MLNPE,
    LevelSimulations,
    MultilevelConfig,
    MultilevelSimulations,
    simulate_multilevel,
)
from sbi_multilevel.training.schedule import Stage, Term
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.fit import Fit, evaluated
from sbi_multilevel_benchmarks.task import BenchmarkTask


@dataclass(frozen=True)
class PairNoise:
    """Noise of both sides of pairs.

    Args:
        noise: Noise sampler of one side, whose components are independent.
        share: Probability that a component is the same on both sides.
    """

    noise: Callable[[int, torch.Generator], Any]
    share: float

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The parts of the noise of the fine side, and those of the coarse side."""
        fine, new = (_parts(self.noise(n, generator)) for _ in range(2))
        coarse = []
        for ours, theirs in zip(fine, new):
            draws = torch.rand(ours.shape, generator=generator)
            coarse.append(torch.where(draws < self.share, ours, theirs))
        return *fine, *coarse


@dataclass(frozen=True)
class OneSide:
    """A simulator that takes the noise of both sides of a pair and uses one.

    Args:
        simulator: Function of theta and the noise of one side.
        coarse: Whether the noise is that of the coarse side.
        is_tensor: Whether the noise of one side is a tensor, not a tuple.
    """

    simulator: Callable
    coarse: bool
    is_tensor: bool

    def __call__(self, theta: Tensor, noise: Sequence[Tensor]) -> Tensor:
        half = len(noise) // 2
        parts = tuple(noise[half:] if self.coarse else noise[:half])
        return self.simulator(theta, parts[0] if self.is_tensor else parts)


def _parts(noise: Any) -> tuple[Tensor, ...]:
    parts = (noise,) if isinstance(noise, Tensor) else tuple(noise)
    return tuple(torch.as_tensor(part) for part in parts)


def check_overlap(task: BenchmarkTask, share: float) -> None:
    """Raise if pairs of a task cannot share a part of their noise.

    Raises:
        ValueError: If the share is not in [0, 1], or the task reads its simulations
            from a file or makes pairs of its own.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be in [0, 1]. Pass 0.5 for 50 %.")
    if type(task).simulate is not BenchmarkTask.simulate:
        raise ValueError(
            f"task={task.name!r} has pairs of its own, whose noise cannot be chosen. "
            "Choose a task whose simulators take theta and noise, e.g. 'g-and-k'."
        )


def simulate_overlapping(
    task: BenchmarkTask, num_simulations: tuple[int, ...], seed: int, share: float
) -> MultilevelSimulations:
    """Simulations of a task whose pairs share a part of their noise.

    Args:
        task: A task with simulators.
        num_simulations: Number of simulations of each level.
        seed: Root seed; with `share=1` the simulations are those of `task.simulate`.
        share: Probability that a component of the noise is shared, in [0, 1].

    Raises:
        ValueError: See `check_overlap`; also if some simulations are invalid.
    """
    check_overlap(task, share)
    is_tensor = isinstance(task.noise(1, torch.Generator().manual_seed(0)), Tensor)
    few_low = (2, *num_simulations[1:])
    # one run for each side, with the same theta and noise; few of level 0 in the second
    fine, coarse = (
        simulate_multilevel(
            [OneSide(each, side, is_tensor) for each in task.simulators],
            task.prior,
            counts,
            noise=PairNoise(task.noise, share),
            seed=seed,
            costs=task.costs,
            show_progress_bars=False,
        )
        for side, counts in ((False, num_simulations), (True, few_low))
    )
    levels = [fine[0]]
    for ours, theirs in zip(fine.levels[1:], coarse.levels[1:]):
        if not torch.equal(ours.theta, theirs.theta):
            raise ValueError(
                f"task={task.name!r} has invalid simulations at level {ours.level}, so "
                "that sides of pairs do not match. Choose a task without."
            )
        pair = ours.theta, ours.x, theirs.x_coarse
        levels.append(LevelSimulations(ours.level, *pair))
    return MultilevelSimulations(tuple(levels), task.costs)


class UnpairedConfig(MultilevelConfig):
    """The multilevel loss on unpaired simulations: differences of means.

    It takes the simulations of level l as level 2l, and those of level l - 1 that are
    subtracted from them, at theta and noise of their own, as level 2l - 1.
    """

    needs_pairs: ClassVar[bool] = False

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """One stage: base, then fine and coarse of each level."""
        terms = [Term(0)]
        for level in range(2, num_levels, 2):
            # without x_coarse, a coarse term is a mean over x
            terms += [Term(level), Term(level - 1, weight=-1.0, coarse=True)]
        return (Stage(tuple(terms), self.adjustment, is_warm=is_pretrained),)


def simulate_unpaired(
    task: BenchmarkTask, num_simulations: tuple[int, ...], seed: int
) -> MultilevelSimulations:
    """Simulations of a task as `UnpairedConfig` takes them; arguments as above."""
    fine = simulate_overlapping(task, num_simulations, seed, 1.0)
    coarse = simulate_overlapping(task, num_simulations, seed + 500_000, 1.0)
    levels = [fine[0]]
    for ours, theirs in zip(fine.levels[1:], coarse.levels[1:]):
        assert theirs.x_coarse is not None
        place = 2 * ours.level
        levels.append(LevelSimulations(place - 1, theirs.theta, theirs.x_coarse))
        levels.append(LevelSimulations(place, ours.theta, ours.x))
    return MultilevelSimulations(tuple(levels))


def fit_unpaired(
    task: BenchmarkTask, num_simulations: tuple[int, ...], seed: int
) -> Fit:
    """Train `ml` on unpaired simulations."""
    simulations = simulate_unpaired(task, num_simulations, seed)
    torch.manual_seed(seed)
    trainer = (MLNPE if task.family == "npe" else MLNLE)(
        task.prior,
        density_estimator=task.build_network(),
        config=UnpairedConfig(stopping="telescoping"),
        tracker=SilentTracker(),
        show_progress_bars=False,
    ).append_multilevel_simulations(simulations)
    estimator = trainer.train()
    above = (*num_simulations[1:], 0)
    runs = tuple(n + more for n, more in zip(num_simulations, above))
    epochs = trainer.summary["epochs_trained"][-1]
    return Fit(evaluated(task, [estimator]), simulations[-1].x, epochs, runs=runs)
