"""Ridge regression on polynomial features, for few simulations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

# from hardly any shrinkage to the mean alone
PENALTIES = np.logspace(-3, 4, 22)
_MIN_FOR_SLOPES = 4


def polynomials(inputs: np.ndarray, degree: int) -> Pipeline:
    """Polynomials of standardized inputs; a constant is left to the regression.

    Args:
        inputs: The many inputs that set mean and scale, shape `(n, d)`.
        degree: Highest degree, products included.
    """
    powers = PolynomialFeatures(degree, include_bias=False)
    return make_pipeline(StandardScaler(), powers).fit(inputs)


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each column; 1 where it varies by rounding only."""
    return np.where(varies(values), values.std(axis=0), 1.0)


def varies(values: np.ndarray) -> np.ndarray:
    """Whether each column varies, by more than rounding."""
    return values.std(axis=0) > 1e-9 * np.abs(values).max(axis=0)


def log_sizes(residuals: np.ndarray) -> np.ndarray:
    """Logarithm of the absolute residuals, bounded below."""
    sizes = np.abs(residuals)
    return np.log(sizes + 0.01 * sizes.mean(axis=0) + 1e-12)


@dataclass(frozen=True, eq=False)
class Regression:
    """Each column of the targets on features of the inputs.

    Args:
        features: Map from inputs to features.
        model: The fitted linear model, or the mean of the targets if there are fewer
            than four.
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
        if len(inputs) < _MIN_FOR_SLOPES:
            return cls(features, targets.mean(axis=0), scale)
        # one penalty for all columns keeps relations between them
        ridge = RidgeCV(PENALTIES).fit(features.transform(inputs), targets / scale)
        return cls(features, ridge, scale)

    def left_out(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        r"""Leave-one-out residuals, shape `(n, k)`.

        With leverages :math:`h_i` they are :math:`(y_i - \hat y_i) / (1 - h_i)`.

        Args:
            inputs: The inputs that it was fitted to.
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
