r"""Which map fits the rows at hand: chosen by dear rows that the map has not seen.

None of the maps is best everywhere, and the wrong one does harm: a covariance from
twenty rows of forty features is worse than none, and where cheap and dear rows share
their noise a paired map is far better than all that do not use it. Each kind is
therefore fitted to all folds of the dear rows but one, and the rows it moves are judged
by that one (`sbi_multilevel.alignment.synthetic`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from sbi_multilevel.alignment.conditional import LowMean, fit_conditional
from sbi_multilevel.alignment.paired import fit_paired, paired_features
from sbi_multilevel.alignment.process import fit_process
from sbi_multilevel.alignment.regression import varies
from sbi_multilevel.alignment.rows import Rows
from sbi_multilevel.alignment.synthetic import SyntheticLikelihood
from sbi_multilevel.alignment.tails import Tails
from sbi_multilevel.stacking import stacking_weights

MapKind = Literal[
    "none",
    "shift",
    "full",
    "scaled",
    "paired",
    "paired_quadratic",
    "paired_process",
]
MAP_KINDS: tuple[str, ...] = get_args(MapKind)

RowMap = Callable[[np.ndarray, np.ndarray], np.ndarray]

# features beyond which regressions on all, covariances, products, and a process for
# each are out of reach
_MOST_FEATURES, _MOST_FOR_COVARIANCES = 2_000, 200
_MOST_FOR_PRODUCTS, _MOST_FOR_PROCESSES = 50, 12
_FEWEST_ROWS = 4  # of which some are held out
_MOST_HELD_OUT = 500  # rows that maps are judged by
_MOST_JUDGED = 64  # features that moved rows are judged by


@dataclass(frozen=True)
class MapChoice:
    """A kind of map, and where it acts.

    Args:
        kind: One of `MAP_KINDS`.
        is_tamed: Whether it acts on x with tamed tails rather than on x itself.
    """

    kind: str
    is_tamed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} (tails tamed)" if self.is_tamed else self.kind


@dataclass(frozen=True, eq=False)
class MapFitter:
    """Fits maps from one set of cheap rows to changing sets of dear ones.

    Args:
        low: The cheap rows.
        tails: What tames the tails of x; `None` where all are light.
        seed: Seed of the noise in paired maps.
    """

    low: Rows
    tails: Tails | None = None
    seed: int = 0

    def fit(self, choice: MapChoice, high: Rows) -> RowMap:
        """The map of a kind, from x to x whatever the space that it acts in."""
        high = shuffled(high, self.seed)  # not all of them may be used
        if not choice.is_tamed or self.tails is None:
            return self._fit(choice.kind, high)
        tame, move = (
            self.tame,
            self._tamed._fit(choice.kind, tame_rows(high, self.tame)),
        )
        untame = _on_arrays(self.tails.inverse)
        return lambda theta, x: untame(move(theta, tame(x)))

    @cached_property
    def tame(self) -> Callable[[np.ndarray], np.ndarray]:
        """x with tamed tails."""
        return (lambda x: x) if self.tails is None else _on_arrays(self.tails)

    @cached_property
    def _tamed(self) -> MapFitter:
        return MapFitter(tame_rows(self.low, self.tame), seed=self.seed)

    def _fit(self, kind: str, high: Rows) -> RowMap:
        """The map of a kind, in the space of the rows.

        Raises:
            ValueError: If there is no such kind, or it needs pairs and there are none.
        """
        if kind not in MAP_KINDS:
            raise ValueError(
                f"alignment must be one of {MAP_KINDS}, but there is {kind!r}."
            )
        if kind == "none":
            return lambda theta, x: x
        if kind.startswith("paired"):
            if high.x_coarse is None:
                raise ValueError(
                    f"alignment={kind!r} needs pairs, but the rows have no x_coarse. "
                    "Leave it out, or append pairs."
                )
            if kind == "paired_process":
                return fit_process(self.low, high, self.seed)
            features = self._quadratic if kind == "paired_quadratic" else self._linear
            return fit_paired(features, high, self.seed)
        return fit_conditional(kind, self._mean, high)  # pyright: ignore[reportArgumentType]

    def candidates(self, kinds: Sequence[str], high: Rows) -> tuple[MapChoice, ...]:
        """Maps of those `kinds` that these rows allow, or `"none"`."""
        num_features = high.x.shape[1]
        denied = set()
        if high.x_coarse is None:
            denied |= {kind for kind in kinds if kind.startswith("paired")}
        if len(high) < _FEWEST_ROWS:
            denied |= set(kinds) - {"none", "shift"}
        if num_features > _MOST_FOR_PROCESSES:
            denied.add("paired_process")
        if num_features > _MOST_FOR_PRODUCTS:
            denied.add("paired_quadratic")
        if num_features > _MOST_FOR_COVARIANCES:
            denied |= {"full", "scaled"}
        if num_features > _MOST_FEATURES:
            denied.add("paired")
        allowed = [kind for kind in kinds if kind not in denied] or ["none"]
        choices = [MapChoice(kind) for kind in allowed]
        if self.tails is not None:
            choices += [MapChoice(kind, True) for kind in allowed if kind != "none"]
        return tuple(choices)

    @cached_property
    def _mean(self) -> LowMean:
        return LowMean.fit(self.low)

    @cached_property
    def _linear(self):
        return paired_features(self.low, 1)

    @cached_property
    def _quadratic(self):
        return paired_features(self.low, 2)


def score_maps(
    fitter: MapFitter,
    choices: Sequence[MapChoice],
    high: Rows,
    folds: Sequence[np.ndarray],
    modelled: Literal["theta", "x"],
) -> dict[MapChoice, np.ndarray]:
    """Judge each map by rows held out, all with tamed tails.

    Args:
        fitter: Fits the maps.
        choices: Maps to judge.
        high: The dear rows.
        folds: Indices of the rows of each fold.
        modelled: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.

    Returns:
        For each map the score of each row held out, in nats, higher is better: all
        folds one after the other, of many rows the first of each; -inf for a map that
        cannot be fitted.
    """
    low = fitter.low
    compress = _compression(fitter.tame(np.concatenate((low.x, high.x))))
    scores: dict[MapChoice, list[np.ndarray]] = {choice: [] for choice in choices}
    for fold in folds:
        others = np.setdiff1d(np.arange(len(high)), fold)
        held_out = high[fold[: _MOST_HELD_OUT // len(folds)]]
        judged = Rows(held_out.theta, compress(fitter.tame(held_out.x)))
        for choice in choices:
            try:
                moved = fitter.fit(choice, high[others])(low.theta, low.x)
                rows = Rows(low.theta, compress(fitter.tame(moved)))
                score = _score(rows, judged, modelled)
            except (np.linalg.LinAlgError, ValueError):
                # a map that cannot be fitted, or leads to inf, is none
                score = np.full(len(judged), -np.inf)
            scores[choice].append(np.nan_to_num(score, nan=-np.inf))
    return {choice: np.concatenate(parts) for choice, parts in scores.items()}


def _score(rows: Rows, judged: Rows, modelled: Literal["theta", "x"]) -> np.ndarray:
    model = SyntheticLikelihood.fit(rows)
    if modelled == "x":
        return model.log_likelihood(judged)
    return model.log_posterior_ratio(judged, rows.theta)


def share_out(
    scores: Mapping[MapChoice, np.ndarray], num_members: int
) -> list[MapChoice]:
    """The map of each member of an ensemble, the best one first.

    Where held-out rows cannot tell maps from the best one, by one standard error,
    members differ in them: these maps get stacking weights (`sbi_multilevel.stacking`),
    and members by largest remainder.

    Args:
        scores: Score of each row held out under each map, as of `score_maps`.
        num_members: Members.
    """
    known = {c: rows for c, rows in scores.items() if np.isfinite(rows).all()}
    if not known:
        return [MapChoice("none")] * num_members
    best = max(known.values(), key=lambda rows: rows.mean())
    scores = {c: rows for c, rows in known.items() if not _is_worse(rows, best)}
    table = np.stack(list(scores.values()), axis=1)
    weights = stacking_weights(table, np.full(table.shape[1], 1 / table.shape[1]))
    wanted = weights * num_members
    counts = np.floor(wanted).astype(int)
    for index in np.argsort(counts - wanted)[: num_members - counts.sum()]:
        counts[index] += 1
    choices = list(scores)
    order = np.argsort(-weights, kind="stable")
    return [choices[index] for index in order for _ in range(counts[index])]


def _is_worse(rows: np.ndarray, best: np.ndarray) -> bool:
    loss = best - rows
    return bool(loss.mean() > loss.std() / np.sqrt(len(loss)))


def shuffled(rows: Rows, seed: int) -> Rows:
    """The rows in an order that says nothing."""
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def tame_rows(rows: Rows, tame: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """Rows with x and x_coarse tamed."""
    coarse = None if rows.x_coarse is None else tame(rows.x_coarse)
    return Rows(rows.theta, tame(rows.x), coarse)


def _on_arrays(function: Callable[[Tensor], Tensor]) -> Callable:
    return lambda x: function(torch.from_numpy(x)).numpy()


def _compression(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features that vary, or their principal components where they are many."""
    kept = varies(x)
    if kept.sum() <= _MOST_JUDGED:
        return lambda rows: rows[:, kept]
    components = PCA(_MOST_JUDGED, random_state=0).fit(x[:, kept])
    return lambda rows: components.transform(rows[:, kept])
