"""The networks of sequential rounds: pre-trained, then fine-tuned in each round."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential.checkpoint import network_from
from sbi_multilevel.methods.sequential.fine_tuning_state import FineTuningState
from sbi_multilevel.methods.sequential.settings import FineTuningSettings, Stream
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import (
    train_ensemble,
    train_members,
    trainer_state,
)
from sbi_multilevel.training.network import WarmStart
from sbi_multilevel.utils.seeds import seeded

Networks = list[ConditionalDensityEstimator]


class RoundTrainer:
    """Trains the networks of the members by `MFNPE`.

    Args:
        settings: The settings of the run.

    Attributes:
        pretraining: The trainer that holds the low-fidelity simulations.
    """

    def __init__(self, settings: FineTuningSettings):
        self._settings, parameters = settings, settings.parameters
        self.pretraining = settings.trainer(
            MFNPE, settings.config, parameters=parameters
        )

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
        state: FineTuningState,
        low: LevelSimulations | None,
        low_weights: Tensor | None,
    ) -> Networks:
        """Train each network on high-fidelity simulations.

        Outputs of the level below, where there are any, are trained on first. In the
        first round a warning is given if the observation lies far outside of x.

        Args:
            state: The state, with the networks to start from and the simulations.
            low: Low-fidelity simulations.
            low_weights: Their weights, by which levels are aligned; `None` for no
                alignment.
        """
        settings, config = self._settings, self._settings.config
        networks, round_ = state.networks, state.index
        simulations = state.parts if settings.all_rounds else state.new_simulations
        starts: Sequence[Any] = networks or [None] * settings.num_members
        if low is None or low_weights is None:
            config = replace(config, alignment=None)
        elif networks is not None:  # read x at the scale of the weighted simulations
            moments = Moments.of(low.x, low_weights)
            starts = [network.refer_to(moments) for network in networks]  # pyright: ignore
        trainers = []
        for network in starts:
            trainer = settings.trainer(MFNPE, config)
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
        if round_ == 0 and (watch := trained[0]._watch) is not None:
            watch.check(state.x_o)
        return [trainer._neural_net for trainer in trained]

    def network_from(
        self,
        source: WarmStart,
        x_o: Tensor,
        template: ConditionalDensityEstimator | None = None,
    ) -> ConditionalDensityEstimator:
        """A network from another, or from weights that fit a template or builder."""
        settings = self._settings
        build = settings.trainer(MFNPE, settings.config)._network_builder
        if template is not None:
            build = lambda theta, x: deepcopy(template)
        return network_from(source, build, "theta", settings.prior, x_o).eval().cpu()

    def __getstate__(self) -> dict[str, Any]:
        pretraining = trainer_state(self.pretraining)
        return {**vars(self), "pretraining": pretraining}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RoundTrainer.__init__(self, state["_settings"])
        vars(self.pretraining).update(state["pretraining"])
