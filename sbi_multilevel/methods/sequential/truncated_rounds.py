"""Rounds of all levels in nested regions of the prior."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from sbi.inference import DirectPosterior
from torch import Tensor

from sbi_multilevel.data.priors import as_one_prior
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_observation
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.multilevel_rounds import MultilevelRounds
from sbi_multilevel.methods.sequential.multilevel_state import MultilevelState, RoundFit
from sbi_multilevel.methods.sequential.settings import MultilevelSettings, Stream
from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.methods.sequential.truncated_prior import (
    TruncatedPrior,
    component_of,
)
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.simulation.arguments import check_seed
from sbi_multilevel.training.config import MethodConfig, check_config
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import seeded

_LOG = logging.getLogger(__name__)
_MAX_KEPT = 0.9  # of a region: if more is kept, further rounds would draw from the same


class TruncatedRounds(MultilevelRounds):
    """Rounds of a trainer of posteriors.

    Arguments and errors are those of `HybridTSNPE`.
    """

    _trainer_type: ClassVar[type[MultilevelTrainer]]
    _config_type: ClassVar[type[MethodConfig]]

    def __init__(
        self,
        prior: Any,
        x_o: Tensor,
        density_estimator: Any = "maf",
        *,
        config: MethodConfig | None = None,
        truncation: Truncation | None = None,
        acquisition: Acquisition | None = None,
        seed: int = 0,
        train_options: Mapping[str, Any] | None = None,
    ):
        check_types(TruncatedRounds.__init__, locals(), but=("seed",))
        check_seed(seed)
        truncation = truncation or Truncation(1e-3, 20_000)
        if truncation.sample_with != "rejection":
            raise ValueError(
                f"Truncation(sample_with={truncation.sample_with!r}) draws "
                "approximately, but simulations of all rounds are used as draws from "
                "one truncated prior. Use sample_with='rejection'."
            )
        config = check_config(config, self._config_type, {})
        if acquisition is not None and not acquisition.correct:
            raise ValueError(
                f"acquisition={acquisition} gives active points no weights, but all "
                "simulations are used as draws from one truncated prior. Use "
                "`Acquisition(correct=True)`."
            )
        has_members = isinstance(config, HybridConfig) and not config.distill
        if acquisition is not None and not has_members:
            raise ValueError(
                f"acquisition={acquisition} compares the members of a mixture, but "
                "there is one network. Use `HybridTSNPE` with "
                "`config=HybridConfig(distill=False)`."
            )
        settings = MultilevelSettings(
            prior=as_one_prior(prior),
            trainer_type=self._trainer_type,
            density_estimator=density_estimator,
            config=config,
            train_options=dict(train_options or {}),
            truncation=truncation,
            acquisition=acquisition,
            seed=seed,
        )
        super().__init__(settings, check_observation(x_o))

    @property
    def truncated_prior(self) -> TruncatedPrior:
        """The prior in the region of the current round; the whole one at first."""
        return self._state.prior

    def _posterior(self, estimator: Any) -> DirectPosterior:
        return DirectPosterior(estimator, self._settings.prior)

    def _passive(self, num: int) -> Proposals:
        prior = self._state.prior
        return Proposals(prior.sample((num,)), torch.ones(num), prior.acceptance)

    def _pool_of(self, acquisition: Acquisition) -> tuple[Any, int]:
        return self._state.prior, self._state.index

    def _region_after(self, fit: RoundFit) -> tuple[TruncatedPrior, str]:
        state, estimator = self._state, component_of(fit.estimator, fit.best)
        prior = self._region(state.prior, estimator, state.x_o, state.index)
        kept, stopped = prior.acceptance / state.prior.acceptance, state.stopped
        if state.index > 0 and kept > _MAX_KEPT:
            stopped = (
                f"Round {state.index + 1} left {kept:.0%} of the region of the prior, "
                "so that further rounds would simulate in the same region."
            )
            _LOG.warning(stopped)
        return prior, stopped

    def _first_region(self, state: MultilevelState) -> TruncatedPrior:
        whole = TruncatedPrior(self._settings.prior, (), state.prior.max_draws)
        return self._region(whole, state.prior.cuts[0].estimator, state.x_o, 0)

    def _region(
        self, prior: TruncatedPrior, estimator: Any, x_o: Tensor, index: int
    ) -> TruncatedPrior:
        """The region of round `index + 1`."""
        truncation = self._settings.truncation
        assert truncation is not None
        with seeded(self._settings.seed_of(Stream.REGION, index)):
            return prior.cut(estimator, x_o, truncation)

    def _weighted(self, part: LevelSimulations) -> LevelSimulations:
        pending = self._state.pending.get(part.level)
        if pending is None or not bool(pending.is_active.any()):
            return part
        columns = part.theta, part.x, part.x_coarse, pending.weights_of(part.theta)
        return LevelSimulations.trusted(part.level, *columns)
