r"""Map scores: a synthetic likelihood as flexible as low-fidelity simulations require.

Mapped simulations are modelled by a semiparametric synthetic likelihood (Wood 2010; An,
Nott, Drovandi 2020), without a network. Given theta, the standardized and decorrelated
residuals

.. math::  z = \Lambda^{-1/2} V^\top \, \frac{\tilde x - m(\theta)}{s(\theta)}

are independent, each with a kernel density estimate (and 2 % of a wide normal, for
values beyond the range of the simulations). V and :math:`\Lambda` diagonalize the
correlation of the residuals. Held-out high-fidelity simulations are scored by
:math:`\log \tilde p(x \mid \theta)` where a likelihood is to be learned, and by the
posterior that it implies where posteriors are,

.. math::

    \log \frac{\tilde p(x \mid \theta)}
    {\frac1m \sum_j \tilde p(x \mid \theta_j)}, \qquad \theta_j \sim p(\theta),

the gain over the prior in nats at the true theta. It takes seconds, and ranks maps as
networks do that are trained on the mapped simulations.

Scores of maps differ by tenths of a nat a simulation, and a synthetic likelihood that
misses the form of x given theta errs by more: at the switch of a bistable cell a
quadratic mean is wrong by half a nat, whatever the map. Means m and log scales are
therefore either

- quadratic in theta, or
- linear in quadratic features and in the outputs of networks for what those leave
  (`sbi_multilevel.level_maps.selection.theta_features`).

The second is used if it predicts held-out low-fidelity simulations better, by a tenth
of a nat a simulation and by two standard errors. High-fidelity simulations are not used
for that, and fewer than 200 parameters are too few for networks. Networks are fitted to
simulations that are not mapped: maps that bend them much, e.g. where the switch of the
high-fidelity simulator is at another theta, are scored less precisely than maps that
shift or scale.

The posterior of a synthetic likelihood of many features is too narrow where their
residuals are dependent in a way that their correlation does not describe: on spectra of
39 wave numbers it is worse than the prior, and best for maps that replace the residuals
by simple noise. Where posteriors are to be learned, and x has more features than theta,
x is therefore summarized by a linear estimate of theta,

.. math::  S(x) = a + B x \approx E[\theta \mid x],

as in semi-automatic approximate Bayesian computation (Fearnhead and Prangle 2012), if
that predicts theta of held-out low-fidelity simulations better, by the same rule. B is
fitted to the mapped simulations of each map, without weights: any S is valid. Scores
are then posteriors given S(x).

Reference: Fearnhead and Prangle (2012), *Constructing summary statistics for
approximate Bayesian computation: semi-automatic approximate Bayesian computation*.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import logsumexp
from scipy.stats import norm

from sbi_multilevel.data.simulations import Target
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    Design,
    Regression,
    blocks,
    log_sizes,
    spread,
)
from sbi_multilevel.level_maps.selection.theta_features import ThetaFeatures

_NUM_PRIOR = 2_000  # draws from the prior
_MIN_EIGENVALUE = 1e-6  # of a correlation matrix
_RANGE, _NUM_NODES = 10.0, 801  # of the grid that densities are tabulated on
_STEP = 2 * _RANGE / (_NUM_NODES - 1)
_GRID = np.linspace(-_RANGE, _RANGE, _NUM_NODES)
_WIDE_SHARE, _WIDE_SCALE = 0.02, 3.0
_MAX_ENTRIES = 500_000  # in memory at a time: they fit into the cache of a processor
_MIN_PARAMETERS = 200  # that networks are fitted to
_MAX_LEFT_OUT = 500
_MAX_SIMULATIONS = 20_000  # that scorers are compared by
_MIN_GAIN = 0.1  # nats a simulation


@dataclass(frozen=True, eq=False)
class SyntheticLikelihood:
    """A synthetic likelihood, see the module.

    Args:
        mean: Mean of each feature given theta.
        log_scale: Logarithm of the scale of each feature, up to `scale`.
        scale: Standard deviation of the residuals over `exp(log_scale)`.
        whiten: Matrix that decorrelates standardized residuals, shape `(k, k)`.
        log_determinant: Logarithm of its determinant.
        log_densities: Logarithm of the density of each entry of z at the nodes of a
            grid, shape `(k, g)`.
    """

    mean: Regression
    log_scale: Regression
    scale: np.ndarray
    whiten: np.ndarray
    log_determinant: float
    log_densities: np.ndarray

    @classmethod
    def fit(cls, simulations: LevelArrays, degree: int = 2) -> SyntheticLikelihood:
        """Fit to many simulations.

        Args:
            simulations: The simulations.
            degree: Degree in theta of means and log scales.
        """
        design = simulations.of_theta(Design.of, degree)
        mean = design.fit(simulations.x)
        residuals = simulations.x - design.predict(mean)
        log_scale = design.fit(log_sizes(residuals))
        residuals /= np.exp(design.predict(log_scale))
        scale = spread(residuals)
        residuals /= scale
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(residuals.T)))
        values = np.clip(values, _MIN_EIGENVALUE, None)
        whiten = vectors / np.sqrt(values)
        log_densities = _log_densities(residuals @ whiten)
        log_determinant = -0.5 * np.log(values).sum()
        return cls(mean, log_scale, scale, whiten, log_determinant, log_densities)

    def log_prob(self, x: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Log density of each x, shape `(m, k)`, at its theta, shape `(m, d)`."""
        return self._log_prob(x, *self._moments(theta))

    def _moments(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.mean(theta), np.exp(self.log_scale(theta)) * self.scale

    def _log_prob(
        self, x: np.ndarray, mean: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        """Log density of x, shape `(..., k)`, given moments of a compatible shape."""
        z = ((x - mean) / scale) @ self.whiten
        return (
            _interpolated(self.log_densities, z).sum(axis=-1)
            - np.log(scale).sum(axis=-1)
            + self.log_determinant
        )

    def log_likelihood(self, simulations: LevelArrays) -> np.ndarray:
        """Log density of each x at its own theta, shape `(n,)`."""
        return self.log_prob(simulations.x, simulations.theta)

    def log_posterior_ratio(
        self,
        simulations: LevelArrays,
        prior: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Log of posterior over prior at the theta of each simulation, shape `(n,)`.

        Args:
            simulations: The simulations.
            prior: Draws from the prior in random order, shape `(m, d)`.
            weights: Weight of each draw, shape `(m,)`, if they are from another
                density; `None` for equal weights.
        """
        prior = prior[:_NUM_PRIOR]
        weights = None if weights is None else weights[:_NUM_PRIOR]
        total = len(prior) if weights is None else weights.sum()
        moments = self._moments(prior)
        x = simulations.x[:, np.newaxis]
        size = max(1, _MAX_ENTRIES // moments[0].size)
        evidence = [
            logsumexp(self._log_prob(x[rows], *moments), axis=1, b=weights)
            for rows in blocks(len(x), size)
        ]
        likelihood = self.log_likelihood(simulations)
        return likelihood - np.concatenate(evidence) + np.log(total)


def _identity(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True, eq=False)
class MapScorer:
    """Scores held-out simulations under the synthetic likelihood of mapped ones.

    Args:
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
        outputs: Function from x, shape `(n, k)`, to the features in scores.
        features: Features of theta; `None` if means and log scales are quadratic.
        num_summaries: Number of parameters, of which x is replaced by estimates; `None`
            if it is not.
        is_compressed: Whether outputs are principal components of many features.
    """

    target: Target
    outputs: Callable[[np.ndarray], np.ndarray] = _identity
    features: ThetaFeatures | None = None
    num_summaries: int | None = None
    is_compressed: bool = False

    @property
    def compares_likelihoods(self) -> bool:
        """Whether likelihoods of x are compared."""
        is_whole = self.num_summaries is None and not self.is_compressed
        return self.target == "x" or is_whole

    @classmethod
    def chosen(
        cls,
        low: LevelArrays,
        target: Target,
        outputs: Callable[[np.ndarray], np.ndarray] = _identity,
        is_compressed: bool = False,
    ) -> MapScorer:
        """The scorer for low-fidelity simulations, by the rules of the module.

        Args:
            low: Low-fidelity simulations in random order.
            target: See the class.
            outputs: See the class.
            is_compressed: See the class.
        """
        scorer = cls(target, outputs, is_compressed=is_compressed)
        low = low.first(_MAX_SIMULATIONS)
        if len(np.unique(low.theta, axis=0)) < _MIN_PARAMETERS:
            return scorer
        low = low.with_x(outputs(low.x))
        # e.g. where x overflows
        with contextlib.suppress(np.linalg.LinAlgError, ValueError):
            features = ThetaFeatures.fit(low)
            if features is not None:
                scorer = scorer._or(replace(scorer, features=features), low)
            num_features, num_parameters = low.x.shape[1], low.theta.shape[1]
            if target == "theta" and num_features > num_parameters:
                summary = replace(scorer, num_summaries=num_parameters)
                scorer = scorer._or(summary, low)
        return scorer

    def _or(self, other: MapScorer, low: LevelArrays) -> MapScorer:
        """The other scorer if it predicts left-out simulations better, or this one."""
        # computed once for a scorer that is compared with two others
        gain = low.cached(other._left_out) - low.cached(self._left_out)
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        return other if gain.mean() > max(_MIN_GAIN, 2 * error) else self

    def inputs(self, theta: np.ndarray) -> np.ndarray:
        """What means and log scales are regressed on, in the place of theta."""
        return theta if self.features is None else self.features.joined(theta)

    def scores(
        self, mapped: LevelArrays, held_out: LevelArrays
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Log score and log likelihood of each held-out simulation, in nats.

        Args:
            mapped: Mapped simulations, with `inputs` for theta and `outputs` for x.
            held_out: High-fidelity simulations that the map was not fitted to,
                likewise.

        Returns:
            Both of shape `(n,)`; the same if likelihoods are to be learned, and no
            likelihood if likelihoods are not compared.
        """
        degree = 2 if self.features is None else 1
        if self.num_summaries is not None:
            # parameters are the first of all inputs
            theta = mapped.theta[:, : self.num_summaries]
            summary = Design.of(mapped.x, 1).fit(theta)
            mapped, held_out = (
                each.with_x(summary(each.x)) for each in (mapped, held_out)
            )
        model = SyntheticLikelihood.fit(mapped, degree)
        likelihood = model.log_likelihood(held_out)
        if self.target == "x":
            return likelihood, likelihood
        ratio = model.log_posterior_ratio(held_out, mapped.theta, mapped.weights)
        return ratio, likelihood if self.compares_likelihoods else None

    def _left_out(self, low: LevelArrays) -> np.ndarray:
        """Scores of the first simulations under the later ones."""
        num_left_out = min(_MAX_LEFT_OUT, len(low) // 5)
        inputs = low.of_theta(self.inputs)
        low = LevelArrays(inputs, low.x, weights=low.weights)
        left_out, others = np.split(np.arange(len(low)), [num_left_out])
        return self.scores(low[others], low[left_out])[0]


def _log_densities(z: np.ndarray) -> np.ndarray:
    """Log of kernel density estimates at the nodes of the grid, by Silverman's rule."""
    count, num_features = z.shape
    lower, upper = np.percentile(z, [25, 75], axis=0)
    ranges = np.where(upper > lower, (upper - lower) / 1.349, np.inf)
    width = np.minimum(z.std(axis=0), ranges)
    cells = np.floor((z + _RANGE) / _STEP + 0.5)
    inside = (cells >= 0) & (cells < _NUM_NODES)
    first = _NUM_NODES * np.arange(num_features)
    numbers = (cells + first)[inside].astype(int)
    counts = np.bincount(numbers, minlength=_NUM_NODES * num_features)
    histograms = counts.reshape(num_features, _NUM_NODES) / (count * _STEP)
    bandwidths = np.maximum(0.9 * width * count**-0.2 / _STEP, 1.0)
    near = np.stack([gaussian_filter1d(*each) for each in zip(histograms, bandwidths)])
    far = norm.pdf(_GRID, scale=_WIDE_SCALE)
    return np.log((1 - _WIDE_SHARE) * near + _WIDE_SHARE * far)


def _interpolated(tables: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Tabulated functions of each entry of z, shape `(..., k)`; beyond the grid, log
    density of the wide normal."""
    place = np.clip((z + _RANGE) / _STEP, 0.0, _NUM_NODES - 1.001)
    cell = place.astype(np.int32)
    place -= cell
    cell += (_NUM_NODES * np.arange(len(tables))).astype(np.int32)
    rises = np.diff(tables, axis=1, append=0.0).ravel()
    values = tables.ravel().take(cell) + place * rises.take(cell)
    beyond = np.abs(z) > _RANGE
    if beyond.any():
        wide = norm.logpdf(z[beyond], scale=_WIDE_SCALE) + np.log(_WIDE_SHARE)
        values[beyond] = np.maximum(wide, np.log(1e-300))
    return values
