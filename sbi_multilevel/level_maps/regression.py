"""Ridge regression on polynomial features, for few simulations and for many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

# from hardly any shrinkage to the mean alone
PENALTIES = np.logspace(-3, 4, 22)
MIN_FOR_SLOPES = 4  # simulations; the mean of fewer is taken
_MANY = 2_000  # rows, of which the penalty is chosen by generalized cross-validation
_MIN_LEFT = 1e-3  # of one minus a leverage
_BLOCK = 20_000  # rows whose features are in memory at a time


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


def blocks(count: int, size: int = _BLOCK) -> Iterator[slice]:
    """Consecutive rows, at most `size` at a time."""
    return (slice(start, start + size) for start in range(0, count, size))


@dataclass(frozen=True, eq=False)
class Leverage:
    r"""Variance of a prediction, relative to that of the residuals.

    .. math::  h(u) = \frac1n + (\phi(u) - \bar\phi)^\top
        \Bigl(\sum_i (\phi_i - \bar\phi) (\phi_i - \bar\phi)^\top
        + \lambda I\Bigr)^{-1} (\phi(u) - \bar\phi)

    with :math:`\phi` the n features that a regression with ridge penalty
    :math:`\lambda` was fitted to; at these, h is the leverage. A new target has the
    variance :math:`1 + h` (Rasmussen and Williams 2006, *Gaussian processes for machine
    learning*, equation 2.9). With :math:`v_j` and :math:`s_j` the singular vectors and
    values of the centered features, the second term is

    .. math::  \sum_j \frac{(v_j^\top (\phi - \bar\phi))^2}{s_j^2 + \lambda}
        + \frac1\lambda \Bigl(|\phi - \bar\phi|^2
        - \sum_j (v_j^\top (\phi - \bar\phi))^2\Bigr),

    where the last part is that of directions in which the n do not vary.

    Args:
        features: Map from inputs to features.
        mean: Mean of the features, shape `(p,)`.
        vectors: Singular vectors, shape `(p, min(n, p))`.
        precisions: :math:`s_j^2 + \lambda`, shape `(min(n, p),)`.
        penalty: :math:`\lambda`.
        count: n.
    """

    features: Pipeline
    mean: np.ndarray
    vectors: np.ndarray
    precisions: np.ndarray
    penalty: float
    count: int

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """h at inputs of shape `(m, d)`, shape `(m,)`."""
        variances = np.empty(len(inputs))
        for rows in blocks(len(inputs)):
            centered = self.features.transform(inputs[rows]) - self.mean
            squares = (centered @ self.vectors) ** 2
            others = (centered**2).sum(axis=1) - squares.sum(axis=1)
            along = (squares / self.precisions).sum(axis=1)
            variances[rows] = along + np.maximum(others, 0.0) / self.penalty
        return 1 / self.count + variances

    def growth(self, inputs: np.ndarray) -> np.ndarray:
        r"""Factor :math:`\sqrt{1 + h}` from noise to prediction, shape `(m, 1)`."""
        return np.sqrt(1 + self(inputs))[:, np.newaxis]

    def left(self, inputs: np.ndarray) -> np.ndarray:
        """1 - h at the inputs of the fit, bounded below, shape `(n, 1)`."""
        return np.maximum(1 - self(inputs), _MIN_LEFT)[:, np.newaxis]


@dataclass(frozen=True, eq=False)
class Regression:
    """Each column of the targets on features of the inputs.

    Args:
        features: Map from inputs to features.
        coefficients: Coefficient of each feature for each target, shape `(p, k)`.
        intercept: Shape `(k,)`.
        penalty: The ridge penalty, for targets in standard deviations; infinite if
            there are fewer than four simulations, whose mean is taken.
    """

    features: Pipeline
    coefficients: np.ndarray
    intercept: np.ndarray
    penalty: float

    @classmethod
    def fit(
        cls, features: Pipeline, inputs: np.ndarray, targets: np.ndarray
    ) -> Regression:
        """Fit; the penalty is chosen by leave-one-out, see `Design.fit`.

        Args:
            features: As `polynomials` returns it.
            inputs: Shape `(n, d)`.
            targets: Shape `(n, k)`.
        """
        return Design(features, inputs).fit(targets)

    def leverage(self, inputs: np.ndarray) -> Leverage:
        """Variance of predictions, relative to that of the residuals.

        Args:
            inputs: The inputs that it was fitted to, shape `(n, d)`.
        """
        features = self.features.transform(inputs)
        mean = features.mean(axis=0)
        _, values, vectors = np.linalg.svd(features - mean, full_matrices=False)
        precisions, count = values**2 + self.penalty, len(inputs)
        return Leverage(self.features, mean, vectors.T, precisions, self.penalty, count)

    def noise(
        self, inputs: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, Leverage]:
        r"""Residuals with the variance of the noise, and the leverage.

        Args:
            inputs: The inputs that it was fitted to.
            targets: Their targets, shape `(n, k)`.

        Returns:
            :math:`(y_i - \hat y_i) / \sqrt{1 - h_i}`, less their mean, shape `(n, k)`,
            and h.
        """
        leverage = self.leverage(inputs)
        noise = (targets - self(inputs)) / np.sqrt(leverage.left(inputs))
        return noise - noise.mean(axis=0), leverage

    def left_out(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        r"""Leave-one-out residuals, shape `(n, k)`.

        With leverages :math:`h_i` they are :math:`(y_i - \hat y_i) / (1 - h_i)`.

        Args:
            inputs: The inputs that it was fitted to.
            targets: Their targets.
        """
        return (targets - self(inputs)) / self.leverage(inputs).left(inputs)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predictions, shape `(n, k)`."""
        return Design(self.features, inputs).predict(self)


@dataclass(frozen=True, eq=False)
class Design:
    """Features of inputs, on which one set of targets after the other is regressed.

    The features of at most 20 000 inputs are kept in memory.

    Args:
        features: Map from inputs to features, as `polynomials` returns it.
        inputs: Shape `(n, d)`.
    """

    features: Pipeline
    inputs: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, degree: int) -> Design:
        """Polynomials of inputs, with their mean and scale."""
        return cls(polynomials(inputs, degree), inputs)

    def fit(self, targets: np.ndarray) -> Regression:
        """Fit ridge regressions with one penalty for all columns.

        The penalty is chosen by leave-one-out, of more than 2 000 inputs by generalized
        cross-validation (Golub, Heath, Wahba 1979), which takes the leverages of all to
        be equal.

        Args:
            targets: Shape `(n, k)`.
        """
        scale, mean = spread(targets), targets.mean(axis=0)
        # one penalty for all columns keeps relations between them
        scaled = (targets - mean) / scale
        if len(targets) < MIN_FOR_SLOPES:
            size = self.features[-1].n_output_features_
            return Regression(
                self.features, np.zeros((size, len(mean))), mean, float("inf")
            )
        if len(targets) > _MANY:
            slopes, offset, penalty = self._fit_many(scaled)
        else:
            ridge = RidgeCV(PENALTIES).fit(self._matrix, scaled)
            slopes = np.reshape(ridge.coef_, (len(mean), -1)).T
            offset, penalty = np.reshape(ridge.intercept_, -1), ridge.alpha_
        intercept = mean + scale * offset
        return Regression(self.features, slopes * scale, intercept, float(penalty))

    def predict(self, regression: Regression) -> np.ndarray:
        """Predictions at these inputs, shape `(n, k)`.

        Args:
            regression: A regression on the same features.
        """
        predicted = np.empty((len(self.inputs), len(regression.intercept)))
        for rows, features in self._blocks():
            predicted[rows] = features @ regression.coefficients
        return predicted + regression.intercept

    def _fit_many(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Slopes, intercept and penalty for targets of mean 0."""
        mean, values, vectors = self._spectrum
        products = sum(each.T @ targets[rows] for rows, each in self._blocks())
        products = vectors.T @ products
        squares = (products**2).sum(axis=1)
        shrunk = values + PENALTIES[:, None]
        errors = (targets**2).sum() + ((values / shrunk - 2) / shrunk) @ squares
        freedom = 1 + (values / shrunk).sum(axis=1)
        score = errors / (1 - freedom / len(targets)) ** 2
        penalty = PENALTIES[np.argmin(score)]
        slopes = vectors @ (products / (values + penalty)[:, None])
        return slopes, -mean @ slopes, penalty

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of the features, and the spectrum of their centered Gram matrix."""
        count = len(self.inputs)
        mean = sum(each.sum(axis=0) for _, each in self._blocks()) / count
        gram = sum(each.T @ each for _, each in self._blocks())
        values, vectors = np.linalg.eigh(gram - count * np.outer(mean, mean))
        return mean, np.clip(values, 0.0, None), vectors

    @cached_property
    def _matrix(self) -> np.ndarray:
        return self.features.transform(self.inputs)

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        if len(self.inputs) <= _BLOCK:
            yield slice(None), self._matrix
            return
        for rows in blocks(len(self.inputs)):
            yield rows, self.features.transform(self.inputs[rows])
