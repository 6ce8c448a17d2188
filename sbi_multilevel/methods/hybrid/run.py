"""The state of a hybrid training: its arguments, and the networks that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sbi.neural_nets.estimators.base import ConditionalEstimator

from sbi_multilevel.training.history import TrainingRun, training_runs


@dataclass(frozen=True, eq=False)
class Component:
    """Estimators that share a weight in the mixture.

    Args:
        estimators: The estimators; none for the prior.
        losses: Held-out loss of each high-fidelity simulation, shape `(n,)`.
        num_epochs: Number of epochs, the mean over estimators.
        runs: Their trainings, and those of networks that they started from, by name.
    """

    estimators: list[ConditionalEstimator]
    losses: np.ndarray
    num_epochs: float = 0.0
    runs: Mapping[str, tuple[TrainingRun, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trained:
    """What is kept of a trainer: its simulations are not.

    Args:
        network: The estimator.
        summary: `summary` of the trainer.
    """

    network: ConditionalEstimator
    summary: Mapping[str, Any]

    @property
    def last_run(self) -> TrainingRun:
        """Its last training."""
        return training_runs(self.summary)[-1]

    @property
    def held_out_loss(self) -> float:
        """The held-out loss of its weights."""
        return self.last_run.best_validation_loss


# trained networks by what they are for, and by member
Finished = dict[str, dict[int, Trained]]


@dataclass(frozen=True, eq=False)
class HybridRun:
    """A training: what it was called with, and what is finished.

    Args:
        seed: Seed of folds, maps and networks.
        options: Arguments of `train` for the members.
        num_simulations: Number of simulations of each level.
        finished: Networks of a training that has not ended.
        losses: Held-out loss of each high-fidelity simulation by component, after the
            training has ended.
    """

    seed: int
    options: Mapping[str, Any]
    num_simulations: tuple[int, ...]
    finished: Finished = field(default_factory=dict)
    losses: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether the training has ended."""
        return bool(self.losses)
