"""Smooth regressions with bounded answers, and how well they do.

Ridge regression on the inputs and on a few hundred radial features of them (a Nyström
approximation of a Gaussian kernel), the penalty of each target by leave-one-out. Fitted
in a second, it sees what a linear regression does not, and far from the rows it was
fitted to it answers within the range of its targets.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sbi_multilevel.level_maps.regression import PENALTIES, varies

_MAX_ROWS, _MAX_CENTRES = 5_000, 300


@dataclass(frozen=True)
class Score:
    """A coefficient of determination R², and its standard error over rows."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


@dataclass(frozen=True, eq=False)
class Probe:
    """A regression of this kind.

    Args:
        columns: Inputs that varied in training, shape `(d,)`.
        model: The fitted regression.
        low: Smallest value of each target, shape `(k,)`.
        high: Largest value of each target.
    """

    columns: np.ndarray
    model: Pipeline | None
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, inputs: np.ndarray, targets: np.ndarray) -> Probe:
        """Fit to rows; of more than 5 000 to the first ones.

        Args:
            inputs: Shape `(n, d)`.
            targets: Shape `(n, k)`.
        """
        inputs, targets = inputs[:_MAX_ROWS], targets[:_MAX_ROWS]
        columns = varies(inputs)
        low, high = targets.min(axis=0), targets.max(axis=0)
        if not columns.any():
            mean = targets.mean(axis=0)
            return cls(columns, None, mean, mean)
        centres = Nystroem(
            # standardised inputs are at a squared distance of twice their number
            gamma=0.5 / columns.sum(),
            n_components=min(_MAX_CENTRES, len(inputs)),
            random_state=0,
        )
        features = make_union(FunctionTransformer(), centres)
        ridge = RidgeCV(PENALTIES, alpha_per_target=True)
        model = make_pipeline(StandardScaler(), features, ridge)
        with warnings.catch_warnings():
            # of a linear algebra routine, where features depend on each other
            warnings.simplefilter("ignore")
            model.fit(inputs[:, columns], targets)
        return cls(columns, model, low, high)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predictions, shape `(n, k)`."""
        if self.model is None:
            return np.tile(self.low, (len(inputs), 1))
        predictions = self.model.predict(inputs[:, self.columns])
        return predictions.reshape(len(inputs), -1).clip(self.low, self.high)


def cross_predictions(
    inputs: np.ndarray, targets: np.ndarray, num_folds: int = 5
) -> np.ndarray:
    """Predictions of each row by a probe of the other folds, shape `(n, k)`."""
    fold = np.arange(len(inputs)) % min(num_folds, len(inputs))
    predictions = np.empty_like(targets)
    for mine in (fold == number for number in np.unique(fold)):
        probe = Probe.fit(inputs[~mine], targets[~mine])
        predictions[mine] = probe(inputs[mine])
    return predictions


def r_squared(targets: np.ndarray, predictions: np.ndarray) -> Score:
    r"""Mean :math:`R^2` of the targets that vary.

    .. math:: R^2 = 1 - \frac{\sum_i (t_i - \hat t_i)^2}{\sum_i (t_i - \bar t)^2}

    1 is perfect, 0 as good as the mean, and below 0 worse. The error is that of a ratio
    of means, to first order.

    Args:
        targets: Shape `(n, k)`.
        predictions: Shape `(n, k)`.

    Example:
    --------

    ::

        >>> t = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> r_squared(t, 3 - t).value  # reversed: 1 - 20 / 5
        -3.0
    """
    used = varies(targets)
    targets, predictions = targets[:, used], predictions[:, used]
    squares = (targets - predictions) ** 2
    spread = (targets - targets.mean(axis=0)) ** 2
    unexplained = squares.mean(axis=0) / spread.mean(axis=0)
    each = (squares - unexplained * spread) / spread.mean(axis=0)
    error = each.mean(axis=1).std(ddof=1) / np.sqrt(len(targets))
    return Score(float(1 - unexplained.mean()), float(error))
