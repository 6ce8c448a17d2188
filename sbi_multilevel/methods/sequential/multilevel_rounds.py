"""Rounds of proposals, simulations and training on several levels, one observation."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.data.validation import check_level, check_observation
from sbi_multilevel.methods.hybrid.trainer import MIN_SIMULATIONS
from sbi_multilevel.methods.sequential.acquisition import Acquisition, propose_active
from sbi_multilevel.methods.sequential.multilevel_state import MultilevelState, RoundFit
from sbi_multilevel.methods.sequential.rounds import Rounds, Runner
from sbi_multilevel.methods.sequential.settings import MultilevelSettings, Stream
from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior
from sbi_multilevel.simulation.arguments import per_level, simulations_per_level
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.tasks import Work
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import seeded


class MultilevelRounds(Rounds):
    """Sequential inference with simulations of all levels in each round.

    A subclass says where proposals are drawn, and what the posterior is.

    Args:
        settings: The settings of the run.
        x_o: The observation, shape `(1, *x_shape)`.
    """

    _settings: MultilevelSettings
    _state: MultilevelState

    def __init__(self, settings: MultilevelSettings, x_o: Tensor):
        max_draws = settings.truncation.max_draws if settings.truncation else 1
        prior = TruncatedPrior(settings.prior, (), max_draws)
        super().__init__(settings, MultilevelState(x_o, prior=prior))

    @property
    def num_inside(self) -> tuple[int, ...]:
        """Simulations in the region of the current round, the lowest level first."""
        return self._state.num_inside()

    @property
    def summary(self) -> dict[str, Any]:
        """Lists with an entry per round, and `stopped`, see the class."""
        return {**self._state.summary, "stopped": self._state.stopped}

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
        batches = per_level(simulation_batch_size, len(numbers))
        if checkpoint is not None and Path(checkpoint).exists():
            self._resume(checkpoint)
        work, show = Work(simulators, noise), show_progress_bars
        runner = Runner(work, batches, num_workers, max_resampling, checkpoint, show)

        def sizes() -> dict[int, int]:
            return self._sizes(numbers, num_rounds)

        self._simulate_rounds(runner, sizes, num_rounds, lambda: self._state.index)
        return self.build_posterior()

    # The steps of a round

    def append_lowfidelity_simulations(
        self, theta: Tensor, x: Tensor, level: int = 0
    ) -> Self:
        """Store unpaired simulations of a lower level.

        Args:
            theta: Draws from the prior, before the first round; later those of
                `propose`. Shape `(n, d_theta)`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Their level; the highest level is above all of these.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit; nothing is stored then.
        """
        return self.append_multilevel_simulations(theta, x, level=level)

    def append_multilevel_simulations(
        self,
        theta: Tensor | MultilevelSimulations,
        x: Tensor | None = None,
        x_coarse: Tensor | None = None,
        *,
        level: int | None = None,
    ) -> Self:
        """Store simulations of one level, or of all levels.

        Args:
            theta: Parameters that `propose` returned for this level, shape
                `(n, d_theta)`; some may be missing. Before the first training, also
                draws from the prior, e.g. all levels of `simulate_multilevel`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`. Simulations
                with NaN or inf are dropped with a warning.
            x_coarse: Outputs of the simulator of `level - 1` at the same theta and
                noise.
            level: The level, 0 being the lowest fidelity.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit; nothing is stored then.
        """
        if isinstance(theta, MultilevelSimulations):
            new = list(theta)
        else:
            if x is None or level is None:
                raise ValueError(
                    f"x is {x} and level is {level} beside theta. Pass the outputs and "
                    "their level, or the simulations of all levels at once."
                )
            check_level(level)
            new = [LevelSimulations(level, theta, x, x_coarse)]
        return self._append(new)

    def propose(self, num_simulations: Sequence[int]) -> tuple[Tensor, ...]:
        """Parameters to simulate next, for each level.

        Several calls in one round add up.

        Args:
            num_simulations: Number of parameters of each level, the lowest first; 0 for
                none.

        Returns:
            Theta of each level, shape `(n_l, d_theta)`.

        Raises:
            ValueError: If all numbers are 0.
            RuntimeError: If the truncated prior accepts nothing.
        """
        numbers = simulations_per_level(num_simulations, least=0)
        if sum(numbers) == 0:
            raise ValueError(f"num_simulations is {numbers}. Ask for at least one.")
        return self._propose(dict(enumerate(numbers)))

    def train(self) -> Any:
        """Train on all simulations in the region, which ends the round.

        The region of the next round is found, too.

        Returns:
            What was learned, an estimator of sbi.

        Raises:
            RuntimeError: If nothing was appended since the last training, or if
                truncation keeps nothing.
            ValueError: If there are too few simulations in the region.
        """
        state, settings = self._state, self._settings
        if not any(state.num_new.values()):
            raise RuntimeError(
                "No simulations were appended since the last training. Simulate the "
                "parameters of `propose()` and append them."
            )
        state.check_enough()
        with seeded(settings.seed_of(Stream.TRAINING, state.index)):
            fit = state.fit(settings)
        prior, stopped = self._region_after(fit)
        inside = list(self.num_inside)
        entries = {
            "num_simulations": [state.num_new.get(n, 0) for n in range(len(inside))],
            "num_inside": inside,
            "acceptance_rate": state.prior.acceptance,
            "log_score": fit.log_score,
        }
        ended, fits = state.ended(entries), [*state.fits, fit.estimator]
        self._state = replace(ended, prior=prior, fits=fits, stopped=stopped)
        return fit.estimator

    def for_observation(self, x_o: Tensor) -> Self:
        """This run after its first round, for another observation.

        The first round simulates in the whole prior and depends on no observation, so
        that all observations share its simulations and its network. `run` counts it:
        of `num_simulations`, the pairs of the first round are used, and of
        `num_rounds`, the first.

        Args:
            x_o: The observation, shape `x_shape` or `(1, *x_shape)`.

        Returns:
            A new object that begins with its second round; this one stays as it is.

        Raises:
            RuntimeError: If this run is not at the beginning of its second round, or if
                truncation keeps nothing.
            ValueError: If the observation has NaN or another shape.

        Warns:
            UserWarning: If the observation is far outside of the simulations.
        """
        check_types(MultilevelRounds.for_observation, locals())
        state = self._state
        if state.index != 1 or state.pending or any(state.num_new.values()):
            begun = state.index > 1 or bool(state.fits)
            why = "later rounds are those of one observation"
            raise RuntimeError(
                f"This run is in round {state.index + 1}, "
                f"{why if begun else 'and nothing was trained yet'}. Call "
                "`for_observation` after the first `train()`, before `propose` or "
                "`run`."
            )
        other, shared = copy.copy(self), state.at(check_observation(x_o))
        other._state = replace(shared, prior=self._first_region(shared))
        return other

    def build_posterior(self) -> Any:
        """sbi's posterior with the observation as its default x.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if not self._state.fits:
            raise RuntimeError("Nothing was trained yet. Call `train` or `run` first.")
        posterior = self._posterior(self._state.fits[-1])
        return posterior.set_default_x(self._state.x_o)

    # What subclasses do

    @abstractmethod
    def _posterior(self, estimator: Any) -> Any:
        """sbi's posterior of what a round learned."""

    @abstractmethod
    def _passive(self, num: int) -> Proposals:
        """Proposals that are no active points."""

    @abstractmethod
    def _pool_of(self, acquisition: Acquisition) -> tuple[Any, int]:
        """What a pool of active points is drawn from, and the round of its seed."""

    def _region_after(self, fit: RoundFit) -> tuple[TruncatedPrior, str]:
        """The prior of the next round, and why no further one is needed, or ""."""
        return self._state.prior, self._state.stopped

    def _first_region(self, state: MultilevelState) -> TruncatedPrior:
        """The prior of the second round, for the observation of a state."""
        return state.prior

    def _num_reused(self) -> int:
        """Simulations of level 0 that are as good as new ones in this round."""
        return self.num_inside[0] if self._state.parts else 0

    # Parts of the steps

    def _resume(self, path: str | os.PathLike) -> None:
        """Load a checkpoint, unless this object is in a later round."""
        before = self._state
        self.load(path)
        if self._state.index < before.index:
            self._state = before

    def _weighted(self, part: LevelSimulations) -> LevelSimulations:
        return part

    def _draw(self, num: int, level: int, index: int, is_active: bool) -> Proposals:
        state, settings = self._state, self._settings
        acquisition = settings.acquisition
        with seeded(settings.seed_of(Stream.PROPOSALS, state.index, level, index)):
            if not (acquisition and is_active and level > 0 and num > 0 and state.fits):
                return self._passive(num)
            num_active = acquisition.num_active(num)
            passive = self._passive(num - num_active)
            if num_active == 0:
                return passive
            source, round_ = self._pool_of(acquisition)
            # the last key is the number of draws, with this one
            with seeded(settings.seed_of(Stream.POOL, round_, level, index + 1)):
                pool = source.sample(torch.Size((acquisition.pool_size,)))
            correct = acquisition.correct
            scored = torch.cat([pool, passive.theta]) if correct else pool
            found = state.scores(scored, acquisition, settings.prior)
            scores = found[len(pool) :], found[: len(pool)]
            return propose_active(passive, pool, scores, num_active, correct)

    def _sizes(self, num_simulations: Sequence[int], num_rounds: int) -> dict[int, int]:
        """Simulations of each level in this round; none if no round follows."""
        state, remaining = self._state, [*num_simulations]
        for part in state.parts:
            remaining[part.level] -= len(part)
        pairs = [max(each, 0) for each in remaining[1:]]
        if state.index >= num_rounds or (state.stopped and not any(pairs)):
            return {}
        left = 1 if state.stopped else num_rounds - state.index
        low = max(num_simulations[0] - self._num_reused(), 0)
        return dict(enumerate([low, *(each // left for each in pairs)]))
