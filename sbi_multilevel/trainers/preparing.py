"""Simulations made fit to train on, and posteriors that know how far these reach."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sbi_multilevel.alignment.constant import fill_constant, for_scaling
from sbi_multilevel.alignment.preparation import (
    check_pretrained,
    check_theta_varies,
    check_vectors,
    without_extremes,
)
from sbi_multilevel.estimators import Modelled
from sbi_multilevel.observations import TrainingRange, Watch, WatchedEstimator
from sbi_multilevel.simulations import MultilevelSimulations
from sbi_multilevel.trainers.epochs import EpochMixin
from sbi_multilevel.trainers.network import moments_of
from sbi_multilevel.validation import transform_of

_SEED_OF_NOISE = 0  # the same in all trainings on the same simulations


class PreparingMixin(EpochMixin):
    """What every recipe does with simulations before training and with a posterior."""

    _modelled: ClassVar[Modelled]
    _prepares: bool = True  # not where another trainer prepared the simulations
    _training_range: TrainingRange | None = None  # before training

    def _prepared_simulations(self) -> MultilevelSimulations:
        """All simulations as the recipe uses them, fit to train on."""
        simulations = self._check_trainable()
        if not self._prepares:
            return simulations
        if self._modelled == "x":
            check_vectors(simulations[0])
        simulations = without_extremes(simulations)
        highest, *lower = (rows.x for rows in reversed(simulations.levels))
        self._training_range = TrainingRange.of(highest, lower)
        simulations = fill_constant(simulations, self._modelled, _SEED_OF_NOISE)
        if self._warm_start is not None:
            moments = moments_of(self._warm_start, simulations[-1].x)
            check_pretrained(moments, simulations)
        elif self._neural_net is None:
            check_theta_varies(simulations[0])
        return simulations

    def _rows_to_build_on(self) -> tuple[Tensor, ...]:
        """Theta, x and prior masks; z-scoring divides by the deviation of x."""
        theta, x, masks = self._term_rows.dataset.tensors[:3]
        # the rows of the first stage, which the network is built on
        chosen = x[self.train_indices]
        scaled = for_scaling(chosen)
        if scaled is not chosen:
            index = torch.as_tensor(self.train_indices, device=x.device)
            x = x.index_copy(0, index, scaled)
        return theta, x, masks

    @property
    def _watch(self) -> Watch | None:
        """Looks at observations; `None` where training was that of the parent."""
        if not self._uses_recipe or self._training_range is None:
            return None
        return Watch(self._training_range)

    def _create_posterior(
        self, estimator: Any, prior: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As the parent; the network looks at the observations it is given."""
        watch = self._watch
        if watch is not None and self._modelled == "theta":
            estimator = WatchedEstimator(estimator, watch)
        try:
            return super()._create_posterior(estimator, prior, *args, **kwargs)
        except AssertionError:
            transform_of(prior)  # says what is wrong with it
            raise
