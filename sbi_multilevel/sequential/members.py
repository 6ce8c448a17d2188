"""The networks of truncated rounds: pre-trained, aligned, fine-tuned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.alignment import Moments
from sbi_multilevel.recipes import Transfer
from sbi_multilevel.sequential.state import StateMixin
from sbi_multilevel.simulation.noise import derive_seed, seeded
from sbi_multilevel.simulations import LevelSimulations
from sbi_multilevel.trainers.batches import Fold
from sbi_multilevel.trainers.ensemble import train_ensemble, train_members
from sbi_multilevel.trainers.network import builder_for, take_over
from sbi_multilevel.trainers.npe import MFNPE
from sbi_multilevel.trainers.tracking import SilentTracker

_PRETRAIN, _TRAIN, _ALIGN = 10, 12, 14  # streams of seeds


class MemberMixin(StateMixin):
    """Trains the members of an ensemble, or a single one, round by round."""

    def _pretrain(self) -> None:
        if self._members is not None or not self._low._theta_roundwise:
            return
        ensemble = train_ensemble(
            self._low,
            self._num_members,
            seed=derive_seed(self._seed, _PRETRAIN),
            num_workers=self._num_workers,
            train_options=self._train_options,
        )
        self._members = ensemble.estimators

    def _fine_tune(self) -> tuple[list[ConditionalDensityEstimator], Tensor | None]:
        """Networks trained on the rows of all rounds, and the weights of low rows."""
        low_weights, recipe = self._weigh_low_rows(), self._recipe
        if low_weights is None:
            recipe = replace(recipe, alignment=None)
        trainers = []
        for index in range(self._num_members):
            trainer = self._trainer(recipe)
            if self._members is not None:
                trainer.warm_start(self._aligned(self._members[index], low_weights))
            for rows in self._rows:
                if rows.x_coarse is not None:
                    trainer.append_lowfidelity_simulations(rows.theta, rows.x_coarse)
            for rows in self._rows:
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
        return [trainer._neural_net for trainer in trained]

    def _weigh_low_rows(self) -> Tensor | None:
        """Weights that give low-fidelity rows the parameters' density of all rounds."""
        if not self._low._theta_roundwise or self._recipe.alignment is None:
            return None
        theta, weights = self._low_rows.theta, self._low_weights
        inside = torch.ones(len(theta), dtype=torch.bool)
        if self._round > 0:
            with seeded(derive_seed(self._seed, _ALIGN, self._round)):
                truncated = self._truncation.truncate(
                    self.build_posterior(), self._prior
                )
                inside = truncated._accept_reject_fn(theta)
        if weights is None:
            weights = torch.zeros(len(theta))
        if len(weights) != len(theta):
            raise ValueError(
                f"There are {len(theta)} low-fidelity rows, but the run was started "
                f"with {len(weights)}. Append the same rows to go on with it."
            )
        return weights + self._new_rows * inside / inside.sum().clamp_min(1)

    def _aligned(self, network: Any, low_weights: Tensor | None) -> Any:
        """A network that is to read x at the scale of the weighted low rows."""
        if low_weights is None:
            return network
        return network.refer_to(Moments.of(self._low_rows.x, low_weights))

    @property
    def _low_rows(self) -> LevelSimulations:
        return self._low._check_trainable()[0]

    def _trainer(self, recipe: Transfer, parameters: Any = None) -> MFNPE:
        """A trainer of one member, without rows."""
        return MFNPE(
            self._prior,
            self._density_estimator,
            recipe=recipe,
            parameters=parameters,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )

    def _take_over(self, source: Any) -> ConditionalDensityEstimator:
        """A network from another, or from its weights."""
        build = self._trainer(self._recipe)._build_neural_net
        is_named = isinstance(self._density_estimator, str)
        build = builder_for(self._recipe, build, "theta", self._prior, is_named)
        if self._members and isinstance(source, Mapping):
            # networks from elsewhere need not be what the builder makes
            template = self._members[0]
            build = lambda theta, x: deepcopy(template)
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows made up for their shapes
            theta = self._prior.sample((100,))
            x = self.x_o + torch.randn(100, *self.x_o.shape[1:])
            return take_over(source, build, "theta", theta, x).eval()
