"""The members of a hybrid ensemble: trainers with the arguments of the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sbi.neural_nets.estimators.base import ConditionalEstimator
from sbi.utils.sbiutils import ImproperEmpirical
from torch import Tensor
from tqdm.auto import tqdm

from sbi_multilevel.data.priors import log_prob_of
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.estimators.mixed import WithExamples
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.methods.hybrid.pool import (
    LevelStep,
    MapSelector,
    discrete_features,
    fit_tails,
    limit_lower,
    split_folds,
)
from sbi_multilevel.methods.hybrid.run import Component, Group, HybridRun, Trained
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.history import TrainingRun, training_runs
from sbi_multilevel.training.tracking import SilentTracker

if TYPE_CHECKING:
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
    from sbi_multilevel.training.trainer import MultilevelTrainer

_MAX_LOSS = 1e6  # the loss where the density of a network is not finite
_MAX_RESTARTS = 3  # of a network whose held-out loss is worse than that of its twin
_NUM_ERRORS, _MIN_GAP = 5.0, 0.1  # by so many standard errors, and nats
_NUM_COMPARED = 500  # simulations of a pool on which two networks are compared


class MemberTrainer:
    """Trains members, each without one fold of the high-fidelity simulations.

    For early stopping a member holds out some of its own simulations, so that its
    fold affects nothing but the tail transform and the choice of the kind of level map.

    Args:
        trainer: The user's trainer, whose prior and builder the members share.
        simulations: Simulations of all levels, prepared.
        run: Seed, arguments of `train`, and the networks that are finished.

    Attributes:
        level: The high-fidelity simulations; `high` are the same as arrays.
        folds: Their indices, fold by fold.
        outside_folds: For each fold the indices of the simulations of all other folds.
        discrete: Discrete features of x, which maps take as real numbers; `None` if
            there are none.
        build: Builder of the networks.
        tails: Transform of the tails of x; `None` if none are heavy.
        selector: Selects level maps.
        prior: The prior; `None` if none was given.
        bar: Progress bar that moves with every trained network.
    """

    def __init__(
        self, trainer: HybridTrainer, simulations: MultilevelSimulations, run: HybridRun
    ):
        self.trainer, self.run, self.config = trainer, run, trainer._config
        self.discrete = discrete_features(trainer, simulations)
        levels, map_pairs = map(self._continuous, (simulations, trainer._map_pairs))
        self.simulations = replace(simulations, levels=levels)
        self.level = self.simulations[-1]
        self.high = LevelArrays.of(self.level)
        self.folds = split_folds(self.high.theta, self.config.num_members, run.seed)
        every = np.arange(len(self.high))
        self.outside_folds = [np.setdiff1d(every, fold) for fold in self.folds]
        self.tails = None
        if self.config.transform_tails:
            self.tails = fit_tails(self.simulations, self.discrete)
        self.build = self._builder([*simulations, *trainer._map_pairs])
        self.selector = MapSelector(
            self.config.level_maps,
            trainer._target,
            self.tails,
            run.seed,
            {part.level: LevelArrays.of(part) for part in map_pairs},
        )
        # without a prior sbi makes one of the simulations, which trainers do not accept
        is_given = not isinstance(trainer._prior, ImproperEmpirical)
        self.prior: Any = trainer._prior if is_given else None
        self.bar: tqdm = tqdm(disable=True)

    def _continuous(
        self, levels: Iterable[LevelSimulations]
    ) -> tuple[LevelSimulations, ...]:
        """Simulations as level maps take them, without categories."""
        if self.discrete is None:
            return tuple(levels)
        return tuple(self.discrete.continuous(each, self.run.seed) for each in levels)

    def _builder(self, levels: Sequence[LevelSimulations]) -> Any:
        """The builder of the user, of networks that know all categories."""
        build = self.trainer._build_neural_net
        if self.discrete is None:
            return build
        theta, x = self.discrete.examples(levels)
        return WithExamples(build, theta, x if self.tails is None else self.tails(x))

    @property
    def min_simulations(self) -> int:
        """Number that leaves two to train on, beside those held out."""
        return math.ceil(2 / (1 - self.run.options["validation_fraction"]))

    def check(self) -> None:
        """Raise if a member has too few simulations to be trained on.

        Raises:
            ValueError: If fewer than two are left beside those held out.
        """
        fewest = min(len(indices) for indices in self.outside_folds)
        if fewest < self.min_simulations:
            fraction = self.run.options["validation_fraction"]
            raise ValueError(
                f"validation_fraction={fraction} and num_members="
                f"{self.config.num_members} leave a member fewer than two of the "
                f"{len(self.high)} simulations of the highest level to train on. Pass "
                "a smaller fraction, or simulate more (at different theta)."
            )

    def select_maps(self) -> list[LevelStep]:
        """The steps from each level to the next."""
        seed = self.run.seed
        lower = limit_lower(self.simulations, self.config.max_low, seed).levels[:-1]
        levels = [*map(LevelArrays.of, lower), self.high]
        folds = [
            split_folds(level.theta, self.config.num_members, seed)
            for level in levels[1:-1]
        ]
        return self.selector.steps(levels, [*folds, self.folds])

    def pooled(self, step: LevelStep) -> Group:
        """Members that are trained on the pool and fine-tuned on high fidelity."""
        starts = self._starts(step) if self.config.shared_start else []
        trainers = []
        for index, kept in enumerate(self.outside_folds):
            member = self._member(self.config.member_config(len(kept)))
            unseen = self.high.theta[self.folds[index]]
            pool = step.map_low(self.high[kept], step.folds(but=index), unseen)
            self._append(member, pool, self.high[kept])
            if starts:
                member.warm_start(starts[index % len(starts)].network)
            trainers.append(member)
        runs = _runs("start", starts)
        return Group("networks with lower levels", trainers, self._folds(), runs)

    def _starts(self, step: LevelStep) -> list[Trained]:
        """Two networks trained on the pool, from which members start in turn.

        The members of one start have every other fold. Its pool is mapped by a map that
        is selected by and fitted to the remaining folds, so that no member starts from
        a network that depends on its fold. Simulations of the pool that a member holds
        out for early stopping may have been trained on in its start.

        A network that was initialized badly is trained again, from other weights, if
        the other predicts its pool better than it does. E.g. the autoregressive flows
        of nflows do not condition a feature that all random permutations put first.
        """
        trainers, pools = [], []
        for half in range(2):
            training_folds = range(1 - half, len(self.folds), 2)
            kept = np.concatenate([self.folds[fold] for fold in training_folds])
            unseen = np.delete(self.high.theta, kept, axis=0)
            pool = step.map_low(self.high[kept], training_folds, unseen)
            trainers.append(self._plain(pool))
            pools.append(pool.first(_NUM_COMPARED))
        what, seed = "networks to start from", self.run.seed
        group = Group(what, trainers, [Fold(0, seed), Fold(1, seed)])
        (starts,) = self.run.train(self.bar, group)
        for attempt in range(1, 1 + _MAX_RESTARTS):
            worse = _stuck(starts)
            if worse is None or not self._is_beaten(worse, starts, pools[worse]):
                break
            fold, name = Fold(worse + 2 * attempt, seed), f"{what}, {attempt} again"
            again = Group(name, [trainers[worse]], [fold])
            ((other,),) = self.run.train(self.bar, again)
            if other.held_out_loss < starts[worse].held_out_loss:
                starts[worse] = other
        return starts

    def _is_beaten(
        self, index: int, starts: Sequence[Trained], pool: LevelArrays
    ) -> bool:
        """Whether the other of two networks predicts the pool of one better."""
        own, other = (
            _finite(self._losses(starts[i].network, pool)).mean()
            for i in (index, 1 - index)
        )
        return bool(own - other > _MIN_GAP)

    def _losses(self, network: Any, simulations: LevelArrays) -> Tensor:
        """Held-out loss of each simulation, shape `(n,)`."""
        theta, x = (each.to(self.trainer._device) for each in self.columns(simulations))
        with torch.no_grad():
            return self.trainer._held_out_losses(network, theta, x).cpu()

    def alone(self) -> Group:
        """Networks trained on high-fidelity simulations alone."""
        trainers = [self._plain(self.high[kept]) for kept in self.outside_folds]
        return Group("networks with high fidelity alone", trainers, self._folds())

    def on_half(self) -> Group:
        """The same with half of the simulations."""
        draw, trainers = np.random.default_rng(self.run.seed).permutation, []
        for kept in self.outside_folds:
            half = draw(kept)[: max(len(kept) // 2, self.min_simulations)]
            trainers.append(self._plain(self.high[half]))
        return Group("networks with half of the simulations", trainers, self._folds())

    def student(
        self, first: ConditionalEstimator, inputs: Tensor, conditions: Tensor
    ) -> ConditionalEstimator:
        """A network that is trained on draws from the mixture.

        Args:
            first: The network that it starts from.
            inputs: The draws, shape `(n, *input_shape)`.
            conditions: What they were conditioned on, shape `(n, *condition_shape)`.
        """
        config = self.config.student_config
        columns = (inputs, conditions)
        theta, x = columns if self.trainer._target == "theta" else columns[::-1]
        student = self._member(config)
        student.append_lowfidelity_simulations(theta.cpu(), x.cpu())
        student.warm_start(first)
        folds = [Fold(0, self.run.seed)]
        group = Group("one network in place of all", [student], folds)
        ((trained,),) = self.run.train(self.bar, group)
        return trained.network

    def prior_alone(self) -> Component:
        """The prior, as a density of theta."""
        theta = self.level.theta.to(self.trainer._device)
        return Component([], _finite(-log_prob_of(self.prior, theta)))

    def mixed(
        self, networks: Sequence[Any], weights: Tensor, has_prior: bool = False
    ) -> Any:
        """The mixture of networks; with the prior, its weight last."""
        mixture = self.trainer._mix(networks, weights, self.tails, has_prior)
        return mixture.to(self.trainer._device).eval()

    def _plain(self, simulations: LevelArrays) -> MultilevelTrainer:
        """A trainer with simulations of one level."""
        member = self._member(self.config.plain_config)
        self._append(member, simulations)
        return member

    def _append(self, member: MultilevelTrainer, *levels: LevelArrays) -> None:
        """Append simulations of level 0, and of level 1 if there are two."""
        if all(level.weights is None for level in levels):
            low, *high = map(self.columns, levels)
            member.append_lowfidelity_simulations(*low)
            for columns in high:
                member.append_simulations(*columns)
            return
        parts = []
        for index, level in enumerate(levels):
            theta, x = self.columns(level)
            weights = torch.as_tensor(level.all_weights).to(theta)
            parts.append(LevelSimulations(index, theta, x, weights=weights))
        member.append_multilevel_simulations(merge_levels(parts))

    def _member(self, config: TransferConfig) -> MultilevelTrainer:
        owner = self.trainer
        member = owner._member_type(
            self.prior,
            **{owner._kind.argument: self.build},
            device=owner._device,
            config=config,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )
        member._plan.prepares = False
        return member

    def columns(self, simulations: LevelArrays) -> tuple[Tensor, Tensor]:
        """Theta and x for networks: tails transformed, categories, original shape."""
        theta = torch.as_tensor(simulations.theta).to(self.level.theta)
        x = torch.as_tensor(simulations.x)
        if self.tails is not None:
            x = torch.as_tensor(self.tails(x))
        if self.discrete is not None:
            x = self.discrete.restored(x)
        return theta, x.to(self.level.x).reshape(-1, *self.level.x.shape[1:])

    def _folds(self) -> list[Fold]:
        return [Fold(index, self.run.seed) for index in range(len(self.folds))]

    def train(self, groups: Mapping[str, Group]) -> dict[str, Component]:
        """Train networks, and compute the loss of each fold under its own.

        Networks of all groups are trained at the same time, so that no worker waits.

        Args:
            groups: For each component its networks, one for each fold.
        """
        trained = self.run.train(self.bar, *groups.values())
        return {
            name: self._component(group, members)
            for (name, group), members in zip(groups.items(), trained)
        }

    def _component(self, group: Group, trained: Sequence[Trained]) -> Component:
        networks = [member.network for member in trained]
        losses = torch.empty(len(self.high))
        for network, fold in zip(networks, self.folds):
            losses[fold] = self._losses(network, self.high[fold])
        epochs = [sum(member.summary["epochs_trained"]) for member in trained]
        runs = {**group.runs, **_runs("member", trained)}
        return Component(networks, _finite(losses), float(np.mean(epochs)), runs)


def _stuck(starts: Sequence[Trained]) -> int | None:
    """The one of two networks whose held-out loss is far above that of the other."""
    if not all(start.last_run.converged for start in starts):
        return None  # of networks that were hardly trained, losses differ anyway
    errors = [float(np.nanmin(start.last_run.validation_error)) for start in starts]
    gap = starts[1].held_out_loss - starts[0].held_out_loss
    is_clear = abs(gap) > max(_NUM_ERRORS * math.hypot(*errors), _MIN_GAP)
    return int(gap > 0) if is_clear else None


def _runs(name: str, trained: Sequence[Trained]) -> dict[str, tuple[TrainingRun, ...]]:
    return {
        f"{name} {number}": training_runs(member.summary)
        for number, member in enumerate(trained, 1)
    }


def _finite(losses: Tensor) -> np.ndarray:
    values = losses.detach().cpu().double().numpy()
    # an infinite density is that of a degenerate network, not a good prediction
    return np.where(np.isfinite(values), values, _MAX_LOSS)
