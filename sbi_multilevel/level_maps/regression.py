"""Regression from few rows: ridge on polynomial features, scaled on many rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

# from hardly any shrinkage to the mean alone
PENALTIES = np.logspace(-3, 4, 22)
_MIN_ROWS = 4


def polynomials(inputs: np.ndarray, degree: int) -> Pipeline:
    """Polynomials of standardised inputs; a constant is left to the regression.

    Args:
        inputs: The many rows that set mean and scale, shape `(n, d)`.
        degree: Highest degree, products included.
    """
    powers = PolynomialFeatures(degree, include_bias=False)
    return make_pipeline(StandardScaler(), powers).fit(inputs)


def spread(rows: np.ndarray) -> np.ndarray:
    """Standard deviation of each column; 1 where it varies by rounding only."""
    deviation = rows.std(axis=0)
    return np.where(varies(rows), deviation, 1.0)


def varies(rows: np.ndarray) -> np.ndarray:
    """Whether each column varies, by more than rounding."""
    return rows.std(axis=0) > 1e-9 * np.abs(rows).max(axis=0)


def log_sizes(residuals: np.ndarray) -> np.ndarray:
    """Logarithm of the absolute residuals, bounded below."""
    sizes = np.abs(residuals)
    return np.log(sizes + 0.01 * sizes.mean(axis=0) + 1e-12)


@dataclass(frozen=True, eq=False)
class Regression:
    """Each column of the targets on features of the inputs.

    Args:
        features: Map from inputs to features.
        model: The fitted linear model, or the mean of the targets where rows are too
            few for more.
        scale: Standard deviation of the targets, in units of which they were fitted.
    """

    features: Pipeline
    model: Any
    scale: np.ndarray

    @classmethod
    def fit(
        cls, features: Pipeline, inputs: np.ndarray, targets: np.ndarray
    ) -> Regression:
        """Fit; the penalty is chosen by leave-one-out.

        Args:
            features: As `polynomials` returns it.
            inputs: Shape `(n, d)`.
            targets: Shape `(n, k)`.
        """
        scale = spread(targets)
        if len(inputs) < _MIN_ROWS:
            return cls(features, targets.mean(axis=0), scale)
        # one penalty for all, or features that depend on each other would part
        ridge = RidgeCV(PENALTIES)
        return cls(
            features, ridge.fit(features.transform(inputs), targets / scale), scale
        )

    def left_out(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        r"""Residuals of rows under the regression without them, shape `(n, k)`.

        With leverages :math:`h_i` they are :math:`(y_i - \hat y_i) / (1 - h_i)`.

        Args:
            inputs: The rows that it was fitted to.
            targets: Their targets.
        """
        count = len(inputs)
        leverages = np.full(count, 1 / count)
        if not isinstance(self.model, np.ndarray):
            features = self.features.transform(inputs)
            features = features - features.mean(axis=0)
            left, values, _ = np.linalg.svd(features, full_matrices=False)
            shrunk = values**2 / (values**2 + self.model.alpha_)
            leverages = leverages + (left**2 * shrunk).sum(axis=1)
        residuals = targets - self(inputs)
        return residuals / np.maximum(1 - leverages, 1e-3)[:, None]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predictions, shape `(n, k)`."""
        if isinstance(self.model, np.ndarray):
            return np.broadcast_to(self.model, (len(inputs), len(self.model)))
        predictions = self.model.predict(self.features.transform(inputs))
        return predictions.reshape(len(inputs), -1) * self.scale
