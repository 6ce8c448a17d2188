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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.allocation.quick_fit import Inference
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.coherence import coherence
from sbi_multilevel.diagnostics.correlations import pair_correlations
from sbi_multilevel.diagnostics.information import (
    differential_entropy,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics.level_fidelity import FidelityReport, LevelFidelity
from sbi_multilevel.diagnostics.loss_variance import loss_variances
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import spread, varies
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.utils.argument_types import check_types

_MIN_PAIRS, _MAX_PAIRS = 20, 2_000  # of the mutual information


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
    embedded = _embedded(simulations, embedding)
    losses = loss_variances(
        embedded,
        inference=inference,
        prior=prior,
        train_options=train_options,
        seed=seed,
    )
    levels = [
        replace(_compare(embedded[level - 1], embedded[level], seed), loss=loss)
        for level, loss in enumerate(losses, start=1)
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
    # simulations may be ordered, e.g. by theta
    low, high = (_transformed(s, forward).shuffled(seed) for s in (lower, level))
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


def _transformed(level: LevelSimulations, forward: TailTransform) -> LevelArrays:
    x_coarse = None if level.x_coarse is None else forward(level.x_coarse)
    return LevelArrays.of(
        LevelSimulations.trusted(level.level, level.theta, forward(level.x), x_coarse)
    )
