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
    OneCycle,
    simulate_multilevel,
)
from sbi_multilevel_benchmarks.fit import Fit
from sbi_multilevel_benchmarks.methods.per_observation import ObservationPosterior
from sbi_multilevel_benchmarks.registry import register_method

NUM_ROUNDS = 3
_MIN_PAIRS = 5  # of each level and round
RoundsType = Callable[..., HybridTSNPE | MLTSNPE]


@dataclass(frozen=True)
class MultilevelRoundsPosterior(ObservationPosterior):
    """Posterior of rounds of all levels at each observation.

    Args:
        first: The rounds after the first one, which all observations share.
        task: The task.
        num_low: Simulations of level 0 in the region of each round.
        num_pairs: Pairs of the levels above in all rounds.
    """

    first: HybridTSNPE | MLTSNPE
    task: Any
    num_low: int
    num_pairs: tuple[int, ...]
    _runs: list[tuple[int, ...]] = field(default_factory=list, init=False, repr=False)

    @property
    def runs(self) -> tuple[int, ...]:
        """Runs of each simulator, the most of any observation."""
        return tuple(max(counts) for counts in zip(*self._runs))

    def _run(self, x: Tensor) -> Any:
        inference = self.first.for_observation(x)
        posterior = inference.run(
            self.task.simulators,
            (self.num_low, *self.num_pairs),
            NUM_ROUNDS,
            noise=self.task.noise,
            show_progress_bars=False,
        )
        made = [sum(n) for n in zip(*inference.summary["num_simulations"])]
        self._runs.append(tuple(n + above for n, above in zip(made, [*made[1:], 0])))
        return posterior


@dataclass(frozen=True)
class MultilevelRoundsMethod:
    """Rounds at each observation of the task, on simulations of their own.

    In all rounds together an observation has at most as many simulations of each level
    as other methods have for all observations, all of them in pairs. Observations share
    those of the first round, a third of all, and its network.

    Args:
        rounds_type: The class of the rounds, with settings if any.
    """

    needs_observations: ClassVar[bool] = True

    rounds_type: RoundsType

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        numbers = simulations.num_simulations
        shares = [num // NUM_ROUNDS for num in numbers]
        if min(shares[1:]) < _MIN_PAIRS:
            raise ValueError(
                f"num_simulations={numbers} in {NUM_ROUNDS} rounds, but each needs at "
                f"least {_MIN_PAIRS} pairs of a level. Simulate more."
            )
        every = task.observations.split(1)
        first = self.rounds_type(task.prior, every[0], task.build_network(), seed=seed)
        shared = simulate_multilevel(
            task.simulators,
            task.prior,
            shares,
            noise=task.noise,
            seed=seed,
            show_progress_bars=False,
        )
        first.append_multilevel_simulations(shared).train()
        posterior = MultilevelRoundsPosterior(first, task, shares[0], numbers[1:])
        for x_o in every:  # so that their seconds count as training
            posterior.at(x_o)
        return Fit(posterior, simulations[-1].x, 0, runs=posterior.runs)


# to save time, half of the steps, and no distillation
SHORT = HybridConfig(schedule=OneCycle(num_steps=800), distill=False)
_HYBRID = partial(HybridTSNPE, config=SHORT)


def _active(on: Any) -> RoundsType:
    return partial(_HYBRID, acquisition=Acquisition(on=on, correct=True))


register_method("hybrid-tsnpe", MultilevelRoundsMethod(_HYBRID))
register_method("hybrid-tsnpe-af", MultilevelRoundsMethod(_active("density")))
register_method("hybrid-tsnpe-af-gain", MultilevelRoundsMethod(_active("gain")))
register_method("ml-tsnpe", MultilevelRoundsMethod(MLTSNPE))
