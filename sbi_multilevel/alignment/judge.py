r"""Who judges maps: a synthetic likelihood, as flexible as the cheap rows call for.

Maps are told apart by tenths of a nat a row, and a judge that misses the form of x
given theta errs by more: at the switch of a bistable cell a quadratic mean is off by
half a nat, whatever the map. So there are two judges. Both are the synthetic likelihood
of `sbi_multilevel.alignment.synthetic`, with means and log scales that are

- quadratic in theta, or
- linear in the features of `sbi_multilevel.alignment.trees`: quadratic, and what
  boosted trees see in the cheap rows beyond that.

The second is taken where it predicts cheap rows left out better, by a tenth of a nat a
row and by two standard errors. Dear rows have no part in that, and of cheap rows there
are enough to tell; fewer than 200 parameters are too few for trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.pipeline import Pipeline

from sbi_multilevel.alignment.regression import polynomials
from sbi_multilevel.alignment.rows import Rows
from sbi_multilevel.alignment.synthetic import SyntheticLikelihood
from sbi_multilevel.alignment.trees import Trees
from sbi_multilevel.estimators import Modelled

_FEWEST_PARAMETERS = 200  # that trees could learn something from
_MOST_LEFT_OUT = 500
_LEAST_GAIN = 0.1  # nats a row


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores rows held out under the synthetic likelihood of moved ones.

    Args:
        modelled: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
        quadratic: Quadratic features of theta; `None` without trees.
        trees: Features beyond those; `None` if means and log scales are quadratic.
    """

    modelled: Modelled
    quadratic: Pipeline | None = None
    trees: Trees | None = None

    @classmethod
    def chosen(cls, rows: Rows, modelled: Modelled) -> Judge:
        """The judge that predicts cheap rows better.

        Args:
            rows: Cheap rows in an order that says nothing, as they are to be judged.
            modelled: See the class.
        """
        plain = cls(modelled)
        num_left_out = min(_MOST_LEFT_OUT, len(rows) // 5)
        if len(np.unique(rows.theta, axis=0)) < _FEWEST_PARAMETERS:
            return plain
        flexible = cls(modelled, polynomials(rows.theta, 2), Trees.fit(rows))
        left_out = np.arange(num_left_out)
        others = np.arange(num_left_out, len(rows))
        scores = []
        for judge in (plain, flexible):
            own = Rows(judge.inputs(rows.theta), rows.x)
            scores.append(judge.scores(own[others], own[left_out]))
        gain = scores[1] - scores[0]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        is_better = gain.mean() > max(_LEAST_GAIN, 2 * error)
        return flexible if is_better else plain

    def inputs(self, theta: np.ndarray) -> np.ndarray:
        """What means and log scales are regressed on, in the place of theta."""
        if self.quadratic is None or self.trees is None:
            return theta
        return np.concatenate(
            (self.quadratic.transform(theta), self.trees(theta)), axis=1
        )

    def scores(self, rows: Rows, judged: Rows) -> np.ndarray:
        """Log score of each row judged, in nats, shape `(n,)`.

        Args:
            rows: Moved rows, with `inputs` for theta.
            judged: Dear rows that the map has not seen, likewise.
        """
        model = SyntheticLikelihood.fit(rows, degree=2 if self.trees is None else 1)
        if self.modelled == "x":
            return model.log_likelihood(judged)
        return model.log_posterior_ratio(judged, rows.theta)
