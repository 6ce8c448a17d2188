"""The pool: simulations of all lower levels, mapped to the highest level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sbi_multilevel.data.simulations import MultilevelSimulations, Target
from sbi_multilevel.estimators.mixed import num_discrete
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.discrete_features import DiscreteFeatures
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.selection.cross_validation import (
    MapScores,
    best_map,
    choose_scorer,
    held_out_to_score,
    score_maps,
)
from sbi_multilevel.level_maps.selection.synthetic_likelihood import MapScorer
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.summary import OutputsGain

if TYPE_CHECKING:
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer


@dataclass(frozen=True, eq=False)
class LevelStep:
    """A step from the simulations below a level to this level.

    Args:
        fitter: Fits maps of the simulations below.
        candidates: The maps to choose from.
        scores: Held-out scores of each map at each simulation of the level, fold by
            fold; empty if there is one map only.
        weights: Weight of each simulation that has scores; `None` for equal weights.
        scored_folds: Positions of each fold in the scores.
        scorer: What computed the scores; `None` if there is one map only.
    """

    fitter: MapFitter
    candidates: tuple[MapChoice, ...]
    scores: Mapping[MapChoice, MapScores]
    weights: np.ndarray | None
    scored_folds: Sequence[np.ndarray]
    scorer: MapScorer | None

    def folds(self, but: int | None = None) -> list[int]:
        """All folds, or all but one."""
        return [fold for fold in range(len(self.scored_folds)) if fold != but]

    def choice(self, folds: Sequence[int]) -> MapChoice:
        """The map that is best in these folds."""
        if not self.scores:
            return self.candidates[0]
        kept = np.concatenate([self.scored_folds[fold] for fold in folds])
        of_kept = {choice: each[kept] for choice, each in self.scores.items()}
        return best_map(of_kept, None if self.weights is None else self.weights[kept])

    def held_out_scores(self) -> np.ndarray:
        """Score of each simulation under the map that is best in the other folds."""
        parts = []
        for fold, part in enumerate(self.scored_folds):
            choice = self.choice(self.folds(but=fold))
            # without a score where no map could be fitted
            known = self.scores.get(choice)
            unknown = np.full(len(part), -np.inf)
            parts.append(unknown if known is None else known.score[part])
        return np.concatenate(parts)

    def map_low(
        self, high: LevelArrays, folds: Sequence[int], unseen: np.ndarray
    ) -> LevelArrays:
        """Map the simulations below by a map that is fitted to those of the level.

        Args:
            high: Simulations of the level.
            folds: The folds that select the map.
            unseen: Held-out parameters, shape `(m, d_theta)`; simulations below at
                these are left out.
        """
        fitter = self.fitter.apart_from(unseen)
        low, level_map = fitter.low, fitter.fit(self.choice(folds), high)
        return LevelArrays(low.theta, level_map(low.theta, low.x), weights=low.weights)

    def map_all(self, high: LevelArrays) -> LevelArrays:
        """The same by all folds, with nothing held out."""
        return self.map_low(high, self.folds(), unseen=high.theta[:0])


@dataclass(frozen=True)
class MapSelector:
    """Selects level maps.

    Args:
        kinds: Kinds of map to choose from.
        target: `"theta"` (NPE) or `"x"` (NLE).
        tails: Transform of the tails of x; `None` if none are heavy.
        seed: Seed of the noise in maps.
        elsewhere: By level, pairs outside of the support of the prior, to which local
            kinds of map are fitted as well.
    """

    kinds: Sequence[str]
    target: Target
    tails: TailTransform | None = field(compare=False)
    seed: int
    elsewhere: Mapping[int, LevelArrays] = field(default_factory=dict, compare=False)

    def step(
        self,
        low: LevelArrays,
        high: LevelArrays,
        folds: Sequence[np.ndarray],
        scorer: MapScorer | None = None,
        level: int | None = None,
    ) -> LevelStep:
        """Score maps from `low` to `high` by each fold.

        Args:
            low: The simulations below.
            high: The simulations of the level.
            folds: Indices of the simulations of each fold.
            scorer: What scores maps; chosen here if `None`.
            level: The level of `high`, to find pairs elsewhere; `None` for none.
        """
        elsewhere = None if level is None else self.elsewhere.get(level)
        fitter = MapFitter(low, self.tails, self.seed, elsewhere)
        maps, scores = fitter.candidates(self.kinds, high), {}
        if len(maps) > 1:  # with one map there is nothing to choose
            scorer = scorer or choose_scorer(fitter, high, self.target)
            scores = score_maps(fitter, maps, high, folds, scorer)
        scored = held_out_to_score(folds)
        weights = None if high.weights is None else high.weights[np.concatenate(scored)]
        stops = np.cumsum([len(fold) for fold in scored])
        positions = np.split(np.arange(stops[-1]), stops[:-1])
        return LevelStep(fitter, maps, scores, weights, positions, scorer)

    def gain_from_outputs(
        self, step: LevelStep, high: LevelArrays, folds: Sequence[np.ndarray]
    ) -> OutputsGain | None:
        """Gain from the outputs below, relative to shuffled ones.

        Maps are fitted and scored again, by the same scorer, with x of the lower level
        in random order. The difference in score is due to the outputs.

        Args:
            step: The step with the outputs in their order.
            high: The high-fidelity simulations.
            folds: Indices of the simulations of each fold.

        Returns:
            The gain; `None` if there is one map only, or none can be fitted.
        """
        if not step.scores:
            return None
        draw, low = np.random.default_rng(self.seed), step.fitter.low
        shuffled = LevelArrays(low.theta, draw.permutation(low.x), weights=low.weights)
        coarse = None if high.x_coarse is None else draw.permutation(high.x_coarse)
        control = self.step(shuffled, high.with_x(high.x, coarse), folds, step.scorer)
        gain = step.held_out_scores() - control.held_out_scores()
        if not np.isfinite(gain).all():
            return None
        if step.weights is not None:
            gain = gain * step.weights / step.weights.mean()
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        return OutputsGain(float(gain.mean()), float(error))

    def steps(
        self, levels: Sequence[LevelArrays], folds: Sequence[Sequence[np.ndarray]]
    ) -> list[LevelStep]:
        """The steps from each level to the next, the lowest first.

        The simulations below a level are those of the level below, and what was mapped
        to it.

        Args:
            levels: Simulations of all levels.
            folds: For each level above the lowest, the indices of each fold.
        """
        steps: list[LevelStep] = []
        neighbors = zip(levels, levels[1:], folds)
        for level, (low, high, of_level) in enumerate(neighbors, 1):
            pool = low
            if steps:
                pool = steps[-1].map_all(low).followed_by(replace(low, x_coarse=None))
            pool = pool.shuffled(self.seed)
            steps.append(self.step(pool, high, of_level, level=level))
        return steps


def limit_lower(
    simulations: MultilevelSimulations, size: int, seed: int
) -> MultilevelSimulations:
    """The simulations with a random subset of lower levels that have more than `size`.

    Args:
        simulations: Simulations of all levels.
        size: Simulations of each lower level at most.
        seed: Seed of the subset.
    """
    generator = torch.Generator().manual_seed(seed)
    *lower, highest = simulations.levels
    levels = [
        level
        if len(level) <= size
        else level[torch.randperm(len(level), generator=generator)[:size]]
        for level in lower
    ]
    return replace(simulations, levels=(*levels, highest))


def split_folds(theta: np.ndarray, num_folds: int, seed: int) -> list[np.ndarray]:
    """Split simulations into folds with the same number of distinct parameters.

    Simulations at the same theta are in the same fold, as they are dependent.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        num_folds: Number of folds; at most that of distinct parameters.
        seed: Seed of the order.

    Returns:
        Indices of the simulations of each fold.
    """
    at: dict[bytes, list[int]] = {}
    for index, each in enumerate(np.ascontiguousarray(theta)):
        at.setdefault(each.tobytes(), []).append(index)
    groups = list(at.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    parts = np.array_split(order, min(num_folds, len(groups)))
    return [np.concatenate([groups[index] for index in part]) for part in parts]


def fit_tails(
    simulations: MultilevelSimulations, discrete: DiscreteFeatures | None = None
) -> TailTransform | None:
    """Transform of the tails of x; `None` if none are heavy, or x is no vector.

    Args:
        simulations: Simulations of all levels.
        discrete: Discrete features, which have no tails; the others have none if their
            logarithms are mapped.
    """
    if simulations[0].x.ndim != 2 or (discrete is not None and discrete.takes_log):
        return None
    tails = TailTransform.fit([level.x for level in simulations])
    if discrete is not None:
        tails.delta[-len(discrete.values) :] = 0.0
    return None if tails.is_identity else tails


def discrete_features(
    trainer: HybridTrainer, simulations: MultilevelSimulations
) -> DiscreteFeatures | None:
    """The discrete features of x of a likelihood; `None` if there are none.

    Args:
        trainer: The trainer.
        simulations: Simulations of all levels.
    """
    mixed = trainer._find_mixed(simulations[-1])
    if mixed is None:
        return None
    levels = [*simulations, *trainer._map_pairs]
    return DiscreteFeatures.of(levels, num_discrete(mixed), mixed.log_transform_input)
