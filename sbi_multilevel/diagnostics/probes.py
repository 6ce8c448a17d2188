r"""Nonlinear ridge regressions with bounded predictions, and their :math:`R^2`.

The features are the inputs and a Nyström approximation of a Gaussian kernel (Williams
and Seeger 2001); the penalty of each target is chosen by leave-one-out. The fit takes
about a second. Predictions are clipped to the range of the training targets, so that
extrapolation is bounded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sbi_multilevel.diagnostics.tables import plus_minus
from sbi_multilevel.level_maps.regression import PENALTIES, varies

_MAX_SIMULATIONS, _MAX_CENTERS, _NUM_FOLDS = 5_000, 300, 5


@dataclass(frozen=True)
class Score:
    """A coefficient of determination R² with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return plus_minus(self.value, self.error)


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted regression of targets `(n, k)` on inputs `(n, d)`, see the module."""

    columns: np.ndarray  # mask of inputs that varied in training, shape (d,)
    model: Pipeline | None  # `None` if no input varied
    low: np.ndarray  # bounds of the predictions of each target, shape (k,)
    high: np.ndarray

    @classmethod
    def fit(cls, inputs: np.ndarray, targets: np.ndarray) -> Probe:
        """Fit the regression to the first 5 000 simulations at most."""
        inputs, targets = inputs[:_MAX_SIMULATIONS], targets[:_MAX_SIMULATIONS]
        columns = varies(inputs)
        if not columns.any():
            mean = targets.mean(axis=0)
            return cls(columns, None, mean, mean)
        kernel = Nystroem(
            # the mean squared distance of standardized inputs is twice their number
            gamma=0.5 / columns.sum(),
            n_components=min(_MAX_CENTERS, len(inputs)),
            random_state=0,
        )
        features = make_union(FunctionTransformer(), kernel)
        ridge = RidgeCV(PENALTIES, alpha_per_target=True)
        model = make_pipeline(StandardScaler(), features, ridge)
        with warnings.catch_warnings():
            # ill-conditioned features, which the penalty handles
            warnings.simplefilter("ignore")
            model.fit(inputs[:, columns], targets)
        return cls(columns, model, targets.min(axis=0), targets.max(axis=0))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predictions, shape `(n, k)`."""
        if self.model is None:
            return np.tile(self.low, (len(inputs), 1))
        predictions = self.model.predict(inputs[:, self.columns])
        return predictions.reshape(len(inputs), -1).clip(self.low, self.high)


def cross_predictions(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Predict each target by a probe fitted to the other folds."""
    fold = np.arange(len(inputs)) % min(_NUM_FOLDS, len(inputs))
    predictions = np.empty_like(targets)
    for held_out in (fold == number for number in np.unique(fold)):
        probe = Probe.fit(inputs[~held_out], targets[~held_out])
        predictions[held_out] = probe(inputs[held_out])
    return predictions


def r_squared(targets: np.ndarray, predictions: np.ndarray) -> Score:
    r"""Mean :math:`R^2` over the targets that vary.

    .. math:: R^2 = 1 - \frac{\sum_i (t_i - \hat t_i)^2}{\sum_i (t_i - \bar t)^2}

    The standard error is that of a ratio of means, by the delta method.
    """
    used = varies(targets)
    targets, predictions = targets[:, used], predictions[:, used]
    squares = (targets - predictions) ** 2
    spread = (targets - targets.mean(axis=0)) ** 2
    unexplained = squares.mean(axis=0) / spread.mean(axis=0)
    each = (squares - unexplained * spread) / spread.mean(axis=0)
    error = each.mean(axis=1).std(ddof=1) / np.sqrt(len(targets))
    return Score(float(1 - unexplained.mean()), float(error))
