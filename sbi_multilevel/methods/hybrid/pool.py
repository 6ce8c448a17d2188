"""LevelArrays of all lower levels as pseudo-high-fidelity rows: which map, and the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.estimators.transformed import Target
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapFitter
from sbi_multilevel.level_maps.kinds import MapChoice
from sbi_multilevel.level_maps.selection.cross_validation import (
    best_map,
    choose_scorer,
    held_out_to_score,
    score_maps,
)
from sbi_multilevel.level_maps.selection.scorer import MapScorer
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.summary import OutputsGain


@dataclass(frozen=True, eq=False)
class LevelStep:
    """How rows below a level are moved up to it.

    Args:
        fitter: Fits maps of the rows below.
        candidates: The maps to choose from.
        scores: Held-out score of each row of the level under each map, fold by fold,
            in nats, higher is better; empty where there is one map only.
        num_scored: LevelArrays of each fold that have scores.
        judge: Who gave them; `None` where there is one map only.
    """

    fitter: MapFitter
    candidates: tuple[MapChoice, ...]
    scores: Mapping[MapChoice, np.ndarray]
    num_scored: tuple[int, ...]
    judge: MapScorer | None

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return len(self.num_scored)

    def choice(self, folds: Sequence[int]) -> MapChoice:
        """The map that the rows of these folds like best."""
        if not self.scores:
            return self.candidates[0]
        kept = np.concatenate([self._parts[fold] for fold in folds])
        return best_map({c: rows[kept] for c, rows in self.scores.items()})

    @property
    def _parts(self) -> list[np.ndarray]:
        """Places of the rows of each fold among the scores."""
        stops = np.cumsum(self.num_scored)
        return np.split(np.arange(stops[-1]), stops[:-1])

    def held_out(self) -> np.ndarray:
        """Score of each row under the map that all folds but its own like best."""
        parts = []
        for fold, part in enumerate(self._parts):
            choice = self.choice([f for f in range(self.num_folds) if f != fold])
            # where no map can be fitted none is used
            known = self.scores.get(choice)
            parts.append(np.full(len(part), -np.inf) if known is None else known[part])
        return np.concatenate(parts)

    def move(
        self, high: LevelArrays, folds: Sequence[int], unseen: np.ndarray
    ) -> LevelArrays:
        """The rows below, by the map that these folds like best, fitted to `high`.

        Args:
            high: LevelArrays of the level.
            folds: The folds to ask.
            unseen: Parameters of rows that are held out, shape `(m, d_theta)`: rows
                below at the same parameters are left out.
        """
        fitter = self.fitter.apart_from(unseen)
        low = fitter.low
        move = fitter.fit(self.choice(folds), high)
        return LevelArrays(low.theta, move(low.theta, low.x))


@dataclass(frozen=True)
class MapSelector:
    """What steps are chosen with.

    Args:
        kinds: Kinds of map to choose from.
        target: `"theta"` (NPE) or `"x"` (NLE).
        tails: What tames the tails of x; `None` where all are light.
        seed: Seed of the noise in maps.
    """

    kinds: Sequence[str]
    target: Target
    tails: TailTransform | None = field(compare=False)
    seed: int

    def step(
        self,
        low: LevelArrays,
        high: LevelArrays,
        folds: Sequence[np.ndarray],
        judge: MapScorer | None = None,
    ) -> LevelStep:
        """Judge maps from `low` to `high` by the rows of each fold.

        Args:
            low: The rows below.
            high: The rows of the level.
            folds: Indices of the rows of each fold.
            judge: Who judges; `None` chooses.
        """
        fitter = MapFitter(low, self.tails, self.seed)
        maps, scores = fitter.candidates(self.kinds, high), {}
        if len(maps) > 1:  # else a score would cost time and decide nothing
            judge = judge or choose_scorer(fitter, high, self.target)
            scores = score_maps(fitter, maps, high, folds, judge)
        num_scored = tuple(len(rows) for rows in held_out_to_score(folds))
        return LevelStep(fitter, maps, scores, num_scored, judge)

    def gain_from_outputs(
        self, step: LevelStep, high: LevelArrays, folds: Sequence[np.ndarray]
    ) -> OutputsGain | None:
        """What x of the rows below tells, beyond what maps make of theta alone.

        A map fitted to high-fidelity rows predicts them from theta even where x of the
        rows below is noise. So maps are fitted and judged once more, to the same rows
        with x of the lower level shuffled: what the true order adds is its own.

        Args:
            step: Of the true rows.
            high: The high-fidelity rows.
            folds: Indices of the rows of each fold.

        Returns:
            The gain; `None` where there is one map only, or none can be fitted.
        """
        if not step.scores:
            return None
        draw, low = np.random.default_rng(self.seed), step.fitter.low
        shuffled = LevelArrays(low.theta, draw.permutation(low.x))
        coarse = None if high.x_coarse is None else draw.permutation(high.x_coarse)
        control = self.step(
            shuffled, LevelArrays(high.theta, high.x, coarse), folds, step.judge
        )
        gain = step.held_out() - control.held_out()
        if not np.isfinite(gain).all():
            return None
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        return OutputsGain(float(gain.mean()), float(error))

    def below_the_highest(
        self, simulations: MultilevelSimulations, num_folds: int
    ) -> tuple[LevelArrays, list[LevelStep]]:
        """The rows of all levels but the highest, moved to the last of them.

        Returns:
            The rows, and the steps on the way.
        """
        pool, steps = LevelArrays.of(simulations[0]).shuffled(self.seed), []
        for level in list(simulations)[1:-1]:
            rows = LevelArrays.of(level)
            folds = cut(rows.theta, num_folds, self.seed)
            steps.append(self.step(pool, rows, folds))
            moved = steps[-1].move(rows, range(len(folds)), unseen=rows.theta[:0])
            pool = LevelArrays(
                np.concatenate((moved.theta, rows.theta)),
                np.concatenate((moved.x, rows.x)),
            )
            pool = pool.shuffled(self.seed)
        return pool, steps


def cut(theta: np.ndarray, num_folds: int, seed: int) -> list[np.ndarray]:
    """LevelArrays in folds with the same number of parameters, within one.

    LevelArrays at the same theta are in the same fold: they tell of each other.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        num_folds: Number of folds; as many as there are parameters if those are fewer.
        seed: Seed of the order.
    """
    at: dict[bytes, list[int]] = {}
    for index, row in enumerate(np.ascontiguousarray(theta)):
        at.setdefault(row.tobytes(), []).append(index)
    rows = list(at.values())
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = np.array_split(order, min(num_folds, len(rows)))
    return [np.concatenate([rows[group] for group in part]) for part in parts]


def fit_tails(simulations: MultilevelSimulations) -> TailTransform | None:
    """What tames the tails of x; `None` where all are light, or x is no vector."""
    if simulations[0].x.ndim != 2:
        return None
    tails = TailTransform.fit([rows.x for rows in simulations])
    return None if tails.is_identity else tails
