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
(`sbi_multilevel.alignment.judge`). Scores are taken of at most 500 dear rows, under at
most 20 000 moved ones, and of 64 principal components where x has more features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA

from sbi_multilevel.alignment.fitting import MapChoice, MapFitter
from sbi_multilevel.alignment.judge import Judge
from sbi_multilevel.alignment.regression import varies
from sbi_multilevel.alignment.rows import Rows

if TYPE_CHECKING:
    from sbi_multilevel.estimators import Modelled

_MOST_HELD_OUT = 500  # rows that maps are judged by
_MOST_MOVED = 20_000  # rows that a synthetic likelihood is fitted to
_MOST_JUDGED = 64  # features that moved rows are judged by


def choose_judge(fitter: MapFitter, high: Rows, modelled: Modelled) -> Judge:
    """Who judges maps of these cheap rows to these dear ones.

    Args:
        fitter: Fits the maps.
        high: The dear rows: cheap rows at their parameters have no part in the choice.
        modelled: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
    """
    compress = _compression(fitter.tame(np.concatenate((fitter.low.x, high.x))))
    return Judge.chosen(
        fitter.apart_from(high.theta).low,
        modelled,
        outputs=lambda x: compress(fitter.tame(x)),
    )


def score_maps(
    fitter: MapFitter,
    choices: Sequence[MapChoice],
    high: Rows,
    folds: Sequence[np.ndarray],
    judge: Judge,
) -> dict[MapChoice, np.ndarray]:
    """Judge each map by rows held out, all with tamed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to judge.
        high: The dear rows.
        folds: Indices of the rows of each fold.
        judge: As of `choose_judge`.

    Returns:
        For each map the score of each row held out, in nats, higher is better: all
        folds one after the other, of many rows the first of each; -inf for a map that
        cannot be fitted.
    """
    scores: dict[MapChoice, list[np.ndarray]] = {choice: [] for choice in choices}
    for fold, index in zip(folds, rows_to_judge(folds)):
        others = np.setdiff1d(np.arange(len(high)), fold)
        held_out = high[index]
        judged = Rows(judge.inputs(held_out.theta), judge.outputs(held_out.x))
        unseen = fitter.apart_from(high.theta[fold])
        low = unseen.low.first(_MOST_MOVED)
        inputs = judge.inputs(low.theta)
        for choice in choices:
            try:
                moved = unseen.fit(choice, high[others])(low.theta, low.x)
                score = judge.scores(Rows(inputs, judge.outputs(moved)), judged)
            except (np.linalg.LinAlgError, ValueError):
                # a map that cannot be fitted, or leads to inf, is none
                score = np.full(len(judged), -np.inf)
            scores[choice].append(np.nan_to_num(score, nan=-np.inf))
    return {choice: np.concatenate(parts) for choice, parts in scores.items()}


def rows_to_judge(folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those rows of each fold that maps are judged by: of many the first."""
    return [fold[: _MOST_HELD_OUT // len(folds)] for fold in folds]


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
    if kept.sum() <= _MOST_JUDGED:
        return lambda rows: rows[:, kept]
    components = PCA(_MOST_JUDGED, random_state=0).fit(x[:, kept])
    return lambda rows: components.transform(rows[:, kept])
