r"""Which map fits the rows at hand: chosen by dear rows that the map has not seen.

None of the maps is best everywhere, and the wrong one does harm: a covariance from
twenty rows of forty features is worse than none, and where cheap and dear rows share
their noise a paired map is far better than all that do not use it. Each kind is
therefore fitted to all folds of the dear rows but one, and the rows it moves are judged
by that one,

.. math::

    \hat T = \operatorname{argmax}_T \sum_k \sum_{i \in F_k}
    s\bigl(x_i, \theta_i;\; T_{-k}(x_L, \theta)\bigr),

with :math:`F_k` the rows of fold k, :math:`T_{-k}` the map fitted without them, and s
the log score of a dear row under the synthetic likelihood of the moved rows
(`sbi_multilevel.level_maps.selection.scorer`). Scores are taken of at most 500 dear rows, under at
most 20 000 moved ones, and of 64 principal components where x has more features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapFitter
from sbi_multilevel.level_maps.kinds import MapChoice
from sbi_multilevel.level_maps.regression import varies
from sbi_multilevel.level_maps.selection.scorer import MapScorer

if TYPE_CHECKING:
    from sbi_multilevel.estimators.transformed import Target

_MAX_HELD_OUT = 500  # rows that maps are judged by
_MAX_MOVED = 20_000  # rows that a synthetic likelihood is fitted to
_MAX_JUDGED = 64  # features that moved rows are judged by


def choose_scorer(fitter: MapFitter, high: LevelArrays, target: Target) -> MapScorer:
    """Who judges maps of these cheap rows to these dear ones.

    Args:
        fitter: Fits the maps.
        high: The dear rows: cheap rows at their parameters have no part in the choice.
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
    """
    compress = _compression(
        fitter.forward_tails(np.concatenate((fitter.low.x, high.x)))
    )
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
    judge: MapScorer,
) -> dict[MapChoice, np.ndarray]:
    """Judge each map by rows held out, all with tamed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to judge.
        high: The dear rows.
        folds: Indices of the rows of each fold.
        judge: As of `choose_scorer`.

    Returns:
        For each map the score of each row held out, in nats, higher is better: all
        folds one after the other, of many rows the first of each; -inf for a map that
        cannot be fitted.
    """
    scores: dict[MapChoice, list[np.ndarray]] = {choice: [] for choice in choices}
    for fold, index in zip(folds, held_out_to_score(folds)):
        others = np.setdiff1d(np.arange(len(high)), fold)
        held_out = high[index]
        judged = LevelArrays(judge.inputs(held_out.theta), judge.outputs(held_out.x))
        unseen = fitter.apart_from(high.theta[fold])
        low = unseen.low.first(_MAX_MOVED)
        inputs = judge.inputs(low.theta)
        for choice in choices:
            try:
                moved = unseen.fit(choice, high[others])(low.theta, low.x)
                score = judge.scores(LevelArrays(inputs, judge.outputs(moved)), judged)
            except (np.linalg.LinAlgError, ValueError):
                # a map that cannot be fitted, or leads to inf, is none
                score = np.full(len(judged), -np.inf)
            scores[choice].append(np.nan_to_num(score, nan=-np.inf))
    return {choice: np.concatenate(parts) for choice, parts in scores.items()}


def held_out_to_score(folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those rows of each fold that maps are judged by: of many the first."""
    return [fold[: _MAX_HELD_OUT // len(folds)] for fold in folds]


def best_map(scores: Mapping[MapChoice, np.ndarray]) -> MapChoice:
    """The map of the highest mean score; none where no map could be fitted.

    Args:
        scores: Score of each row held out under each map, as of `score_maps`.
    """
    known = {c: rows.mean() for c, rows in scores.items() if np.isfinite(rows).all()}
    return max(known, key=lambda c: known[c]) if known else MapChoice("none")


def _compression(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features that vary, or their principal components where they are many."""
    kept = varies(x)
    if kept.sum() <= _MAX_JUDGED:
        return lambda rows: rows[:, kept]
    components = PCA(_MAX_JUDGED, random_state=0).fit(x[:, kept])
    return lambda rows: components.transform(rows[:, kept])
