"""Rounds that simulate all levels for each observation: HybridTSNPE and MLTSNPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from sbi_multilevel import (
    MLTSNPE,
    Acquisition,
    HybridConfig,
    HybridTSNPE,
    MultilevelSimulations,
)
from sbi_multilevel_benchmarks.fit import Fit
from sbi_multilevel_benchmarks.methods.per_observation import ObservationPosterior
from sbi_multilevel_benchmarks.registry import register_method

NUM_ROUNDS = 3
RoundsType = Callable[..., HybridTSNPE | MLTSNPE]


@dataclass(frozen=True)
class MultilevelRoundsPosterior(ObservationPosterior):
    """Posterior of rounds of all levels at each observation.

    Args:
        rounds_type: The class of the rounds, with settings if any.
        task: The task.
        simulations: Draws from the prior; those of level 0 enter the first round, and
            each observation has as many of its own as there are of the other levels.
        seed: Seed of the rounds.
    """

    rounds_type: RoundsType
    task: Any
    simulations: MultilevelSimulations
    seed: int
    _runs: list[tuple[int, ...]] = field(default_factory=list, init=False, repr=False)

    @property
    def runs(self) -> tuple[int, ...]:
        """Runs of each simulator, the most of any observation."""
        return tuple(max(counts) for counts in zip(*self._runs))

    def _run(self, x: Tensor) -> Any:
        low = self.simulations[0]
        inference = self.rounds_type(
            self.task.prior, x, self.task.build_network(), seed=self.seed
        ).append_lowfidelity_simulations(low.theta, low.x)
        posterior = inference.run(
            self.task.simulators,
            self.simulations.num_simulations,
            NUM_ROUNDS,
            noise=self.task.noise,
            show_progress_bars=False,
        )
        made = [sum(n) for n in zip(*inference.summary["num_simulations"])]
        self._runs.append(tuple(n + above for n, above in zip(made, [*made[1:], 0])))
        return posterior


@dataclass(frozen=True)
class MultilevelRoundsMethod:
    """Rounds at each observation of the task.

    Each observation has as many high-fidelity simulations of its own as other methods
    have for all observations, and low-fidelity ones in each round.

    Args:
        rounds_type: The class of the rounds, with settings if any.
    """

    needs_observations: ClassVar[bool] = True

    rounds_type: RoundsType

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        posterior = MultilevelRoundsPosterior(self.rounds_type, task, simulations, seed)
        for x_o in task.observations:  # so that their seconds count as training
            posterior.at(x_o.unsqueeze(0))
        return Fit(posterior, simulations[-1].x, 0, runs=posterior.runs)


def _active(on: Any) -> RoundsType:
    acquisition = Acquisition(on=on, correct=True)
    config = HybridConfig(distill=False)  # the members are compared
    return partial(HybridTSNPE, config=config, acquisition=acquisition)


register_method("hybrid-tsnpe", MultilevelRoundsMethod(HybridTSNPE))
register_method("hybrid-tsnpe-af", MultilevelRoundsMethod(_active("density")))
register_method("hybrid-tsnpe-af-gain", MultilevelRoundsMethod(_active("gain")))
register_method("ml-tsnpe", MultilevelRoundsMethod(MLTSNPE))
