"""The state of a hybrid training: its arguments, and the networks that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sbi.neural_nets.estimators.base import ConditionalEstimator
from tqdm.auto import tqdm

from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_members
from sbi_multilevel.training.history import TrainingRun, training_runs

if TYPE_CHECKING:
    from sbi_multilevel.training.trainer import MultilevelTrainer


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


@dataclass(frozen=True, eq=False)
class Group:
    """Networks of one kind that are to be trained.

    Args:
        name: What they are.
        trainers: Their trainers.
        folds: What each holds out, and its seed.
        runs: Trainings of networks that they start from, by name.
    """

    name: str
    trainers: Sequence[MultilevelTrainer]
    folds: Sequence[Fold]
    runs: Mapping[str, tuple[TrainingRun, ...]] = field(default_factory=dict)


# trained networks by group, and by member
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

    def train(self, bar: tqdm, *groups: Group) -> list[list[Trained]]:
        """Train networks that an interrupted training has not finished.

        Those of all groups are trained at the same time, so that no worker waits.

        Args:
            bar: Progress bar that moves with every trained network.
            *groups: The networks.

        Returns:
            Those of each group.
        """
        finished = [self.finished.setdefault(group.name, {}) for group in groups]
        missing = [
            (number, index)
            for number, group in enumerate(groups)
            for index in range(len(group.trainers))
            if index not in finished[number]
        ]
        if any(finished):
            bar.update(sum(map(len, finished)))

        def describe(position: int) -> None:
            if position < len(missing):
                number, _ = missing[position]
                bar.set_description(f"Training {groups[number].name}")

        def keep(position: int, member: MultilevelTrainer) -> None:
            number, index = missing[position]
            network = member._neural_net.eval()
            finished[number][index] = Trained(network, member.summary)
            bar.update()
            describe(position + 1)

        describe(0)
        train_members(
            [groups[number].trainers[index] for number, index in missing],
            [groups[number].folds[index] for number, index in missing],
            None,
            self.options,
            keep,
        )
        return [
            [of_group[index] for index in range(len(group.trainers))]
            for group, of_group in zip(groups, finished)
        ]
