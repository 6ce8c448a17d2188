"""What the methods of the benchmark are, and what they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from torch import Tensor

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel_benchmarks.tasks import BenchmarkTask, PosteriorTask


@dataclass(frozen=True)
class Fit:
    """What a method returns.

    Args:
        evaluated: What the task's `evaluate` is given: a posterior for a `PosteriorTask`,
            a density estimator for the others.
        trained_on: The x of the highest level it saw, shape `(n, *x_shape)`.
        num_epochs: Epochs trained, in all stages; the mean over members.
        seconds_before: Seconds of its training that an earlier run has spent.
        runs: Runs of the simulator of each level that it took; where each observation
            has simulations of its own, those for one. `None` for all simulations it
            was given, both sides of pairs.
    """

    evaluated: Any
    trained_on: Tensor
    num_epochs: int
    seconds_before: float = 0.0
    runs: tuple[int, ...] | None = None


Method = Callable[[BenchmarkTask, MultilevelSimulations, int], Fit]


def runs_of(simulations: MultilevelSimulations) -> tuple[int, ...]:
    """Runs of the simulator of each level behind all rows: a pair is one of each."""
    rows = [len(level) for level in simulations]
    pairs = [len(level) * level.is_paired for level in simulations]
    return tuple(n + above for n, above in zip(rows, (*pairs[1:], 0)))


def only(level: int, num_runs: int, task: BenchmarkTask) -> tuple[int, ...]:
    """Runs of the simulator of each level, if they are of one only.

    Args:
        level: The level; -1 for the highest.
        num_runs: Its runs.
        task: The task, which says how many levels there are.
    """
    runs = [0] * len(task.num_simulations)
    runs[level] = num_runs
    return tuple(runs)


def evaluated(task: BenchmarkTask, estimators: Sequence[Any]) -> Any:
    """What the task's `evaluate` takes, of one estimator or the members of an ensemble.

    Args:
        task: The task.
        estimators: Trained density estimators.
    """
    estimators = [estimator.eval() for estimator in estimators]
    if not isinstance(task, PosteriorTask):
        return estimators[0] if len(estimators) == 1 else Mixture(tuple(estimators))
    posteriors = [DirectPosterior(each, task.prior) for each in estimators]
    return posteriors[0] if len(posteriors) == 1 else EnsemblePosterior(posteriors)


@dataclass(frozen=True)
class Mixture:
    """Density estimators as one, with equal weights."""

    members: tuple[Any, ...]

    def log_prob(self, input: Tensor, condition: Tensor) -> Tensor:
        """Log density; shapes as of the members."""
        values = torch.stack([m.log_prob(input, condition) for m in self.members])
        return torch.logsumexp(values, dim=0) - math.log(len(self.members))

    def sample(self, sample_shape: tuple[int, ...], condition: Tensor) -> Tensor:
        """Samples; shapes as of the members."""
        (n,) = sample_shape
        drawn = torch.stack([m.sample((n,), condition) for m in self.members])
        return drawn[torch.randint(len(self.members), (n,)), torch.arange(n)]
