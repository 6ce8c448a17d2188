"""The networks of sequential rounds: pre-trained, then fine-tuned in each round."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.estimators.observations import Watch
from sbi_multilevel.methods.sequential.settings import RoundSettings, Stream
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.ensemble import train_ensemble, train_members
from sbi_multilevel.training.network import WarmStart, start_from
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.seeds import seeded

Networks = list[ConditionalDensityEstimator]


class RoundTrainer:
    """Trains the networks of the members with a trainer of several levels.

    This is all that depends on the method: what a trainer is given, and in which order.

    Args:
        trainer_type: The trainer, one that can start from weights.
        settings: The settings of the run.

    Attributes:
        pretraining: The trainer that holds the low-fidelity simulations.
    """

    def __init__(self, trainer_type: type[MultilevelTrainer], settings: RoundSettings):
        self._trainer_type, self._settings = trainer_type, settings
        self.pretraining = self._trainer(settings.config, settings.parameters)

    @property
    def has_low_fidelity(self) -> bool:
        """Whether low-fidelity simulations were appended."""
        return bool(self.pretraining._theta_roundwise)

    @property
    def low_fidelity(self) -> LevelSimulations | None:
        """Low-fidelity simulations, prepared for training; `None` without any."""
        if not self.has_low_fidelity:
            return None
        return self.pretraining._prepared_simulations()[0]

    @property
    def aligns(self) -> bool:
        """Whether the method aligns the levels."""
        return getattr(self._settings.config, "alignment", None) is not None

    def append_low_fidelity(self, theta: Tensor, x: Tensor, level: int) -> None:
        """Store simulations for pre-training; missing columns of theta are drawn."""
        count = len(self.pretraining._theta_roundwise)
        with seeded(self._settings.seed_of(Stream.MISSING_PARAMETERS, level, count)):
            self.pretraining.append_lowfidelity_simulations(theta, x, level)

    def pretrain(self) -> Networks:
        """A network for each member, trained on low-fidelity simulations."""
        settings = self._settings
        num_networks = 1 if settings.shared_pretraining else settings.num_members
        ensemble = train_ensemble(
            self.pretraining,
            num_networks,
            seed=settings.seed_of(Stream.PRETRAINING),
            num_workers=settings.num_workers,
            train_options=settings.train_options,
        )
        return ensemble.estimators * (settings.num_members // num_networks)

    def fine_tune(
        self,
        networks: Networks | None,
        simulations: Sequence[LevelSimulations],
        low: LevelSimulations | None,
        low_weights: Tensor | None,
        round_: int,
        x_o: Tensor,
    ) -> Networks:
        """Train each network on high-fidelity simulations.

        Args:
            networks: Where to start; from scratch if `None`.
            simulations: High-fidelity simulations; outputs of the level below, where
                there are any, are trained on first.
            low: Low-fidelity simulations.
            low_weights: Their weights, by which levels are aligned; `None` for no
                alignment.
            round_: The round, from 0.
            x_o: The observation; in the first round a warning is given if it lies far
                outside the simulations.
        """
        settings, config = self._settings, self._settings.config
        starts: Sequence[Any] = networks or [None] * settings.num_members
        if low is None or low_weights is None:
            config = replace(config, alignment=None)  # pyright: ignore[reportCallIssue]
        elif networks is not None:  # read x at the scale of the weighted simulations
            moments = Moments.of(low.x, low_weights)
            starts = [network.refer_to(moments) for network in networks]  # pyright: ignore
        trainers = []
        for network in starts:
            trainer = self._trainer(config)
            if network is not None:
                trainer.warm_start(network)
            for part in simulations:
                if part.x_coarse is not None:
                    trainer.append_lowfidelity_simulations(part.theta, part.x_coarse)
            for part in simulations:
                trainer.append_weighted_simulations(
                    part.theta, part.x, part.loss_weights
                )
            trainers.append(trainer)
        seed = settings.seed_of(Stream.TRAINING, round_)
        folds = [Fold(index, seed) for index in range(settings.num_members)]
        options = settings.train_options
        trained = train_members(trainers, folds, settings.num_workers, options)
        training_range = trained[0]._plan.training_range
        if round_ == 0 and training_range is not None:
            Watch(training_range).check(x_o)
        return [trainer._neural_net for trainer in trained]

    def network_from(
        self,
        source: WarmStart,
        x_o: Tensor,
        template: ConditionalDensityEstimator | None = None,
    ) -> ConditionalDensityEstimator:
        """A network from another, or from its weights.

        Args:
            source: The network, or its weights.
            x_o: The observation.
            template: A network that the weights fit; what the builder returns if
                `None`.
        """
        build = self._trainer(self._settings.config)._network_builder
        if template is not None:
            build = lambda theta, x: deepcopy(template)
        target, prior = self._trainer_type._target, self._settings.prior
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random x, which only has the shape
            theta = prior.sample((100,))
            x = x_o + torch.randn(100, *x_o.shape[1:])
            return start_from(source, build, target, theta, x).eval().cpu()

    def _trainer(
        self, config: MethodConfig, parameters: Any = None
    ) -> MultilevelTrainer:
        """A trainer of one member, without simulations."""
        return self._trainer_type(
            self._settings.prior,
            self._settings.density_estimator,
            config=config,
            parameters=parameters,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )
