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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.regression import varies
from sbi_multilevel.level_maps.selection.scorer import MapScorer

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import Target

_MAX_HELD_OUT = 500  # simulations that are scored
_MAX_MAPPED = 20_000  # simulations that a synthetic likelihood is fitted to
_MAX_FEATURES = 64  # of x in scores


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
) -> dict[MapChoice, np.ndarray]:
    """Score each map by held-out simulations, all with transformed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to score.
        high: High-fidelity simulations.
        folds: Indices of the simulations of each fold.
        scorer: As returned by `choose_scorer`.

    Returns:
        For each map the score of each held-out simulation, in nats, higher is better:
        all folds one after the other, of large folds the first simulations; -inf for a
        map that cannot be fitted.
    """
    scores: dict[MapChoice, list[np.ndarray]] = {choice: [] for choice in choices}
    for fold, index in zip(folds, held_out_to_score(folds)):
        others = np.setdiff1d(np.arange(len(high)), fold)
        held_out = high[index]
        held_out = LevelArrays(
            scorer.inputs(held_out.theta), scorer.outputs(held_out.x)
        )
        unseen = fitter.apart_from(high.theta[fold])
        low = unseen.low.first(_MAX_MAPPED)
        simulations = LevelArrays(low.of_theta(scorer.inputs), low.x)
        for choice in choices:
            try:
                mapped = unseen.fit(choice, high[others])(low.theta, low.x)
                outputs = simulations.with_x(scorer.outputs(mapped))
                score = scorer.scores(outputs, held_out)
            except (np.linalg.LinAlgError, ValueError):
                # a map that cannot be fitted, or whose outputs are infinite
                score = np.full(len(held_out), -np.inf)
            scores[choice].append(np.nan_to_num(score, nan=-np.inf))
    return {choice: np.concatenate(parts) for choice, parts in scores.items()}


def held_out_to_score(folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Indices of the simulations of each fold that are scored: of many the first."""
    return [fold[: _MAX_HELD_OUT // len(folds)] for fold in folds]


def best_map(scores: Mapping[MapChoice, np.ndarray]) -> MapChoice:
    """The map of the highest mean score; `"none"` where no map could be fitted.

    Args:
        scores: Scores of held-out simulations, as returned by `score_maps`.
    """
    known = {c: each.mean() for c, each in scores.items() if np.isfinite(each).all()}
    return max(known, key=lambda c: known[c]) if known else MapChoice("none")


def _compression(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features that vary, or their principal components where they are many."""
    kept = varies(x)
    if kept.sum() <= _MAX_FEATURES:
        return lambda values: values[:, kept]
    components = PCA(_MAX_FEATURES, random_state=0).fit(x[:, kept])
    return lambda values: components.transform(values[:, kept])
