"""Rows of all lower levels as pseudo-high-fidelity rows: which map, and the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sbi_multilevel.alignment.choice import best_map, score_maps
from sbi_multilevel.alignment.fitting import MapChoice, MapFitter
from sbi_multilevel.alignment.rows import Rows
from sbi_multilevel.alignment.tails import Tails
from sbi_multilevel.estimators import Modelled
from sbi_multilevel.simulations import MultilevelSimulations


@dataclass(frozen=True, eq=False)
class Step:
    """How rows below a level are moved up to it.

    Args:
        fitter: Fits maps of the rows below.
        choices: The map of each member.
        scores: Mean held-out score of each map, in nats, higher is better.
    """

    fitter: MapFitter
    choices: tuple[MapChoice, ...]
    scores: dict[str, float]

    def move(self, high: Rows, member: int = 0) -> Rows:
        """The rows below, moved by the map of a member, fitted to `high`."""
        low = self.fitter.low
        move = self.fitter.fit(self.choices[member], high)
        return Rows(low.theta, move(low.theta, low.x))


@dataclass(frozen=True)
class Aligner:
    """What steps are chosen with.

    Args:
        kinds: Kinds of map to choose from.
        modelled: `"theta"` (NPE) or `"x"` (NLE).
        tails: What tames the tails of x; `None` where all are light.
        seed: Seed of the noise in maps.
    """

    kinds: Sequence[str]
    modelled: Modelled
    tails: Tails | None = field(compare=False)
    seed: int

    def step(self, low: Rows, high: Rows, folds: Sequence[np.ndarray]) -> Step:
        """Choose maps from `low` to `high` by the rows of each fold, one a fold."""
        fitter = MapFitter(low, self.tails, self.seed)
        choices = fitter.candidates(self.kinds, high)
        if len(choices) == 1:  # a score would cost time and decide nothing
            return Step(fitter, choices * len(folds), {})
        scores = score_maps(fitter, choices, high, folds, self.modelled)
        means = {str(choice): float(row.mean()) for choice, row in scores.items()}
        return Step(fitter, _choices(scores, folds), means)

    def below_the_highest(
        self, simulations: MultilevelSimulations, num_folds: int
    ) -> tuple[Rows, list[Step]]:
        """The rows of all levels but the highest, moved to the last of them.

        Returns:
            The rows, and the steps on the way.
        """
        pool, steps = Rows.of(simulations[0]).shuffled(self.seed), []
        for level in list(simulations)[1:-1]:
            rows = Rows.of(level)
            folds = cut(len(rows), num_folds, self.seed)
            step = self.step(pool, rows, folds)
            steps.append(replace(step, choices=step.choices[:1]))
            moved = steps[-1].move(rows)
            pool = Rows(
                np.concatenate((moved.theta, rows.theta)),
                np.concatenate((moved.x, rows.x)),
            )
            pool = pool.shuffled(self.seed)
        return pool, steps


def _choices(
    scores: Mapping[MapChoice, np.ndarray], folds: Sequence[np.ndarray]
) -> tuple[MapChoice, ...]:
    """The map of each member, chosen without the fold that the member is weighed by."""
    count = len(next(iter(scores.values())))
    parts = np.array_split(np.arange(count), len(folds))
    choices = []
    for part in parts:
        kept = np.setdiff1d(np.arange(count), part)
        choices.append(best_map({c: rows[kept] for c, rows in scores.items()}))
    return tuple(choices)


def cut(count: int, num_folds: int, seed: int) -> list[np.ndarray]:
    """Rows `0, ..., count - 1` in folds of equal size, within one."""
    order = np.random.default_rng(seed).permutation(count)
    return np.array_split(order, min(num_folds, count))


def fit_tails(simulations: MultilevelSimulations) -> Tails | None:
    """What tames the tails of x; `None` where all are light, or x is no vector."""
    if simulations[0].x.ndim != 2:
        return None
    tails = Tails.fit([rows.x for rows in simulations])
    return None if tails.is_identity else tails
