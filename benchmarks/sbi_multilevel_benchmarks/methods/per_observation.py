"""Methods that simulate for each observation: TSNPE, MF-TSNPE, multifidelity ABC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sbi.inference import NPE
from sbi.utils import RestrictedPrior, get_density_thresholder
from torch import Tensor

from sbi_multilevel import (
    MFTSNPE,
    Acquisition,
    LevelSimulations,
    MultilevelSimulations,
    TransferConfig,
    Truncation,
)
from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.fit import Fit
from sbi_multilevel_benchmarks.methods.transfer import NUM_MEMBERS, pretrain_all
from sbi_multilevel_benchmarks.mf_abc import MFABCPosterior
from sbi_multilevel_benchmarks.registry import register_method

NUM_ROUNDS = 5
_BATCH_SIZE = 1_000  # simulations do not depend on it
_EPSILON, _NUM_SUPPORT = 1e-4, 10_000  # of the truncation of TSNPE


@dataclass(frozen=True)
class ObservationPosterior(ABC):
    """Posterior whose rounds are run when an observation is first used."""

    _posteriors: dict[bytes, Any] = field(
        default_factory=dict, init=False, repr=False, kw_only=True
    )

    @abstractmethod
    def _run(self, x: Tensor) -> Any:
        """Run the rounds at an observation, shape `(1, *x_shape)`."""

    def at(self, x: Tensor) -> Any:
        """The posterior of sbi at an observation, shape `(1, *x_shape)`."""
        key = x.numpy().tobytes()
        if key not in self._posteriors:
            self._posteriors[key] = self._run(x)
        return self._posteriors[key]

    def sample(
        self, sample_shape: tuple[int, ...], x: Tensor, show_progress_bars: bool = False
    ) -> Tensor:
        """Samples, as those of sbi's posteriors."""
        return self.at(x).sample(sample_shape, show_progress_bars=show_progress_bars)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log density, as that of sbi's posteriors."""
        return self.at(x).log_prob(theta)


@dataclass(frozen=True)
class RoundsPosterior(ObservationPosterior):
    """Posterior of MF-TSNPE at each observation.

    Args:
        task: The task.
        pretrained: Networks that all observations start from.
        low: The simulations of level 0 that they were trained on.
        num_simulations: High-fidelity simulations for each observation.
        config: Settings of fine-tuning.
        acquisition: How active points are chosen; `None` for no active points.
        seed: Seed of the rounds.
        num_rounds: Number of rounds.
        epsilon: Mass of the posterior outside of the truncated prior.
    """

    task: Any
    pretrained: tuple[Any, ...]
    low: LevelSimulations
    num_simulations: int
    config: TransferConfig
    acquisition: Acquisition | None
    seed: int
    num_rounds: int
    epsilon: float

    def _run(self, x: Tensor) -> Any:
        inference = MFTSNPE(
            self.task.prior,
            x,
            density_estimator=self.task.build_network(),
            config=self.config,
            num_members=len(self.pretrained),
            acquisition=self.acquisition,
            truncation=Truncation(self.epsilon),
            num_coverage_simulations=0,
            seed=self.seed,
        ).warm_start(list(self.pretrained))
        inference.append_lowfidelity_simulations(self.low.theta, self.low.x)
        return inference.run(
            self.task.simulators[-1],
            self.num_simulations,
            self.num_rounds,
            noise=self.task.noise,
            simulation_batch_size=_BATCH_SIZE,
            show_progress_bars=False,
        )


@dataclass(frozen=True)
class RoundsMethod:
    """MF-TSNPE at each observation of the task, from pre-trained networks.

    Each observation has as many high-fidelity simulations of its own as other methods
    have for all observations. Epochs are those of pre-training.

    Args:
        acquisition: How active points are chosen; `None` for no active points.
        num_members: Networks.
        config: Settings of fine-tuning.
        shared_pretraining: Whether all networks start from the same pre-trained one.
        num_rounds: Number of rounds; `None` for 5.
        epsilon: Mass of the posterior outside of the truncated prior.
    """

    needs_observations: ClassVar[bool] = True

    acquisition: Acquisition | None = None
    num_members: int = 1
    config: TransferConfig = TransferConfig()
    shared_pretraining: bool = False
    num_rounds: int | None = None
    epsilon: float = 1e-6

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        num_networks = 1 if self.shared_pretraining else self.num_members
        networks, before = pretrain_all(task, simulations, seed, num_networks)
        estimators = tuple(network.estimator for network in networks)
        posterior = RoundsPosterior(
            task,
            estimators * (self.num_members // num_networks),
            simulations[0],
            len(simulations[-1]),
            self.config,
            self.acquisition,
            seed,
            self.num_rounds or NUM_ROUNDS,
            self.epsilon,
        )
        for x_o in task.observations:  # so that their seconds count as training
            posterior.at(x_o.unsqueeze(0))
        epochs = round(sum(n.num_epochs for n in networks) / len(networks))
        runs = simulations.num_simulations
        return Fit(posterior, simulations[-1].x, epochs, before, runs)


@dataclass(frozen=True)
class TSNPEPosterior(ObservationPosterior):
    """Posterior of sbi's TSNPE on high-fidelity simulations alone.

    Args:
        task: The task.
        num_simulations: High-fidelity simulations for each observation.
        seed: Seed of the rounds.
    """

    task: Any
    num_simulations: int
    seed: int

    def _run(self, x: Tensor) -> Any:
        task, proposal = self.task, self.task.prior
        noise = torch.Generator().manual_seed(self.seed)
        inference = NPE(task.prior, task.build_network(), show_progress_bars=False)
        rounds = torch.arange(self.num_simulations).chunk(NUM_ROUNDS)
        with seeded(self.seed):
            for index, part in enumerate(rounds):
                theta = proposal.sample((len(part),))
                outputs = task.simulators[-1](theta, task.noise(len(part), noise))
                inference.append_simulations(theta, outputs.float())
                inference.train(force_first_round_loss=True)
                posterior = inference.build_posterior().set_default_x(x)
                if index + 1 < len(rounds):
                    accepts = get_density_thresholder(posterior, _EPSILON, _NUM_SUPPORT)
                    proposal = RestrictedPrior(
                        task.prior, accepts, sample_with="rejection"
                    )
        return posterior


class TSNPEMethod:
    """TSNPE at each observation, without low-fidelity simulations."""

    needs_observations = True

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        count = len(simulations[-1])
        posterior = TSNPEPosterior(task, count, seed)
        for x_o in task.observations:  # so that their seconds count as training
            posterior.at(x_o.unsqueeze(0))
        runs = tuple([0] * (len(simulations) - 1) + [count])
        return Fit(posterior, simulations[-1].x, 0, runs=runs)


class ABCMethod:
    """Multifidelity ABC, with high-fidelity simulations for each observation."""

    needs_observations = True

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        counts = simulations.num_simulations
        posterior = MFABCPosterior(
            task.prior, task.simulators, task.noise, *counts, seed=seed
        )
        return Fit(posterior, simulations[-1].x, 0, runs=counts)


def _recorded(on: str) -> Acquisition:
    """Active points of the records: not in the first round, and a pool per round."""
    return Acquisition(
        on=on,  # pyright: ignore[reportArgumentType]
        first_round=False,
        fixed_pool=False,
    )


register_method("mf-abc", ABCMethod())
register_method("tsnpe", TSNPEMethod())
register_method("mf-tsnpe", RoundsMethod())
# active points are where the members of an ensemble disagree
register_method("mf-tsnpe-ensemble", RoundsMethod(None, NUM_MEMBERS))
register_method("mf-tsnpe-af", RoundsMethod(_recorded("density"), NUM_MEMBERS))
register_method(
    "mf-tsnpe-af-unaligned",
    RoundsMethod(_recorded("density"), NUM_MEMBERS, TransferConfig(alignment=None)),
)
register_method("mf-tsnpe-af-log", RoundsMethod(_recorded("log_density"), NUM_MEMBERS))
register_method("mf-tsnpe-af-gain", RoundsMethod(_recorded("gain"), NUM_MEMBERS))
# Algorithm 4 of the paper, the default of `MFTSNPE`
register_method(
    "mf-tsnpe-af-paper",
    RoundsMethod(Acquisition(), NUM_MEMBERS, shared_pretraining=True),
)
