r"""Cross-validation of level maps: scores by held-out high-fidelity simulations.

No map is best on all tasks, and the wrong one does harm: a covariance of forty features
estimated from twenty simulations is worse than none, and where low and high fidelity
share their noise a paired map is far better than all that do not use it. Each kind is
therefore fitted to all folds of the high-fidelity simulations but one, and the mapped
simulations are scored by that one,

.. math::

    \hat T = \operatorname{argmax}_T \sum_k \sum_{i \in F_k}
    s\bigl(x_i, \theta_i;\; T_{-k}(x_L, \theta)\bigr),

with :math:`F_k` the simulations of fold k, :math:`T_{-k}` the map fitted without them,
and s the log score of a high-fidelity simulation under the synthetic likelihood of the
mapped ones (`sbi_multilevel.level_maps.selection.scorer`). At most 500 high-fidelity
simulations are scored, under at most 20 000 mapped ones, by 64 principal components
where x has more features.

Of maps that use pairs only one takes part, the one that predicts the high-fidelity side
of held-out pairs best from the other side,

.. math::

    \hat T_\text{paired} = \operatorname{argmin}_T \sum_j \log \sum_k \sum_{i \in F_k}
    \mathrm{CRPS}\bigl(T_{-k}(x_{L, i}, \theta_i)_j,\; x_{ij}\bigr) .

The continuous ranked probability score is proper, and these maps all have the same
inputs. By the chain rule, the divergence of mapped from high-fidelity x given theta is
at most that given theta *and* low-fidelity x, which pairs show directly, without a
model of x given theta: differences between maps that are lost in the error of a
synthetic likelihood are plain there.

Reference: Gneiting and Raftery (2007), *Strictly proper scoring rules, prediction, and
estimation*, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, level_map_kind
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.regression import varies
from sbi_multilevel.level_maps.selection.scorer import MapScorer

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import Target

_MAX_HELD_OUT = 500  # simulations that are scored
_MAX_MAPPED = 20_000  # simulations that a synthetic likelihood is fitted to
_MAX_FEATURES = 64  # of x in scores
_NUM_DRAWS = 64  # of a map at the lower side of a pair
_TINY = 1e-12

Scores = dict[MapChoice, np.ndarray]


def choose_scorer(fitter: MapFitter, high: LevelArrays, target: Target) -> MapScorer:
    """The scorer of maps of these low-fidelity simulations to these high-fidelity ones.

    Args:
        fitter: Fits the maps.
        high: High-fidelity simulations; low-fidelity simulations at their parameters
            are not used for the choice.
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
    """
    some = fitter.low.first(_MAX_MAPPED).x
    compress = _compression(fitter.forward_tails(np.concatenate((some, high.x))))
    return MapScorer.chosen(
        fitter.apart_from(high.theta).low,
        target,
        outputs=lambda x: compress(fitter.forward_tails(x)),
    )


def score_maps(
    fitter: MapFitter,
    choices: Sequence[MapChoice],
    high: LevelArrays,
    folds: Sequence[np.ndarray],
    scorer: MapScorer,
) -> tuple[Scores, Scores]:
    """Score each map by held-out simulations, all with transformed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to score.
        high: High-fidelity simulations.
        folds: Indices of the simulations of each fold.
        scorer: As returned by `choose_scorer`.

    Returns:
        For each map the score of each held-out simulation, in nats, higher is better,
        shape `(n,)`, and for each map that uses pairs the ranked probability score of
        each feature, lower is better, shape `(n, k)`: all folds one after the other, of
        large folds the first simulations. A map that cannot be fitted has scores of
        -inf.
    """
    scores: dict[MapChoice, list] = {choice: [] for choice in choices}
    errors: dict[MapChoice, list] = {c: [] for c in choices if _uses_pairs(c)}
    for fold, index in zip(folds, held_out_to_score(folds)):
        others = np.setdiff1d(np.arange(len(high)), fold)
        pairs = high[index]
        held_out = LevelArrays(scorer.inputs(pairs.theta), scorer.outputs(pairs.x))
        unseen = fitter.apart_from(high.theta[fold])
        low = unseen.low.first(_MAX_MAPPED)
        inputs = low.of_theta(scorer.inputs)
        simulations = LevelArrays(inputs, low.x, weights=low.weights)
        for choice in choices:
            error = np.full(held_out.x.shape, np.inf)
            try:
                level_map = unseen.fit(choice, high[others])
                outputs = scorer.outputs(level_map(low.theta, low.x))
                score = scorer.scores(simulations.with_x(outputs), held_out)
                if choice in errors:
                    error = _ranked_probability_scores(level_map, pairs, scorer.outputs)
            except (np.linalg.LinAlgError, ValueError):
                # a map that cannot be fitted, or whose outputs are infinite
                score = np.full(len(held_out), -np.inf)
            scores[choice].append(np.nan_to_num(score, nan=-np.inf))
            if choice in errors:
                errors[choice].append(np.where(np.isnan(error), np.inf, error))
    return _joined(scores), _joined(errors)


def held_out_to_score(folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Indices of the simulations of each fold that are scored: of many the first."""
    return [fold[: _MAX_HELD_OUT // len(folds)] for fold in folds]


def best_map(
    scores: Mapping[MapChoice, np.ndarray],
    errors: Mapping[MapChoice, np.ndarray],
    weights: np.ndarray | None = None,
) -> MapChoice:
    """The map of the highest mean score; `"none"` where no map could be fitted.

    Args:
        scores: Scores of held-out simulations, as returned by `score_maps`.
        errors: Errors of the maps that use pairs, of which the best takes part.
        weights: Weight of each simulation, shape `(n,)`; `None` for equal weights.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return np.average(values, axis=0, weights=weights)

    known = {c: mean(each) for c, each in scores.items() if np.isfinite(each).all()}
    paired = {c: np.log(mean(errors[c])).sum() for c in errors if c in known}
    if paired:
        best = min(paired, key=lambda c: paired[c])
        known = {c: known[c] for c in known if c == best or c not in paired}
    return max(known, key=lambda c: known[c]) if known else MapChoice("none")


def _uses_pairs(choice: MapChoice) -> bool:
    return level_map_kind(choice.kind).needs_pairs


def _joined(parts: Mapping[MapChoice, Sequence[np.ndarray]]) -> Scores:
    return {choice: np.concatenate(each) for choice, each in parts.items()}


def _ranked_probability_scores(
    level_map: LevelMap,
    pairs: LevelArrays,
    outputs: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Score of the map of each x_coarse by x, shape `(n, k)`, from random draws."""
    assert pairs.x_coarse is not None
    theta, coarse = (
        np.repeat(each, _NUM_DRAWS, axis=0) for each in (pairs.theta, pairs.x_coarse)
    )
    draws = outputs(level_map(theta, coarse))
    draws = np.sort(draws.reshape(len(pairs), _NUM_DRAWS, -1), axis=1)
    distances = np.abs(draws - outputs(pairs.x)[:, np.newaxis]).mean(axis=1)
    ranks = 2 * np.arange(1, _NUM_DRAWS + 1) - _NUM_DRAWS - 1
    # half the mean distance between two draws
    spreads = np.einsum("r,nrk->nk", ranks, draws) / _NUM_DRAWS**2
    return np.maximum(distances - spreads, _TINY)


def _compression(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features that vary, or their principal components where they are many."""
    kept = varies(x)
    if kept.sum() <= _MAX_FEATURES:
        return lambda values: values[:, kept]
    components = PCA(_MAX_FEATURES, random_state=0).fit(x[:, kept])
    return lambda values: components.transform(values[:, kept])
