"""The networks of truncated rounds: pre-trained, aligned, fine-tuned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.estimators.observations import Watch
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential.proposing import Region, disagreement_at
from sbi_multilevel.methods.sequential.state import StateMixin
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.simulation.noise import derive_seed, seeded
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_ensemble, train_members
from sbi_multilevel.training.network import take_over
from sbi_multilevel.training.tracking import SilentTracker

_PRETRAIN, _TRAIN = 10, 12  # streams of seeds


class MemberMixin(StateMixin):
    """Trains the members of an ensemble, or a single one, round by round."""

    def _pretrain(self) -> None:
        if self._members is not None or not self._low._theta_roundwise:
            return
        num_networks = 1 if self._shared_pretraining else self._num_members
        ensemble = train_ensemble(
            self._low,
            num_networks,
            seed=derive_seed(self._seed, _PRETRAIN),
            num_workers=self._num_workers,
            train_options=self._train_options,
        )
        self._members = ensemble.estimators * (self._num_members // num_networks)
        self._pretrained_here = True

    def _fine_tune(
        self, region: Callable[[], Region]
    ) -> tuple[list[ConditionalDensityEstimator], Tensor | None]:
        """Networks trained on the rows of the rounds, and the weights of low rows."""
        low_weights, config = self._weigh_low_rows(region), self._config
        members: list[Any] = self._members or [None] * self._num_members
        if low_weights is None:
            config = replace(config, alignment=None)
        elif self._members is not None:  # read x at the scale of the weighted low rows
            moments = Moments.of(self._low_rows.x, low_weights)
            members = [network.refer_to(moments) for network in members]
        trainers = []
        for network in members:
            trainer = self._trainer(config)
            if network is not None:
                trainer.warm_start(network)
            for rows in self._rows_to_train_on:
                if rows.x_coarse is not None:
                    trainer.append_lowfidelity_simulations(rows.theta, rows.x_coarse)
            for rows in self._rows_to_train_on:
                weights = rows.loss_weights
                trainer.append_weighted_simulations(rows.theta, rows.x, weights)
            trainers.append(trainer)
        return self._train_members(trainers), low_weights

    def _train_members(
        self, trainers: list[MFNPE]
    ) -> list[ConditionalDensityEstimator]:
        seed = derive_seed(self._seed, _TRAIN, self._round)
        folds = [Fold(index, seed) for index in range(self._num_members)]
        trained = train_members(trainers, folds, self._num_workers, self._train_options)
        inside = trained[0]._plan.training_range
        if self._round == 0 and inside is not None:
            Watch(inside).look_at(self.x_o)
        return [trainer._neural_net for trainer in trained]

    def _weigh_low_rows(self, region: Callable[[], Region]) -> Tensor | None:
        """Weights that give low-fidelity rows the density of theta in the rounds."""
        if self._low_weights is not None:
            self._check_low_rows()
        if not self._low._theta_roundwise or self._config.alignment is None:
            return None
        theta = self._low_rows.theta
        weights = self._low_weights
        if weights is None or not self._all_rounds:
            weights = torch.zeros(len(theta))
        share, acquired = 0.0, torch.zeros(len(theta))
        pending, acquisition = self._pending, self._acquisition
        if pending is not None and acquisition is not None and not acquisition.correct:
            active = pending.theta[pending.is_active]
            share = len(active) / len(pending.theta)
            if share > 0:
                both = torch.cat([theta, active])
                posterior = self.build_posterior()
                scores = disagreement_at(posterior, both, acquisition.on)
                acquired = scores[: len(theta)] >= scores[len(theta) :].min()
        return (
            weights
            + (1 - share) * self._new_rows * _even(region().inside(theta))
            + share * self._new_rows * _even(acquired)
        )

    @property
    def _rows_of_round(self) -> list[LevelSimulations]:
        """High-fidelity rows that were appended since the last training."""
        first, missing = len(self._rows), self._new_rows
        while missing > 0:
            first -= 1
            missing -= len(self._rows[first])
        return self._rows[first:]

    @property
    def _rows_to_train_on(self) -> list[LevelSimulations]:
        return self._rows if self._all_rounds else self._rows_of_round

    def _check_low_rows(self) -> None:
        """Raise unless the low-fidelity rows are those that the run began with."""
        if not self._low._theta_roundwise or self._sums_of_low_rows != self._low_sums:
            raise ValueError(
                "The low-fidelity rows are not those that this run began with, by "
                "which levels are aligned. Call `append_lowfidelity_simulations` with "
                "the same rows before going on."
            )

    @property
    def _sums_of_low_rows(self) -> tuple[float, ...] | None:
        """What tells low-fidelity rows from others."""
        if not self._low._theta_roundwise:
            return None
        rows = self._low_rows
        return float(len(rows)), *(
            float(c.double().sum()) for c in (rows.theta, rows.x)
        )

    @property
    def _low_rows(self) -> LevelSimulations:
        return self._low._prepared_simulations()[0]

    def _trainer(self, config: TransferConfig, parameters: Any = None) -> MFNPE:
        """A trainer of one member, without rows."""
        return MFNPE(
            self._prior,
            self._density_estimator,
            config=config,
            parameters=parameters,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )

    def _take_over(self, source: Any) -> ConditionalDensityEstimator:
        """A network from another, or from its weights."""
        build = self._trainer(self._config)._network_builder
        if self._members and isinstance(source, Mapping):
            # networks from elsewhere need not be what the builder makes
            template = self._members[0]
            build = lambda theta, x: deepcopy(template)
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows made up for their shapes
            theta = self._prior.sample((100,))
            x = self.x_o + torch.randn(100, *self.x_o.shape[1:])
            return take_over(source, build, "theta", theta, x).eval().cpu()


def _even(chosen: Tensor) -> Tensor:
    """Equal shares of those chosen; nothing where none is."""
    return chosen / chosen.sum().clamp_min(1)
