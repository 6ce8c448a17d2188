r"""Who judges maps: a synthetic likelihood, as flexible as the cheap rows call for.

Maps are told apart by tenths of a nat a row, and a judge that misses the form of x
given theta errs by more: at the switch of a bistable cell a quadratic mean is off by
half a nat, whatever the map. So there are two judges. Both are the synthetic likelihood
of `sbi_multilevel.level_maps.selection.synthetic_likelihood`, with means and log scales that are

- quadratic in theta, or
- linear in the features of `sbi_multilevel.level_maps.selection.trees`: quadratic, and what
  boosted trees see in the cheap rows beyond that.

The second is taken where it predicts cheap rows left out better, by a tenth of a nat a
row and by two standard errors. Dear rows have no part in that, and of cheap rows there
are enough to tell; fewer than 200 parameters are too few for trees. What trees see is
the form of rows that are not moved: maps that bend it much, as where the switch of the
dear simulator is elsewhere, are judged less well than those that stretch or shift it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from sbi_multilevel.level_maps.selection.trees import Trees

if TYPE_CHECKING:
    from sbi_multilevel.estimators.transformed import Target

_MIN_PARAMETERS = 200  # that trees could learn something from
_MAX_LEFT_OUT = 500
_MIN_GAIN = 0.1  # nats a row


def _as_it_is(rows: np.ndarray) -> np.ndarray:
    return rows


@dataclass(frozen=True, eq=False)
class MapScorer:
    """Scores rows held out under the synthetic likelihood of moved ones.

    Args:
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
        outputs: From x, shape `(n, k)`, to what of it is judged.
        trees: Features of theta; `None` if means and log scales are quadratic.
    """

    target: Target
    outputs: Callable[[np.ndarray], np.ndarray] = _as_it_is
    trees: Trees | None = None

    @classmethod
    def chosen(
        cls,
        rows: LevelArrays,
        target: Target,
        outputs: Callable[[np.ndarray], np.ndarray] = _as_it_is,
    ) -> MapScorer:
        """The judge that predicts cheap rows better.

        Args:
            rows: Cheap rows in an order that says nothing.
            target: See the class.
            outputs: See the class.
        """
        plain = cls(target, outputs)
        if len(np.unique(rows.theta, axis=0)) < _MIN_PARAMETERS:
            return plain
        rows = LevelArrays(rows.theta, outputs(rows.x))
        try:
            flexible = cls(target, outputs, Trees.fit(rows))
            gain = flexible._left_out(rows) - plain._left_out(rows)
        except (np.linalg.LinAlgError, ValueError):
            return plain  # rows that nothing can be fitted to
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        is_better = gain.mean() > max(_MIN_GAIN, 2 * error)
        return flexible if is_better else plain

    def inputs(self, theta: np.ndarray) -> np.ndarray:
        """What means and log scales are regressed on, in the place of theta."""
        return theta if self.trees is None else self.trees.joined(theta)

    def scores(self, rows: LevelArrays, judged: LevelArrays) -> np.ndarray:
        """Log score of each row judged, in nats, shape `(n,)`.

        Args:
            rows: Moved rows, with `inputs` for theta and `outputs` for x.
            judged: Dear rows that the map has not seen, likewise.
        """
        model = SyntheticLikelihood.fit(rows, degree=2 if self.trees is None else 1)
        if self.target == "x":
            return model.log_likelihood(judged)
        return model.log_posterior_ratio(judged, rows.theta)

    def _left_out(self, rows: LevelArrays) -> np.ndarray:
        """Scores of some of the rows under the others."""
        num_left_out = min(_MAX_LEFT_OUT, len(rows) // 5)
        rows = LevelArrays(self.inputs(rows.theta), rows.x)
        left_out, others = np.split(np.arange(len(rows)), [num_left_out])
        return self.scores(rows[others], rows[left_out])
