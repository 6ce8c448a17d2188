"""Rounds of proposals, simulations and training on several levels, one observation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.data.validation import check_level
from sbi_multilevel.methods.sequential.acquisition import (
    Acquisition,
    importance_weights,
)
from sbi_multilevel.methods.sequential.multilevel_state import MultilevelState
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.round_method import RoundMethod
from sbi_multilevel.methods.sequential.settings import Stream
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior
from sbi_multilevel.simulation.arguments import simulations_per_level
from sbi_multilevel.utils.seeds import derive_seed, seeded

_LOG = logging.getLogger(__name__)
_MAX_KEPT = 0.9  # of a region: if more is kept, further rounds would draw from the same


class MultilevelRounds:
    """Sequential inference with simulations of all levels in each round.

    Args:
        method: How a round trains, and what its networks are used for.
        prior: The prior.
        x_o: The observation, shape `(1, *x_shape)`.
        seed: Seed of all random numbers.
    """

    def __init__(self, method: RoundMethod, prior: Any, x_o: Tensor, seed: int):
        max_draws = method.truncation.max_draws if method.truncation else 1
        self._method, self._seed = method, seed
        self._state = MultilevelState(x_o, TruncatedPrior(prior, (), max_draws))

    @property
    def x_o(self) -> Tensor:
        """The observation, shape `(1, *x_shape)`."""
        return self._state.x_o

    @property
    def truncated_prior(self) -> TruncatedPrior:
        """The prior in the region of the current round; the whole one at first."""
        return self._state.prior

    @property
    def num_inside(self) -> tuple[int, ...]:
        """Simulations in the region of the current round, the lowest level first."""
        return self._state.num_inside()

    @property
    def summary(self) -> dict[str, Any]:
        """Lists with an entry per round, and `stopped`, see the class."""
        return {**self._state.summary, "stopped": self._state.stopped}

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
        state = replace(
            self._state,
            parts=[*self._state.parts],
            num_new=dict(self._state.num_new),
        )
        for part in new:
            state.append(self._weighted(part))
        self._state = state
        return self

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
        pending, thetas = self._state.pending, []
        for level, num in enumerate(numbers):
            drawn = self._drawn(num, level, is_active=True)
            thetas.append(drawn.theta)
            if level in pending:
                pending[level].extend(drawn)
            elif num > 0:
                pending[level] = drawn
        return tuple(thetas)

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
        state, method = self._state, self._method
        if not any(state.num_new.values()):
            raise RuntimeError(
                "No simulations were appended since the last training. Simulate the "
                "parameters of `propose()` and append them."
            )
        self._check_enough()
        with seeded(self._seed_of(Stream.TRAINING, state.index)):
            fit = method.fit(
                state.prior,
                state.parts_inside(),
                None if state.index else state.x_o,
                state.parts_outside(),
            )
        prior = state.prior
        if method.truncation is not None:
            with seeded(self._seed_of(Stream.REGION, state.index)):
                prior = prior.cut(fit.estimator, state.x_o, method.truncation)
        ended = state.ended(fit.estimator, fit.log_score, prior)
        kept = prior.acceptance / state.prior.acceptance
        if method.truncation is not None and state.index > 0 and kept > _MAX_KEPT:
            stopped = (
                f"Round {ended.index} left {kept:.0%} of the region of the prior, so "
                "that further rounds would simulate in the same region."
            )
            _LOG.warning(stopped)
            ended = replace(ended, stopped=stopped)
        self._state = ended
        return fit.estimator

    def build_posterior(self) -> Any:
        """sbi's posterior with the observation as its default x.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        state = self._state
        if not state.fits:
            raise RuntimeError("Nothing was trained yet. Call `train` or `run` first.")
        return self._method.build_posterior(
            state.fits[-1], state.prior.whole, state.x_o
        )

    # Parts of the steps

    def _seed_of(self, stream: Stream, *key: int) -> int:
        return derive_seed(self._seed, stream, *key)

    def _weighted(self, part: LevelSimulations) -> LevelSimulations:
        """Simulations with the weights of their proposals, if these have active points.

        Raises:
            ValueError: If some were not proposed, so that their weights are unknown.
        """
        pending = self._state.pending.get(part.level)
        if self._is_likelihood or pending is None or not pending.is_active.any():
            return part
        weights = pending.weights_of(part.theta)
        columns = part.theta, part.x, part.x_coarse, weights
        return LevelSimulations.trusted(part.level, *columns)

    @property
    def _is_likelihood(self) -> bool:
        """Whether theta may follow any distribution."""
        return self._method.truncation is None

    def _drawn(self, num: int, level: int, is_active: bool = False) -> Proposals:
        """Proposals of this round, from a seed of their own at each call."""
        state, method = self._state, self._method
        key = state.index, level, state.num_draws
        state.num_draws += 1
        with seeded(self._seed_of(Stream.PROPOSALS, *key)):
            is_active = is_active and level > 0 and num > 0 and bool(state.fits)
            if is_active and method.acquisition is not None:
                return self._with_active(num, level, method.acquisition)
            theta = self._passive(num)
        return Proposals(theta, torch.ones(num), state.prior.acceptance)

    def _passive(self, num: int) -> Tensor:
        """Draws from the truncated prior, or of a likelihood from the posterior."""
        if not self._is_likelihood or not self._state.fits or num == 0:
            return self._state.prior.sample((num,))
        return self.build_posterior().sample((num,), show_progress_bars=False)

    def _with_active(self, num: int, level: int, acquisition: Acquisition) -> Proposals:
        """Proposals some of which are active points, the last ones."""
        state, method = self._state, self._method
        round_ = state.index
        if acquisition.fixed_pool and self._is_likelihood:
            round_ = 0  # regions differ, so that their pools do
        seed = self._seed_of(Stream.POOL, round_, level, state.num_draws)
        prior = state.prior.whole if self._is_likelihood else state.prior
        pool, num_active = method.pool(prior, seed), acquisition.num_active(num)
        passive = self._passive(num - num_active)
        # weights need both in one call: scores are known up to a factor of the call
        scored = torch.cat([pool, passive]) if acquisition.correct else pool
        scores = method.disagreement(
            scored, state.fits[-1], state.prior.whole, state.x_o
        )
        of_pool, of_passive = scores[: len(pool)], scores[len(pool) :]
        chosen = of_pool.argsort(descending=True, stable=True)[:num_active]
        weights = torch.ones(num)
        if acquisition.correct:
            everywhere = torch.ones(num, dtype=torch.bool)  # in the region
            of_all = torch.cat([of_passive, of_pool[chosen]])
            weights = importance_weights(everywhere, of_all, of_pool, 1.0, num_active)
        theta = torch.cat([passive, pool[chosen]])
        active = torch.arange(num) >= len(passive)
        return Proposals(theta, weights, state.prior.acceptance, active)

    def _check_enough(self) -> None:
        """Raise unless each level has simulations in the region.

        Raises:
            ValueError: If one has too few.
        """
        inside, least = self.num_inside, self._method.min_simulations
        if len(inside) < 2:
            raise ValueError(
                f"num_simulations in the region is {inside}, of level 0 alone. Append "
                "pairs of the highest level by `append_multilevel_simulations`."
            )
        for level, num in enumerate(inside):
            needed = least if level == len(inside) - 1 else 2
            if num < needed:
                raise ValueError(
                    f"Level {level} has {num} simulations in the region of this round, "
                    f"but needs at least {needed}. Simulate more of `propose()`."
                )
