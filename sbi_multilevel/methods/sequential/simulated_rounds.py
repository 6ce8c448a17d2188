"""Rounds of several levels that simulate themselves, and are kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from typing_extensions import Self

from sbi_multilevel.methods.sequential import multilevel_checkpoint as checkpoints
from sbi_multilevel.methods.sequential.multilevel_rounds import MultilevelRounds
from sbi_multilevel.methods.sequential.multilevel_state import settings_of
from sbi_multilevel.methods.sequential.runner import Runner
from sbi_multilevel.methods.sequential.settings import Stream
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
        if (
            checkpoint is not None
            and Path(checkpoint).exists()
            and not self._state.fits
        ):
            self.load(checkpoint)
        save = (lambda: None) if checkpoint is None else partial(self.save, checkpoint)
        work = Work(simulators, noise)
        with tqdm(total=num_rounds, disable=not show_progress_bars) as bar:
            bar.update(self._state.index)
            while not self._is_finished(num_simulations, num_rounds):
                bar.set_description(f"Round {self._state.index + 1}")
                sizes = self._sizes(num_simulations, num_rounds)
                if not self._state.pending and any(sizes):
                    self.propose(sizes)
                    save()
                for level, proposals in self._state.pending.items():
                    options = batches[level], num_workers, max_resampling
                    runner = Runner(work, *options, checkpoint, save, level)
                    index = self._state.index
                    runner.simulate(
                        proposals,
                        sizes[level],
                        partial(self._drawn, level=level),
                        self._seed_of(Stream.NOISE, index, level),
                        index,
                    )
                for level, proposals in self._state.pending.items():
                    self.append_multilevel_simulations(*proposals.done(), level=level)
                self.train()
                save()
                bar.update()
        return self.build_posterior()

    def save(self, path: str | os.PathLike) -> None:
        """Write the state: networks, simulations of all levels, the current round.

        Args:
            path: The file; it is replaced as a whole.
        """
        settings = settings_of(self._method, self._seed, self.x_o)
        checkpoints.write(path, settings, self._state)

    def load(self, path: str | os.PathLike) -> Self:
        """Resume from a state that `save` wrote.

        Args:
            path: The file. It is read without unpickling.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If it was written under other settings, or holds something else.
            OSError: If it cannot be read.
        """
        settings = settings_of(self._method, self._seed, self.x_o)
        self._state = checkpoints.read(path, settings, self._method, self._state)
        return self

    # Parts of a run

    def _remaining(self, num_simulations: Sequence[int]) -> list[int]:
        """Pairs of each level above 0 that were not appended yet."""
        done = [0] * len(num_simulations)
        for part in self._state.parts:
            done[part.level] += len(part)
        pairs = zip(num_simulations[1:], done[1:])
        return [max(total - each, 0) for total, each in pairs]

    def _is_finished(self, num_simulations: Sequence[int], num_rounds: int) -> bool:
        """Whether no round follows."""
        state = self._state
        is_last = state.index >= num_rounds
        return is_last or bool(
            state.stopped and not any(self._remaining(num_simulations))
        )

    def _sizes(self, num_simulations: Sequence[int], num_rounds: int) -> list[int]:
        """Simulations of each level in this round."""
        state = self._state
        left = 1 if state.stopped else num_rounds - state.index
        pairs = [each // left for each in self._remaining(num_simulations)]
        inside = self.num_inside[0] if state.parts else 0
        if self._method.truncation is None and state.fits:
            inside = 0  # those of earlier rounds are kept, but have other densities
        return [max(num_simulations[0] - inside, 0), *pairs]

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
        least = self._method.min_simulations
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
