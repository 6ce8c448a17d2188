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
    """Rounds at each observation of the task, with the simulations of other methods.

    In all rounds together an observation has at most as many simulations of each level
    as other methods have for all observations. Those of the first round are the first
    of theirs, and all observations share them and its network.

    Args:
        rounds_type: The class of the rounds, with settings if any.
    """

    needs_observations: ClassVar[bool] = True

    rounds_type: RoundsType

    def __call__(self, task: Any, simulations: MultilevelSimulations, seed: int) -> Fit:
        every = [task.observations[i : i + 1] for i in range(len(task.observations))]
        first = self.rounds_type(task.prior, every[0], task.build_network(), seed=seed)
        shares = [len(level) // NUM_ROUNDS for level in simulations]
        parts = [level[:num] for level, num in zip(simulations, shares)]
        first.append_multilevel_simulations(MultilevelSimulations(tuple(parts)))
        first.train()
        pairs = simulations.num_simulations[1:]
        posterior = MultilevelRoundsPosterior(first, task, shares[0], pairs)
        for x_o in every:  # so that their seconds count as training
            posterior.at(x_o)
        return Fit(posterior, simulations[-1].x, 0, runs=posterior.runs)


# to save time: half of the steps, and no distillation
_CONFIG = HybridConfig(schedule=OneCycle(num_steps=800), distill=False)
_HYBRID = partial(HybridTSNPE, config=_CONFIG)


def _active(on: Any) -> RoundsType:
    return partial(_HYBRID, acquisition=Acquisition(on=on, correct=True))


register_method("hybrid-tsnpe", MultilevelRoundsMethod(_HYBRID))
register_method("hybrid-tsnpe-af", MultilevelRoundsMethod(_active("density")))
register_method("hybrid-tsnpe-af-gain", MultilevelRoundsMethod(_active("gain")))
register_method("ml-tsnpe", MultilevelRoundsMethod(MLTSNPE))
