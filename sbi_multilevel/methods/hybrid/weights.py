"""Weights of the components of a hybrid mixture, and its effective sample size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logsumexp

from sbi_multilevel.estimators.stacking import stacking_weights
from sbi_multilevel.losses.effective_sample_size import (
    EffectiveSampleSize,
    effective_sample_size,
)

POOLED, ALONE, PRIOR = "with lower levels", "high fidelity alone", "prior"
_PSEUDO_COUNT = 0.5
_MIN_WEIGHT = 0.02  # of networks, which take time to evaluate; the prior takes none

# held-out loss of each high-fidelity simulation under each component
Losses = Mapping[str, np.ndarray]


def mixture_weights(
    losses: Losses, importance: np.ndarray | None = None
) -> dict[str, float]:
    r"""Stacking weights of the components, if they improve the held-out log score.

    The first component has all weight but :math:`1 / (n + 1)`, which the prior has,
    unless stacking weights increase the held-out log score by more than its standard
    error.

    Args:
        losses: Held-out losses of each component by name, each of shape `(n,)`.
        importance: Weight of each simulation, shape `(n,)`, with mean 1; `None` for
            equal weights.
    """
    log_densities = -np.stack(list(losses.values()), axis=1)
    names, count = list(losses), len(log_densities)
    plain = np.zeros(len(names))
    plain[names.index(PRIOR) if PRIOR in names else 0] = 1 / (count + 1)
    plain[0] += 1 - plain.sum()
    stacked = stacking_weights(log_densities, [_PSEUDO_COUNT] * len(names), importance)
    gain = _mixture(log_densities, stacked) - _mixture(log_densities, plain)
    if importance is not None:
        gain = gain * importance
    is_better = gain.mean() > gain.std() / np.sqrt(count)
    weights = dict(zip(names, (stacked if is_better else plain).tolist()))
    if POOLED in weights and weights[ALONE] < _MIN_WEIGHT:
        weights[POOLED] += weights.pop(ALONE)
    return weights


def mixture_sample_size(
    losses: Losses,
    on_half: np.ndarray,
    folds: Sequence[np.ndarray],
    importance: np.ndarray | None = None,
) -> EffectiveSampleSize:
    """Effective sample size of the mixture, relative to that without lower levels.

    Args:
        losses: Held-out losses of each component by name, each of shape `(n,)`.
        on_half: Those of networks trained on half of the high-fidelity simulations
            alone, shape `(n,)`.
        folds: Indices of the simulations of each fold.
        importance: Weight of each simulation, shape `(n,)`, with mean 1; `None` for
            equal weights.
    """
    without = {name: each for name, each in losses.items() if name != POOLED}
    half = {**without, ALONE: on_half}
    of_mixtures = [
        _held_out_losses(each, folds, importance) for each in (losses, without, half)
    ]
    return effective_sample_size(*of_mixtures, num_high=len(on_half))


def _mixture(log_densities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return logsumexp(log_densities, axis=1, b=weights)


def _held_out_losses(
    losses: Losses, folds: Sequence[np.ndarray], importance: np.ndarray | None
) -> np.ndarray:
    """Losses under the mixture whose weights are those of the other folds."""
    table = -np.stack(list(losses.values()), axis=1)
    mixed = np.empty(len(table))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(table)), fold)
        weights = mixture_weights(
            {name: each[others] for name, each in losses.items()},
            None if importance is None else importance[others],
        )
        values = np.array([weights.get(name, 0.0) for name in losses])
        mixed[fold] = -_mixture(table[fold], values)
    return mixed if importance is None else mixed * importance
