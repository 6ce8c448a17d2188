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
mapped ones (`sbi_multilevel.level_maps.selection.synthetic_likelihood`). At most 500
high-fidelity simulations are scored, under at most 20 000 mapped ones, by 64 principal
components where x has more features.

Where posteriors are to be learned, scores of a few dozen simulations often do not
distinguish maps. The likelihood of x does so better, as it is the sum of the score and
of the evidence of x, which depends on the map as well. Of the maps whose mean score is
less than two standard errors of the difference below the greatest one, that of the
greatest mean log likelihood is therefore selected. Of clearly different scores the
greater one counts, since features that say nothing on theta affect the likelihood too.
Likelihoods are not compared where x is summarized, as each map has its own summary, nor
where it is compressed, as nearly all of a likelihood of 64 components is evidence. Of
similar maps one that uses pairs is then selected, as its error was seen at pairs, or
else `"none"`, or else that of the greatest score.

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

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from sbi_multilevel.data.simulations import Target
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, level_map_kind
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.regression import varies
from sbi_multilevel.level_maps.selection.synthetic_likelihood import MapScorer

_MAX_HELD_OUT = 500  # simulations that are scored
_MAX_MAPPED = 20_000  # simulations that a synthetic likelihood is fitted to
_MAX_FEATURES = 64  # of x in scores
_NUM_DRAWS = 64  # of a map at the lower side of a pair
_TINY = 1e-12
_NUM_ERRORS = 2.0  # standard errors by which scores must differ


@dataclass(frozen=True, eq=False)
class MapScores:
    """How well a map does at each held-out simulation.

    Args:
        score: Log score of what is to be learned, in nats, shape `(n,)`; -inf where
            the map could not be fitted.
        likelihood: Log likelihood of x given theta, shape `(n,)`; `None` where
            likelihoods are not compared.
        error: Ranked probability score of each feature, lower is better, shape
            `(n, k)`; `None` for maps that do not use pairs.
    """

    score: np.ndarray
    likelihood: np.ndarray | None
    error: np.ndarray | None = None

    def __getitem__(self, index: np.ndarray) -> MapScores:
        columns = vars(self).values()
        return MapScores(*(None if each is None else each[index] for each in columns))

    @classmethod
    def joined(cls, parts: Sequence[MapScores]) -> MapScores:
        """All folds, one after the other."""
        columns = zip(*(vars(each).values() for each in parts))
        return cls(*(None if x[0] is None else np.concatenate(x) for x in columns))

    @property
    def is_finite(self) -> bool:
        """Whether the map could be fitted, and all its scores are finite."""
        columns = vars(self).values()
        return all(np.isfinite(each).all() for each in columns if each is not None)


def choose_scorer(fitter: MapFitter, high: LevelArrays, target: Target) -> MapScorer:
    """The scorer of maps of these low-fidelity simulations to these high-fidelity ones.

    Args:
        fitter: Fits the maps.
        high: High-fidelity simulations; low-fidelity simulations at their parameters
            are not used for the choice.
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
    """
    some = fitter.low.first(_MAX_MAPPED).x
    some = fitter.forward_tails(np.concatenate((some, high.x)))
    kept = varies(some)
    compress = _compression(some, kept)
    return MapScorer.chosen(
        fitter.apart_from(high.theta).low,
        target,
        outputs=lambda x: compress(fitter.forward_tails(x)),
        is_compressed=bool(kept.sum() > _MAX_FEATURES),
    )


def score_maps(
    fitter: MapFitter,
    choices: Sequence[MapChoice],
    high: LevelArrays,
    folds: Sequence[np.ndarray],
    scorer: MapScorer,
) -> dict[MapChoice, MapScores]:
    """Score each map by held-out simulations, all with transformed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to score.
        high: High-fidelity simulations.
        folds: Indices of the simulations of each fold.
        scorer: As returned by `choose_scorer`.

    Returns:
        The scores of each map: all folds one after the other, of large folds the first
        simulations.
    """
    scores: dict[MapChoice, list[MapScores]] = {choice: [] for choice in choices}
    for fold, index in zip(folds, held_out_to_score(folds)):
        others = np.setdiff1d(np.arange(len(high)), fold)
        pairs = high[index]
        held_out = LevelArrays(scorer.inputs(pairs.theta), scorer.outputs(pairs.x))
        unseen = fitter.apart_from(high.theta[fold])
        low = unseen.low.first(_MAX_MAPPED)
        inputs = low.of_theta(scorer.inputs)
        simulations = LevelArrays(inputs, low.x, weights=low.weights)
        for choice in choices:
            uses_pairs = level_map_kind(choice.kind).needs_pairs
            score = np.full(len(index), -np.inf)
            likelihood = score if scorer.compares_likelihoods else None
            error = np.full(held_out.x.shape, np.inf) if uses_pairs else None
            # a map that cannot be fitted, or whose outputs are infinite
            with contextlib.suppress(np.linalg.LinAlgError, ValueError):
                level_map = unseen.fit(choice, high[others])
                outputs = scorer.outputs(level_map(low.theta, low.x))
                found = scorer.scores(simulations.with_x(outputs), held_out)
                if uses_pairs:
                    error = _ranked_probability_scores(level_map, pairs, scorer.outputs)
                score, likelihood = found
            scores[choice].append(MapScores(score, likelihood, error))
    return {choice: MapScores.joined(parts) for choice, parts in scores.items()}


def held_out_to_score(folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Indices of the simulations of each fold that are scored: of many the first."""
    return [fold[: _MAX_HELD_OUT // len(folds)] for fold in folds]


def best_map(
    scores: Mapping[MapChoice, MapScores], weights: np.ndarray | None = None
) -> MapChoice:
    """The map to use, see the module; `"none"` where no map could be fitted.

    Args:
        scores: Scores of held-out simulations, as returned by `score_maps`.
        weights: Weight of each simulation, shape `(n,)`; `None` for equal weights.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return np.average(values, axis=0, weights=weights)

    def is_tied(choice: MapChoice) -> bool:
        gap = known[best].score - known[choice].score
        squares = (gap - mean(gap)) ** 2
        shares = 1 / len(gap) if weights is None else weights / weights.sum()
        return mean(gap) <= _NUM_ERRORS * np.sqrt((shares**2 * squares).sum())

    def preference(choice: MapChoice) -> tuple[int, float]:
        each = known[choice]
        if each.likelihood is not None:
            return 0, mean(each.likelihood)
        simplicity = 2 if each.error is not None else int(choice == MapChoice("none"))
        return simplicity, mean(each.score)

    known = {choice: each for choice, each in scores.items() if each.is_finite}
    if not known:
        return MapChoice("none")
    paired = {
        choice: np.log(mean(each.error)).sum()
        for choice, each in known.items()
        if each.error is not None
    }
    for choice in sorted(paired, key=lambda c: paired[c])[1:]:
        del known[choice]
    best = max(known, key=lambda c: mean(known[c].score))
    return max(filter(is_tied, known), key=preference)


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
    scores = np.maximum(distances - spreads, _TINY)
    return np.where(np.isnan(scores), np.inf, scores)


def _compression(x: np.ndarray, kept: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features that vary, or their principal components where they are many."""
    if kept.sum() <= _MAX_FEATURES:
        return lambda values: values[:, kept]
    components = PCA(_MAX_FEATURES, random_state=0).fit(x[:, kept])
    return lambda values: components.transform(values[:, kept])
