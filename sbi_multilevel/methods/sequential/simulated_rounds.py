"""Rounds of several levels that simulate themselves, and are kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sbi_multilevel.methods.hybrid.trainer import MIN_SIMULATIONS
from sbi_multilevel.methods.sequential.multilevel_rounds import MultilevelRounds
from sbi_multilevel.methods.sequential.rounds import Runner
from sbi_multilevel.simulation.arguments import per_level, simulations_per_level
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.tasks import Work


class SimulatedRounds(MultilevelRounds):
    """`MultilevelRounds` given the simulators; arguments are the same."""

    def run(
        self,
        simulators: Sequence[Simulator],
        num_simulations: Sequence[int],
        num_rounds: int = 3,
        *,
        noise: NoiseSampler | None = None,
        simulation_batch_size: int | Sequence[int] = 1_000,
        num_workers: int = 1,
        max_resampling: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        show_progress_bars: bool = True,
    ) -> Any:
        """Propose, simulate and train in all rounds.

        Args:
            simulators: One per level, the lowest fidelity first, of theta and noise as
                in `simulate_multilevel`.
            num_simulations: Number of simulations of each level. Level 0: in the region
                of *each* round, with those of earlier rounds that lie in it. Levels
                above: pairs in *all* rounds together, in equal parts.
            num_rounds: Number of rounds. If a round leaves 90 % of the region, there is
                one last round with all remaining simulations (`summary["stopped"]`).
            noise: Noise sampler, as in `simulate_multilevel`; seeds by default.
            simulation_batch_size: Simulations per call of a simulator, one number or
                one per level, after which the state is saved; 1 if one takes minutes.
            num_workers: Processes that simulate at the same time.
            max_resampling: Failed simulations (an exception, NaN or inf) of a level and
                round that may be replaced by others; as many as there are by default.
            checkpoint: File to save the state to. If it exists, the run resumes.
            show_progress_bars: Whether to show progress.

        Returns:
            The posterior.

        Raises:
            RuntimeError: If more simulations fail than may be replaced.
            ValueError: If the checkpoint is of a run with other settings, or the
                numbers do not fit.
        """
        num_simulations = self._check_run(simulators, num_simulations, num_rounds)
        batches = per_level(simulation_batch_size, len(num_simulations))
        is_new = not self._state.fits
        if checkpoint is not None and is_new and Path(checkpoint).exists():
            self.load(checkpoint)
        work, show = Work(simulators, noise), show_progress_bars
        runner = Runner(work, batches, num_workers, max_resampling, checkpoint, show)
        sizes = partial(self._sizes, num_simulations, num_rounds)
        self._simulate_rounds(runner, sizes, num_rounds, lambda: self._state.index)
        return self.build_posterior()

    # Parts of a run

    def _sizes(self, num_simulations: Sequence[int], num_rounds: int) -> dict[int, int]:
        """Simulations of each level in this round; none if no round follows."""
        state, remaining = self._state, [*num_simulations]
        for part in state.parts:
            remaining[part.level] -= len(part)
        pairs = [max(each, 0) for each in remaining[1:]]
        if state.index >= num_rounds or (state.stopped and not any(pairs)):
            return {}
        left = 1 if state.stopped else num_rounds - state.index
        inside = self.num_inside[0] if state.parts else 0
        if self._settings.is_likelihood and state.fits:
            inside = 0  # those of earlier rounds are kept, but have other densities
        low = max(num_simulations[0] - inside, 0)
        return dict(enumerate([low, *(each // left for each in pairs)]))

    def _check_run(
        self,
        simulators: Sequence[Simulator],
        num_simulations: Sequence[int],
        num_rounds: int,
    ) -> tuple[int, ...]:
        """The numbers of simulations; raise if they do not fit.

        Raises:
            ValueError: If they do not fit the simulators, or are too small.
            RuntimeError: If simulations of a round were appended by hand.
        """
        numbers = simulations_per_level(num_simulations, least=2)
        if len(simulators) != len(numbers) or len(numbers) < 2:
            raise ValueError(
                f"simulators has {len(simulators)} levels, num_simulations "
                f"{len(numbers)}. Pass one simulator and one number per level, at "
                "least two, the lowest fidelity first."
            )
        least = MIN_SIMULATIONS
        if num_rounds < 1 or numbers[-1] < least * num_rounds:
            raise ValueError(
                f"num_simulations={numbers} in num_rounds={num_rounds} rounds, but "
                f"each round needs at least {least} of the highest level. Ask for "
                "fewer rounds, or more simulations."
            )
        begun = bool(self._state.fits or self._state.pending)
        if begun and any(self._state.num_new.values()):
            raise RuntimeError(
                "Simulations of this round were appended by hand. Call `train()` "
                "first, so that `run` begins with a new round."
            )
        return numbers
