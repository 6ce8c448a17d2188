r"""Informativeness of each level about the next one, from available simulations.

For each level and the level below it the report compares:

- the correlation of each summary of x with that of :math:`x_\mathrm{coarse}`,
  marginally and given theta (`sbi_multilevel.diagnostics.correlations`);
- their mutual information, as a share of the entropy power, and the uncertainty
  coefficient (`sbi_multilevel.diagnostics.information`);
- :math:`\mathrm{Var}[f_l - f_{l-1}] / \mathrm{Var} f_l` of the losses of quick fits,
  and the effective number of high-fidelity simulations
  (`sbi_multilevel.diagnostics.loss_variance`);
- the scores of a probe of the lower level on the level itself
  (`sbi_multilevel.diagnostics.coherence`).

Only the last is available without pairs. The criteria differ: two levels may share
their noise and still encode theta differently, and a level with independent noise may
be fully informative about theta. Features with heavy tails are transformed first
(`sbi_multilevel.level_maps.tail_transform`) wherever moments are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.coherence import Coherence, coherence
from sbi_multilevel.diagnostics.correlations import Correlations, pair_correlations
from sbi_multilevel.diagnostics.information import (
    Information,
    differential_entropy,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics.loss_variance import LossVariance, loss_variances
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import spread, varies
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.utils.argument_types import check_types

_MIN_PAIRS, _MAX_PAIRS = 20, 2_000  # of the mutual information
_SIGNIFICANT = 2.0  # standard errors
_MODERATE, _HIGH = 0.1, 0.8  # shares of the entropy power


@dataclass(frozen=True, eq=False)
class LevelFidelity:
    """Comparison of a level with the lower level.

    Args:
        level: The level.
        coherence: Scores of a probe of the lower level.
        correlations: Correlations of x and x_coarse; `None` without pairs.
        information: Mutual information of x and x_coarse; `None` without pairs, or with
            too few.
        uncertainty_coefficient: I / H, with the differential entropy H of x in units of
            its standard deviations; NaN if H is not positive.
        loss: Variance of the loss with and without pairs; `None` without pairs, or with
            too few.
    """

    level: int
    coherence: Coherence
    correlations: Correlations | None = None
    information: Information | None = None
    uncertainty_coefficient: float = math.nan
    loss: LossVariance | None = None

    @property
    def is_paired(self) -> bool:
        """Whether the simulations are paired."""
        return self.correlations is not None

    @property
    def informativeness(self) -> Literal["high", "moderate", "low", "none"]:
        """How informative the lower level is about this one.

        *high*: a probe of the lower level predicts theta better than one of the
        available simulations of the level, beyond the errors of both, or x_coarse
        removes 80 % of the entropy power of x. *moderate*: the probe predicts theta, or
        x_coarse removes 10 %. *none*: neither theta nor x is predicted. *low*:
        otherwise.
        """
        probe, best, own = self.coherence, self.coherence.best, self.coherence.own
        transfers = probe.is_informative and best.value > _SIGNIFICANT * best.error
        found, share = self.information, 0.0
        if found is not None and found.nats > _SIGNIFICANT * found.error:
            share = found.informational_r2
        gain, error = best.value - own.value, math.hypot(best.error, own.error)
        if (transfers and gain > error) or share > _HIGH:
            return "high"
        if transfers or share > _MODERATE:
            return "moderate"
        return "low" if probe.is_informative or share > 0 else "none"

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        probe = self.coherence
        text = (
            f"Informativeness of level {self.level - 1} about level {self.level}: "
            f"{self.informativeness}. {probe.verdict}"
        )
        if probe.is_informative:
            text += (
                f" A probe trained on the {probe.num_simulations} simulations of level "
                f"{self.level} has R² {probe.own}."
            )
        if self.loss is not None:
            text += f" {self.loss.verdict(self.level)}"
        return text

    def table(self) -> str:
        """All estimates."""
        loss, probe, coefficient = self.loss, self.coherence, None
        if self.information is not None:
            coefficient = f"{self.uncertainty_coefficient:.3f}"
            if math.isnan(self.uncertainty_coefficient):
                coefficient = "undefined: H is not positive"
        estimates = {
            "information I(x; x_coarse)": self.information,
            "  uncertainty coefficient I / H(x)": coefficient,
            "Var[f_l - f_(l-1)] / Var f_l": loss and loss.variance_ratio,
            "correlation of f given theta": loss and loss.correlation,
            "effective high-fidelity simulations": loss and loss.effective_num_high,
            f"R² of a probe, at level {self.level - 1}": probe.below,
            f"  at level {self.level}": probe.transfer,
            "  after an affine map of summaries": probe.aligned,
            f"  trained at level {self.level}": probe.own,
        }
        unknown, summaries = "unknown: too few pairs", []
        if self.correlations is None:
            unknown = "unknown: simulations are not paired"
            estimates["correlation of summaries"] = None
        else:
            summaries = self.correlations.table()
        rows = [f"  {name:<37} {value or unknown}" for name, value in estimates.items()]
        return "\n".join(rows + summaries)


@dataclass(frozen=True, eq=False)
class FidelityReport:
    """Comparison of each level with the lower level; `print` shows it.

    Args:
        levels: Levels 1 to L, each with the level below.
        num_simulations: Number of simulations of each level.
    """

    levels: tuple[LevelFidelity, ...]
    num_simulations: tuple[int, ...]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each comparison in words, for levels 1 to L."""
        return tuple(level.verdict for level in self.levels)

    def __str__(self) -> str:
        counts = " + ".join(map(str, self.num_simulations))
        parts = [f"{level.verdict}\n{level.table()}" for level in self.levels]
        return "\n".join([f"Fidelity, from {counts} simulations.", *parts])


def fidelity_report(
    simulations: MultilevelSimulations,
    *,
    embedding: Callable[[Tensor], Tensor] | None = None,
    inference: Inference | None = None,
    prior: Any = None,
    train_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> FidelityReport:
    r"""Report how informative each level is about the next one.

    Weights of simulations are ignored.

    Args:
        simulations: Simulations of two levels or more, paired or not, at least 10 of
            each.
        embedding: Function of outputs, shape `(n, *x_shape)`, that returns summaries,
            shape `(n, k)`; required if x is not a vector.
        inference: Trainer that defines the loss :math:`f_l`, as for `pilot`; `None` for
            NPE.
        prior: Passed to `inference` if that is a function of the prior.
        train_options: Arguments of `train` of the quick fits; 30 epochs at most by
            default.
        seed: Seed of fits, folds and bootstraps, an integer >= 0.

    Returns:
        A comparison for each level from 1 up. `print` it.

    Raises:
        ValueError: If there is one level only, x is not a vector, or a level has fewer
            than 10 simulations.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi_multilevel import LevelSimulations
        >>> seeded = torch.Generator().manual_seed(0)
        >>> theta, noise, useless = torch.randn(3, 1_000, 1, generator=seeded)
        >>> x = theta + 0.1 * noise
        >>> report = fidelity_report(
        ...     MultilevelSimulations((
        ...         LevelSimulations(0, theta[100:], useless[100:]),
        ...         LevelSimulations(1, theta[:100], x[:100]),
        ...     ))
        ... )
        >>> report.levels[0].informativeness
        'none'
        >>> print(report.verdicts[0])
        Informativeness of level 0 about level 1: none. A probe of level 0 does not ...
    """
    check_types(fidelity_report, locals())
    if len(simulations) < 2:
        raise ValueError(
            f"simulations has {len(simulations)} level, but two or more are compared. "
            "Add simulations of a lower level."
        )
    data = _embedded(simulations, embedding)
    losses = loss_variances(
        data, inference=inference, prior=prior, train_options=train_options, seed=seed
    )
    levels = [
        replace(_compare(*sides, seed), loss=loss)
        for loss, sides in zip(losses, pairwise(data))
    ]
    return FidelityReport(tuple(levels), simulations.num_simulations)


def _embedded(
    simulations: MultilevelSimulations, embedding: Callable[[Tensor], Tensor] | None
) -> MultilevelSimulations:
    """The simulations with summaries, which are vectors, instead of x."""

    def summaries(x: Tensor) -> Tensor:
        if embedding is not None:
            with torch.no_grad():
                x_shape, x = x.shape, embedding(x)
            if x.ndim != 2 or len(x) != x_shape[0]:
                raise ValueError(
                    f"embedding returned shape {tuple(x.shape)} for x of shape "
                    f"{tuple(x_shape)}. Return summaries of shape (n, k)."
                )
        elif x.ndim != 2:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])}, but must be a vector. Pass "
                "summaries as x, or pass embedding=, e.g. `lambda x: x.flatten(1)` or "
                "a trained embedding network."
            )
        return x.detach().to("cpu", torch.float32)

    # the simulations were validated, but the summaries were not
    make = LevelSimulations.trusted if embedding is None else LevelSimulations
    parts = []
    for level in simulations:
        x_coarse = None if level.x_coarse is None else summaries(level.x_coarse)
        parts.append(make(level.level, level.theta.cpu(), summaries(level.x), x_coarse))
    return MultilevelSimulations(tuple(parts))


def _compare(
    lower: LevelSimulations, level: LevelSimulations, seed: int
) -> LevelFidelity:
    """Compare a level with the lower level, without the loss."""
    forward = TailTransform.fit([lower.x, level.x])

    def transformed(x: np.ndarray) -> np.ndarray:
        return forward(torch.from_numpy(x).float()).double().numpy()

    # simulations may be ordered, e.g. by theta
    arrays = map(LevelArrays.of, (lower, level))
    low, high = (each.map_x(transformed).shuffled(seed) for each in arrays)
    columns = low.theta, low.x, high.theta, high.x
    probe = coherence(*columns, high.x_coarse, level=level.level)
    if high.x_coarse is None:
        return LevelFidelity(level.level, probe)
    correlations = pair_correlations(*columns, high.x_coarse, seed=seed)
    if len(high) < _MIN_PAIRS:
        return LevelFidelity(level.level, probe, correlations)
    pairs = (torch.from_numpy(x[:_MAX_PAIRS]) for x in (high.x, high.x_coarse))
    found = mutual_information(*pairs, seed=seed)
    x = high.x[:, varies(high.x)]  # in units of standard deviations
    entropy = differential_entropy(x / spread(x)) if x.size else math.nan
    coefficient = uncertainty_coefficient(found.nats, entropy)
    return LevelFidelity(level.level, probe, correlations, found, coefficient)
