"""Methods that simulate for each observation anew, or know no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sbi_multilevel import (
    MFTSNPE,
    Acquisition,
    LevelSimulations,
    MultilevelSimulations,
    TransferConfig,
)
from sbi_multilevel_benchmarks.fitted import Fit
from sbi_multilevel_benchmarks.mf_abc import MFABCPosterior
from sbi_multilevel_benchmarks.tasks import BenchmarkTask
from sbi_multilevel_benchmarks.transfer_methods import NUM_MEMBERS, pretrain_all

NUM_ROUNDS = 5
BLOCK = 1_000  # rows simulated at once; rows are the same for any


@dataclass(frozen=True)
class RoundsPosterior:
    """Stands in for a posterior of sbi; rounds run at each observation it first sees.

    Args:
        task: The task.
        pretrained: Networks that all observations start from.
        low: The rows of level 0 that they were trained on.
        num_simulations: High-fidelity simulations for each observation.
        config: How they are fine-tuned.
        acquisition: How active points are chosen, if at all.
        seed: Seed of the rounds.
    """

    task: BenchmarkTask
    pretrained: tuple[Any, ...]
    low: LevelSimulations
    num_simulations: int
    config: TransferConfig
    acquisition: Acquisition | None
    seed: int
    _posteriors: dict[bytes, Any] = field(default_factory=dict)

    def at(self, x: Tensor) -> Any:
        """sbi's posterior at an observation, shape `(1, *x_shape)`."""
        key = x.numpy().tobytes()
        if key not in self._posteriors:
            self._posteriors[key] = self._run(x)
        return self._posteriors[key]

    def sample(
        self, sample_shape: tuple[int, ...], x: Tensor, show_progress_bars: bool = False
    ) -> Tensor:
        """Samples, as of sbi's posteriors."""
        return self.at(x).sample(sample_shape, show_progress_bars=show_progress_bars)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log density, as of sbi's posteriors."""
        return self.at(x).log_prob(theta)

    def _run(self, x: Tensor) -> Any:
        inference = MFTSNPE(
            self.task.prior,
            x,
            density_estimator=self.task.build_network(),
            config=self.config,
            num_members=len(self.pretrained),
            acquisition=self.acquisition,
            num_coverage_rows=0,
            seed=self.seed,
        ).warm_start(list(self.pretrained))
        inference.append_lowfidelity_simulations(self.low.theta, self.low.x)
        return inference.run(
            self.task.simulators[-1],
            self.num_simulations,
            NUM_ROUNDS,
            noise=self.task.noise,
            simulation_batch_size=BLOCK,
            show_progress_bars=False,
        )


@dataclass(frozen=True)
class RoundsMethod:
    """MF-TSNPE at each observation of the task, from pre-trained networks.

    The high-fidelity rows are its own, as many for each observation as the other
    methods have for all. Epochs are those of pre-training.

    Args:
        acquisition: How active points are chosen, if at all.
        num_members: Networks.
        config: How they are fine-tuned.
        shared_pretraining: Whether all networks start from one, or each from one of its
            own.
    """

    acquisition: Acquisition | None = None
    num_members: int = 1
    config: TransferConfig = TransferConfig()
    shared_pretraining: bool = False

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        num_networks = 1 if self.shared_pretraining else self.num_members
        networks, before = pretrain_all(task, simulations, seed, num_networks)
        estimators = tuple(network.estimator for network in networks)
        estimators *= self.num_members // num_networks
        posterior = RoundsPosterior(
            task,
            estimators,
            simulations[0],
            len(simulations[-1]),
            self.config,
            self.acquisition,
            seed,
        )
        for x_o in task.observations:  # here, so that the seconds are those of training
            posterior.at(x_o.unsqueeze(0))
        epochs = round(sum(n.num_epochs for n in networks) / len(networks))
        runs = simulations.num_simulations
        return Fit(posterior, simulations[-1].x, epochs, before, runs)


def mf_abc(task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
    """Multifidelity ABC; rows of its own, as many of level 1 for each observation."""
    posterior = MFABCPosterior(
        task.prior, task.simulators, task.noise, *simulations.num_simulations, seed=seed
    )
    return Fit(posterior, simulations[-1].x, 0, runs=simulations.num_simulations)


# active points as the kept records were made with: none in the first round, and a pool
# for each round, as in the code of the paper
_RECORDED = {"first_round": False, "fixed_pool": False}

POSTERIOR_METHODS = {
    "mf-abc": mf_abc,
    "mf-tsnpe": RoundsMethod(),
    # active points need an ensemble to disagree
    "mf-tsnpe-ensemble": RoundsMethod(num_members=NUM_MEMBERS),
    "mf-tsnpe-af": RoundsMethod(Acquisition(on="density", **_RECORDED), NUM_MEMBERS),
    "mf-tsnpe-af-unaligned": RoundsMethod(
        Acquisition(on="density", **_RECORDED),
        NUM_MEMBERS,
        TransferConfig(alignment=None),
    ),
    "mf-tsnpe-af-log": RoundsMethod(
        Acquisition(on="log_density", **_RECORDED), NUM_MEMBERS
    ),
    # Algorithm 4 of the paper, the default of `MFTSNPE`
    "mf-tsnpe-af-paper": RoundsMethod(
        Acquisition(), NUM_MEMBERS, shared_pretraining=True
    ),
}
