r"""What do the cheap levels tell about the dear ones? From rows that are there.

Before more simulations are paid for, the rows at hand can say whether the level below
is of use. For each level and the one below it:

- the correlation of each summary of x with that of :math:`x_\mathrm{coarse}`, over the
  prior and beyond theta (`sbi_multilevel.diagnostics.correlations`);
- their mutual information, as a share of the entropy power, and the uncertainty
  coefficient as published (`sbi_multilevel.diagnostics.information`);
- :math:`\mathrm{Var}[f_l - f_{l-1}] / \mathrm{Var} f_l` of the losses of quick fits,
  and how many high-fidelity rows the pairs and the cheap rows stand for
  (`sbi_multilevel.diagnostics.losses`);
- whether a probe trained on the level below reads theta at the level itself
  (`sbi_multilevel.diagnostics.coherence`).

Only the last is known where rows are not paired. The others tell different things: two
levels may share their noise and still code theta differently, and a level of other
noise may teach all there is to know of theta. Heavy tails are tamed first
(`sbi_multilevel.level_maps.tail_transform`) wherever moments are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.coherence import coherence
from sbi_multilevel.diagnostics.correlations import pair_correlations
from sbi_multilevel.diagnostics.information import (
    Information,
    differential_entropy,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics.level_fidelity import FidelityReport, LevelFidelity
from sbi_multilevel.diagnostics.losses import loss_pairs
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import spread, varies
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.utils.argument_types import check_types

if TYPE_CHECKING:
    from sbi_multilevel.allocation.quick_fit import Inference

_MIN_PAIRS = 20
_MAX_PAIRS = 2_000  # that the mutual information is estimated from


def fidelity_report(
    simulations: MultilevelSimulations,
    *,
    embedding: Callable[[Tensor], Tensor] | None = None,
    inference: Inference | None = None,
    prior: Any = None,
    train_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> FidelityReport:
    r"""Report what each level tells about the one above it.

    Weights of rows are ignored: the report is about the rows as they are.

    Args:
        simulations: LevelArrays of two levels or more, paired or not, at least 10 of each.
        embedding: Function of outputs, shape `(n, *x_shape)`, that returns summaries,
            shape `(n, k)`; needed where x is no vector.
        inference: What the loss :math:`f_l` is of, as of `pilot`; `None` for NPE.
        prior: Passed to `inference`, if that is a function of the prior.
        train_options: Arguments of `train` of the quick fits; a few fast epochs by
            default.
        seed: Seed of fits, folds and bootstraps, an integer >= 0.

    Returns:
        A verdict for each level from 1 up, and what it rests on. `print` it.

    Raises:
        ValueError: If there is one level only, x is no vector of summaries, or a level
            has fewer than 10 rows.

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
        >>> report.levels[0].tells
        'nothing'
        >>> print(report.verdicts[0])
        Level 0 tells nothing about level 1. x of level 0 tells a probe nothing ...
    """
    check_types(fidelity_report, locals())
    if len(simulations) < 2:
        raise ValueError(
            f"simulations has {len(simulations)} level, but the report compares two or "
            "more. Pass rows of the level below as well."
        )
    embedded = _embedded(simulations, embedding)
    losses = loss_pairs(
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
    """The rows with summaries in the place of x.

    Raises:
        ValueError: If x, or what the embedding returns, is no vector a row.
    """

    def summaries(x: Tensor) -> Tensor:
        if embedding is not None:
            with torch.no_grad():
                x_shape, x = x.shape, embedding(x)
            if x.ndim != 2 or len(x) != x_shape[0]:
                raise ValueError(
                    f"embedding returned shape {tuple(x.shape)} for x of shape "
                    f"{tuple(x_shape)}, but must return (n, k), a row of summaries "
                    "each."
                )
        elif x.ndim != 2:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} a row, but the report is about "
                "vectors. Pass summaries of x, or embedding= a function that makes "
                "them, e.g. `lambda x: x.flatten(1)` or a trained embedding network."
            )
        return x.detach().to("cpu", torch.float32)

    # rows are valid already, but summaries need not be
    make = LevelSimulations.trusted if embedding is None else LevelSimulations
    parts = []
    for rows in simulations:
        x_coarse = None if rows.x_coarse is None else summaries(rows.x_coarse)
        parts.append(make(rows.level, rows.theta.cpu(), summaries(rows.x), x_coarse))
    return MultilevelSimulations(tuple(parts))


def _compare(
    below: LevelSimulations, rows: LevelSimulations, seed: int
) -> LevelFidelity:
    """A level and the one below it, the loss left out."""
    forward_tails = TailTransform.fit([below.x, rows.x])
    low, high = (_tamed(side, forward_tails) for side in (below, rows))
    # rows may come in an order, e.g. of theta
    low, high = low.shuffled(seed), high.shuffled(seed)
    columns = low.theta, low.x, high.theta, high.x
    probe = coherence(*columns, high.x_coarse, level=rows.level)
    if high.x_coarse is None:
        return LevelFidelity(rows.level, probe)
    correlations = pair_correlations(*columns, high.x_coarse, seed=seed)
    if len(high) < _MIN_PAIRS:
        return LevelFidelity(rows.level, probe, correlations)
    found = _information(high[np.arange(min(len(high), _MAX_PAIRS))], seed)
    entropy = _entropy(high.x)
    published = uncertainty_coefficient(found.nats, entropy)
    return LevelFidelity(rows.level, probe, correlations, found, published)


def _tamed(rows: LevelSimulations, forward_tails: TailTransform) -> LevelArrays:
    x_coarse = None if rows.x_coarse is None else forward_tails(rows.x_coarse)
    return LevelArrays.of(
        LevelSimulations.trusted(
            rows.level, rows.theta, forward_tails(rows.x), x_coarse
        )
    )


def _information(rows: LevelArrays, seed: int) -> Information:
    assert rows.x_coarse is not None
    sides = (torch.from_numpy(side) for side in (rows.x, rows.x_coarse))
    return mutual_information(*sides, seed=seed)


def _entropy(x: np.ndarray) -> float:
    """Differential entropy in units of standard deviations; NaN without any."""
    x = x[:, varies(x)]
    return differential_entropy(x / spread(x)) if x.size else math.nan
