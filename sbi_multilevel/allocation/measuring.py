"""Measures variances by quick fits, or by the norms of outputs and derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.allocation.extra_runs import ExtraRuns
from sbi_multilevel.allocation.optimal import check_costs
from sbi_multilevel.allocation.quick_fit import Inference, get_trainer, held_out_losses
from sbi_multilevel.allocation.variances import (
    Measurements,
    Method,
    loss_measurements,
    norm_measurements,
)
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.simulate import GrowingSimulations

# length of a step in theta, in standard deviations of the prior
_STEP = 0.01


class Measuring:
    """How variances are estimated; arguments as of `pilot`."""

    def __init__(
        self,
        growing: GrowingSimulations,
        inference: Inference | None,
        method: Method,
        num_folds: int,
        train_options: Mapping[str, Any],
    ):
        if method not in get_args(Method):
            raise ValueError(
                f"method must be one of {get_args(Method)}, but is {method!r}."
            )
        if num_folds < 2:
            raise ValueError(
                f"num_folds must be >= 2, but is {num_folds}: losses are evaluated by "
                "a fit to other simulations."
            )
        if growing.options.costs is not None:
            check_costs(growing.options.costs)
        is_loss = method == "loss"
        self.method = method
        self._trainer = get_trainer(inference, growing.prior) if is_loss else None
        self._seed, self._num_folds = growing.seed, num_folds
        self._train_options = train_options

    def extra_cost(
        self, num_simulations: Sequence[int], costs: Sequence[float]
    ) -> float:
        """Cost of the extra runs."""
        total = 0.0
        for level, number in enumerate(num_simulations):
            total += number * sum(costs[: max(level - 1, 0)])
            if self.method == "norm":
                total += number * sum(costs[: level + 1])
        return total

    def measure(
        self, simulations: MultilevelSimulations, extra: ExtraRuns
    ) -> Measurements:
        """Measurements of all simulations; those after the pilot have only pairs."""
        outputs = []
        for data, sides in zip(simulations, extra.below()):
            own = [x for x in (data.x_coarse, data.x) if x is not None]
            outputs.append([_padded(x, len(data)) for x in sides[:-2]] + own)
        if self._trainer is None:
            return self._norm(simulations, outputs, extra)
        losses, fits = held_out_losses(
            self._trainer,
            simulations,
            outputs,
            seed=self._seed,
            num_folds=self._num_folds,
            train_options=self._train_options,
        )
        return loss_measurements(losses, fits)

    def _norm(
        self,
        simulations: MultilevelSimulations,
        outputs: Sequence[Sequence[Tensor]],
        extra: ExtraRuns,
    ) -> Measurements:
        theta = torch.cat([data.theta for data in simulations])
        aside = extra.aside(_STEP * theta.std(dim=0))
        top = simulations[-1].x.flatten(1).double()
        # in units of the spread of level L; constant features do not contribute
        scale = torch.where(top.std(dim=0) > 0, top.std(dim=0), torch.inf)

        def standardised(x: Tensor) -> np.ndarray:
            return ((x.flatten(1).double() - top.mean(dim=0)) / scale).numpy()

        here = [[standardised(x) for x in sides] for sides in outputs]
        there = [[standardised(x) for x in sides] for sides in aside]
        slopes = [
            [(b - a) / _STEP for a, b in zip(*sides)] for sides in zip(here, there)
        ]
        return norm_measurements(here, slopes)


def _padded(x: Tensor, length: int) -> Tensor:
    """x, extended by NaN to a length."""
    behind = torch.full((length - len(x), *x.shape[1:]), torch.nan)
    return torch.cat([x, behind])
