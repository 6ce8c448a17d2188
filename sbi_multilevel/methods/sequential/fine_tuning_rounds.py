"""Rounds of fine-tuning for one observation: the steps of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations, merged
from sbi_multilevel.data.validation import check_level
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential.acquisition import (
    active_share,
    propose_active,
    scores_at,
)
from sbi_multilevel.methods.sequential.coverage import coverage_levels
from sbi_multilevel.methods.sequential.fine_tuning_state import FineTuningState, sums_of
from sbi_multilevel.methods.sequential.rounds import Rounds
from sbi_multilevel.methods.sequential.settings import FineTuningSettings, Stream
from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.methods.sequential.truncation import Region
from sbi_multilevel.training.ensemble import train_ensemble, trainer_state
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import seeded


class FineTuningRounds(Rounds):
    """Rounds of high-fidelity simulations, on which networks are fine-tuned.

    Args:
        settings: The settings of the run.
        x_o: The observation, shape `(1, *x_shape)`.
    """

    _settings: FineTuningSettings
    _state: FineTuningState

    def __init__(self, settings: FineTuningSettings, x_o: Tensor):
        super().__init__(settings, FineTuningState(x_o))
        self._pretraining = self._new_pretraining()

    # Simulations and networks from elsewhere

    def append_lowfidelity_simulations(
        self, theta: Tensor, x: Tensor, level: int = 0
    ) -> Self:
        """Store simulations of a lower level, drawn from the prior, for pre-training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where
                `parameters` were given, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Their level; the highest level is above all of these.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit, or networks were pre-trained already.
        """
        state = self._state
        if state.index > 0 or state.is_pretrained:
            when = "the first round" if state.index > 0 else "pre-training"
            raise ValueError(
                f"Low-fidelity simulations were appended after {when}. Append all of "
                "them before `train` or `run`, or, with an acquisition, before "
                "`propose`; or start from scratch in a new object."
            )
        check_level(level)
        state.check_x(x)
        count = len(self._pretraining._theta_roundwise)
        seed = self._settings.seed_of(Stream.MISSING_PARAMETERS, level, count)
        with seeded(seed):  # missing columns of theta are drawn
            self._pretraining.append_lowfidelity_simulations(theta, x, level)
        return self

    def warm_start(
        self,
        estimators: ConditionalDensityEstimator | Sequence[ConditionalDensityEstimator],
    ) -> Self:
        """Start from networks that were pre-trained elsewhere.

        They are not trained on low-fidelity simulations then; if any are appended,
        levels are aligned by them.

        Args:
            estimators: One for all members, or one for each, e.g. those of
                `train_ensemble(...).estimators`.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If their number or shapes do not fit.
        """
        check_types(FineTuningRounds.warm_start, locals())
        num_members = self._settings.num_members
        if isinstance(estimators, ConditionalDensityEstimator):
            estimators = [estimators] * num_members
        if len(estimators) != num_members:
            raise ValueError(
                f"estimators are {len(estimators)}, but num_members is {num_members}. "
                "Pass one, or one for each member."
            )
        network_from, settings = self._state.network_from, self._settings
        self._state.networks = [network_from(each, settings) for each in estimators]
        return self

    # The steps of a round

    def propose(self, num_simulations: int) -> Tensor:
        """Parameters to simulate next.

        In the first round they are draws from the prior, later from the truncated
        prior. With an acquisition the last ones are active points, and networks are
        pre-trained first. Several calls in one round add up.

        Args:
            num_simulations: Number of parameters.

        Returns:
            Theta, shape `(num_simulations, d_theta)`.

        Raises:
            RuntimeError: If the truncated prior accepts nothing.
        """
        check_types(FineTuningRounds.propose, locals())
        if num_simulations < 1:
            raise ValueError(f"num_simulations must be >= 1, but is {num_simulations}.")
        (theta,) = self._propose({1: num_simulations})
        return theta

    def append_simulations(
        self, theta: Tensor, x: Tensor, x_coarse: Tensor | None = None
    ) -> Self:
        """Store high-fidelity simulations of this round.

        Args:
            theta: Parameters that were proposed in this round; some may be missing.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`. Simulations
                with NaN or inf are dropped with a warning.
            x_coarse: Outputs of the simulator a level below on the same theta and
                noise; they are trained on before x.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit; nothing is stored then.
        """
        return self._append([LevelSimulations(1, theta, x, x_coarse)])

    def train(self) -> list[ConditionalDensityEstimator]:
        """Train on the simulations that were appended, which ends the round.

        Networks are pre-trained first if that was not done. Then expected coverage is
        computed (see `summary`), and the networks are fine-tuned.

        Returns:
            The networks of the members.

        Raises:
            RuntimeError: If nothing was appended since the last training.
            ValueError: If the low-fidelity simulations are not those of earlier rounds.
        """
        state, proposals = self._state, self._state.proposals
        if state.num_appended == 0:
            raise RuntimeError(
                "No high-fidelity simulations were appended since the last training. "
                "Simulate the parameters of `propose()` and call `append_simulations`."
            )
        self._pretrain()
        # found at most once, as it takes samples of the posterior
        region = cache(self._region)
        entries = {
            "num_simulations": state.num_appended,
            "acceptance_rate": proposals.acceptance if proposals else 1.0,
            "num_active": int(proposals.is_active.sum()) if proposals else 0,
            "coverage": self._coverage_of_round(region),
        }
        low = None
        if self._pretraining._theta_roundwise:
            low = self._pretraining._prepared_simulations()[0]
        low_weights, low_sums = self._weigh(low, region), sums_of(low)
        networks = state.fit(self._settings, low, low_weights)
        self._state = replace(
            state.ended(entries),
            networks=networks,
            low_weights=low_weights,
            low_sums=low_sums,
        )
        return networks

    def build_posterior(self) -> DirectPosterior | EnsemblePosterior:
        """sbi's posterior of the members, with the observation as its default x.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        networks = self._state.networks
        if networks is None:
            raise RuntimeError("Nothing was trained yet. Call `train` or `run` first.")
        each = [DirectPosterior(network, self._settings.prior) for network in networks]
        posterior = EnsemblePosterior(each) if len(each) > 1 else each[0]
        return posterior.set_default_x(self.x_o)

    def expected_coverage(self, theta: Tensor, x: Tensor) -> Tensor:
        """Level of the smallest region of the posterior that holds each true theta.

        If the posterior is calibrated on the region of this round, levels are uniform
        on (0, 1): `(levels < 0.9).float().mean()` is the expected coverage of 90 %
        regions. Call it before `train`, which computes it at the simulations that were
        appended.

        Args:
            theta: Parameters that `propose` returned in this round, shape
                `(n, d_theta)`. Active points are left out.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`.

        Returns:
            Levels, shape `(m,)`.

        Raises:
            RuntimeError: If nothing was trained or proposed yet.
        """
        if self._state.proposals is None:
            raise RuntimeError(
                "Nothing was proposed in this round. Simulate the parameters of "
                "`propose()`, and pass both."
            )
        new = LevelSimulations(1, theta, x)
        self._state.check_x(new.x)
        new = new[self._state.proposals.is_passive(new.theta)]
        return self._coverage_at(new, self._region())

    # Parts of the steps

    def _new_pretraining(self) -> MultilevelTrainer:
        """The trainer that holds the low-fidelity simulations, without any yet."""
        settings = self._settings
        return settings.trainer(MFNPE, settings.config, parameters=settings.parameters)

    def _pretrain(self) -> None:
        """Train a network for each member on low-fidelity simulations, if any."""
        state, settings = self._state, self._settings
        if state.networks is not None or not self._pretraining._theta_roundwise:
            return
        num_networks = 1 if settings.shared_pretraining else settings.num_members
        ensemble = train_ensemble(
            self._pretraining,
            num_networks,
            seed=settings.seed_of(Stream.PRETRAINING),
            num_workers=settings.num_workers,
            train_options=settings.train_options,
        )
        state.networks = ensemble.estimators * (settings.num_members // num_networks)
        state.is_pretrained = True

    def _draw(self, num: int, level: int, index: int, is_active: bool) -> Proposals:
        state, settings, prior = self._state, self._settings, self._settings.prior
        acquisition, is_first = settings.acquisition, state.index == 0
        if acquisition is not None and is_active and is_first:
            if acquisition.first_round:
                self._pretrain()
            is_active = acquisition.first_round and state.networks is not None
        acquisition = acquisition if is_active else None
        with seeded(settings.seed_of(Stream.PROPOSALS, state.index, index)):
            posterior = self.build_posterior() if acquisition or not is_first else None
            region = Region(prior, settings.truncation, None if is_first else posterior)
            num_active = acquisition.num_active(num) if acquisition else 0
            passive = region.draw(num - num_active)
            if acquisition is None or num_active == 0:
                return passive
            # a fixed pool is the same in all rounds; later draws of one round have
            # other pools, so that no point is acquired twice
            fixed = seeded(settings.seed_of(Stream.POOL, index))
            with fixed if acquisition.fixed_pool else nullcontext():
                pool = prior.sample((acquisition.pool_size,))
            both = torch.cat([passive.theta, pool])
            scores = scores_at(posterior, both, acquisition)
            return propose_active(
                passive,
                pool,
                scores.split([len(passive.theta), len(pool)]),
                num_active,
                acquisition.correct,
                region.inside,
                region.acceptance,
            )

    def _region(self) -> Region:
        """The region of this round, the same at each call."""
        settings, index = self._settings, self._state.index
        with seeded(settings.seed_of(Stream.REGION, index)):
            posterior = self.build_posterior() if index > 0 else None
            return Region(settings.prior, settings.truncation, posterior)

    def _weighted(self, part: LevelSimulations) -> LevelSimulations:
        if not self._settings.is_corrected:
            return part
        if self._state.proposals is None:
            raise ValueError(
                "theta was not proposed in this round. Call `propose()` first, or "
                "use `Acquisition(correct=False)`."
            )
        weights = self._state.proposals.weights_of(part.theta)
        return replace(part, weights=weights.clamp_min(1e-12))[weights > 0]

    def _weigh(
        self, low: LevelSimulations | None, region: Callable[[], Region]
    ) -> Tensor | None:
        """Weights that give low-fidelity simulations the density of all proposals."""
        state, acquisition = self._state, self._settings.acquisition
        if state.low_weights is not None and state.low_sums != sums_of(low):
            raise ValueError(
                "The low-fidelity simulations are not those that this run began with, "
                "by which levels are aligned. Call `append_lowfidelity_simulations` "
                "with the same ones before resuming."
            )
        if low is None or self._settings.config.alignment is None:
            return None
        num, weights, proposals = state.num_appended, state.low_weights, state.proposals
        if weights is None or not self._settings.all_rounds:
            weights = torch.zeros(len(low))
        share, acquired = 0.0, torch.zeros(len(low))
        has_active = proposals is not None and bool(proposals.is_active.any())
        if proposals and acquisition and has_active and not acquisition.correct:
            chosen_by = self.build_posterior(), acquisition
            share, acquired = active_share(low.theta, proposals, *chosen_by)
        inside = _equal_shares(region().inside(low.theta))
        acquired = _equal_shares(acquired)
        return weights + (1 - share) * num * inside + share * num * acquired

    def _coverage_of_round(self, region: Callable[[], Region]) -> list[float]:
        """Levels at new simulations, which the networks were not trained on."""
        state, num = self._state, self._settings.num_coverage_simulations
        if state.proposals is None or state.networks is None or num == 0:
            return []
        new = merged(state.new_simulations)
        chosen = state.proposals.is_passive(new.theta).nonzero()[:num, 0]
        return self._coverage_at(new[chosen], region()).tolist()

    def _coverage_at(self, new: LevelSimulations, region: Region) -> Tensor:
        new = new[region.inside(new.theta)]
        with seeded(self._settings.seed_of(Stream.COVERAGE, self._state.index)):
            posterior = self.build_posterior()
            return coverage_levels(posterior, new.theta, new.x, region.inside)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pretraining": trainer_state(self._pretraining)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._pretraining = self._new_pretraining()
        vars(self._pretraining).update(state["_pretraining"])


def _equal_shares(chosen: Tensor) -> Tensor:
    """Equal weights of the chosen ones, with sum 1; zeros where none is chosen."""
    return chosen / chosen.sum().clamp_min(1)
