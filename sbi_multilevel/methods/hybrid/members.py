"""The members of a hybrid ensemble: trainers like the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor
from tqdm.auto import tqdm

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.pool import LevelStep
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_members
from sbi_multilevel.training.history import TrainingRun, training_runs
from sbi_multilevel.training.tracking import SilentTracker

if TYPE_CHECKING:
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
    from sbi_multilevel.training.trainer import MultilevelTrainer

_NO_DENSITY = 1e6  # the loss of a row whose density is no number


@dataclass(frozen=True, eq=False)
class Component:
    """Estimators that share a weight in the mixture.

    Args:
        estimators: The estimators; none for the prior.
        losses: Loss of each high-fidelity row under one that has not seen it.
        num_epochs: Epochs trained, the mean over estimators.
        runs: Their trainings, and those of networks that they started from, by name.
    """

    estimators: list[ConditionalDensityEstimator]
    losses: np.ndarray
    num_epochs: float = 0.0
    runs: Mapping[str, tuple[TrainingRun, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MemberTrainer:
    """Trains members, each without one fold of the high-fidelity rows.

    A member also holds out rows of its own for early stopping, so that the fold it is
    weighed by has had no part in it, but for the tails, which all rows share.

    Args:
        trainer: The user's trainer, whose prior and builder the members share.
        config: The recipe.
        level: The high-fidelity rows.
        folds: Their indices, fold by fold.
        tails: What tames the tails of x; `None` where all are light.
        seed: Seed of the members.
        options: Arguments of `train` for the members.
        bar: Moves with every network that is trained.
    """

    trainer: HybridTrainer
    config: HybridConfig
    level: LevelSimulations
    folds: Sequence[np.ndarray]
    tails: TailTransform | None
    seed: int
    options: Mapping[str, Any]
    bar: tqdm

    @cached_property
    def high(self) -> LevelArrays:
        """The high-fidelity rows, as maps see them."""
        return LevelArrays.of(self.level)

    @property
    def fewest_rows(self) -> int:
        """LevelArrays that leave two to train a network on, beside those to stop by."""
        return math.ceil(2 / (1 - self.options["validation_fraction"]))

    def check(self) -> None:
        """Raise if a member would have too few rows to be trained on."""
        fewest = min(len(rows) for rows in self.others)
        if fewest < self.fewest_rows:
            fraction = self.options["validation_fraction"]
            raise ValueError(
                f"validation_fraction={fraction} and num_members="
                f"{self.config.num_members} leave a member fewer than two of the "
                f"{len(self.high)} rows of the highest level to train on. Pass a "
                "smaller fraction, or simulate more rows (at different theta)."
            )

    @cached_property
    def others(self) -> list[np.ndarray]:
        """For each fold the rows of all others."""
        return [np.setdiff1d(np.arange(len(self.high)), fold) for fold in self.folds]

    def training_folds(self, index: int) -> list[int]:
        """The folds that a member may learn from: all but its own."""
        return [fold for fold in range(len(self.folds)) if fold != index]

    def pooled(self, step: LevelStep) -> Component:
        """Members that learn from the rows of all levels."""
        starts = self._starts(step) if self.config.shared_start else []
        trainers = []
        for index, rows in enumerate(self.others):
            member = self._member(self.config.member_config(len(rows)))
            unseen = self.high.theta[self.folds[index]]
            pool = step.move(self.high[rows], self.training_folds(index), unseen)
            member.append_lowfidelity_simulations(*self._network_rows(pool))
            member.append_simulations(*self._network_rows(self.high[rows]))
            if starts:
                member.warm_start(starts[index % len(starts)]._neural_net)
            trainers.append(member)
        component = self._trained(trainers, "networks with lower levels")
        return replace(component, runs={**_runs("start", starts), **component.runs})

    def _starts(self, step: LevelStep) -> list[MultilevelTrainer]:
        """Two networks trained on the pool: members start from one or the other.

        Each is trained on a pool moved by a map that is fitted to, and chosen by, the
        folds of the other one's members, so that no member starts from anything that
        was told what its own fold holds. Of the pool, though, a start may have seen
        rows that a member stops by.
        """
        trainers = []
        for half in range(2):
            training_folds = range(1 - half, len(self.folds), 2)
            rows = np.concatenate([self.folds[fold] for fold in training_folds])
            unseen = np.delete(self.high.theta, rows, axis=0)
            member = self._member(self.config.plain_config)
            pool = self._network_rows(
                step.move(self.high[rows], training_folds, unseen)
            )
            trainers.append(member.append_lowfidelity_simulations(*pool))
        folds = [Fold(half, self.seed) for half in range(2)]
        return self._train(trainers, folds, "networks to start from")

    def alone(self) -> Component:
        """Members that learn from high fidelity alone."""
        trainers = [self._plain(rows) for rows in self.others]
        return self._trained(trainers, "networks of high fidelity alone")

    def on_half(self) -> Component:
        """The same on half of the rows."""
        draw = np.random.default_rng(self.seed).permutation
        sizes = [max(len(rows) // 2, self.fewest_rows) for rows in self.others]
        halves = [draw(rows)[:size] for rows, size in zip(self.others, sizes)]
        trainers = [self._plain(rows) for rows in halves]
        return self._trained(trainers, "networks of half of the rows")

    def prior(self, prior: Any) -> Component:
        """The prior, as a density of theta."""
        theta = self.level.theta.to(self.trainer._device)
        return Component([], _finite(-prior.log_prob(theta)))

    def _plain(self, rows: np.ndarray) -> MultilevelTrainer:
        member = self._member(self.config.plain_config)
        return member.append_lowfidelity_simulations(
            *self._network_rows(self.high[rows])
        )

    def _member(self, config: TransferConfig) -> MultilevelTrainer:
        owner = self.trainer
        # without a prior sbi makes one of the rows, which no other trainer takes
        is_given = not isinstance(owner._prior, ImproperEmpirical)
        member = owner._member_type(
            owner._prior if is_given else None,
            density_estimator=owner._build_neural_net,
            device=owner._device,
            config=config,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )
        member._plan.prepares = False
        return member

    def _network_rows(self, rows: LevelArrays) -> tuple[Tensor, Tensor]:
        """Theta and x as networks see them: tamed, of the user's shape and kind."""
        theta = torch.as_tensor(rows.theta).to(self.level.theta)
        x = torch.as_tensor(rows.x)
        x = x if self.tails is None else self.tails(x)
        return theta, x.to(self.level.x).reshape(-1, *self.level.x.shape[1:])

    def _train(
        self, trainers: Sequence[MultilevelTrainer], folds: Sequence[Fold], what: str
    ) -> list[MultilevelTrainer]:
        self.bar.set_description(f"Training {what}")
        return train_members(trainers, folds, None, self.options, self.bar.update)

    def _trained(self, trainers: Sequence[MultilevelTrainer], what: str) -> Component:
        folds = [Fold(index, self.seed) for index in range(len(trainers))]
        trained = self._train(trainers, folds, what)
        networks = [member._neural_net.eval() for member in trained]
        losses = torch.empty(len(self.high))
        for network, fold in zip(networks, self.folds):
            columns = self._network_rows(self.high[fold])
            rows = [column.to(self.trainer._device) for column in columns]
            given = rows if self.trainer._target == "theta" else rows[::-1]
            with torch.no_grad():
                losses[fold] = network.loss(*given).cpu()
        epochs = [sum(member.summary["epochs_trained"]) for member in trained]
        runs = _runs("member", trained)
        return Component(networks, _finite(losses), float(np.mean(epochs)), runs)


def _runs(
    name: str, trained: Sequence[MultilevelTrainer]
) -> dict[str, tuple[TrainingRun, ...]]:
    return {
        f"{name} {number}": training_runs(member.summary)
        for number, member in enumerate(trained, 1)
    }


def _finite(losses: Tensor) -> np.ndarray:
    values = losses.detach().cpu().double().numpy()
    # an infinite density is a network collapsed, not a row well predicted
    return np.where(np.isfinite(values), values, _NO_DENSITY)
