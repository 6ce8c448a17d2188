r"""Transfer of a regression of theta from the lower level to a level.

A probe is trained to predict theta from x of the lower level and evaluated on
simulations of the level itself. If it predicts theta at its own level but not at the
other one, the levels encode theta differently, e.g. after a change of sign, unit or
order of summaries. Four scores are reported, each the mean :math:`R^2` over parameters:

- *below*: the probe on the lower level, cross-validated on at most 2 000 simulations;
- *transfer*: the probe on the level, with x unchanged;
- *aligned*: the probe on the level, after the affine map of each summary :math:`j`

  .. math:: x_j \mapsto m^-_j + \epsilon_j \frac{s^-_j}{s_j} (x_j - m_j), \qquad
      \epsilon_j = \pm 1,

  with means m and standard deviations s of both levels. The sign :math:`\epsilon_j` is
  that of the correlation of :math:`x_j` with :math:`x_{\mathrm{coarse}, j}` for pairs,
  and otherwise with a regression of summary j of the lower level on theta, if theta
  explains 5 % of its variance. It is negative only if the correlation is below zero by
  three standard errors, with a Bonferroni correction for the number of summaries;
- *own*: a probe trained on the level itself, cross-validated.

If transfer reaches *own*, the lower level is as informative as the available
high-fidelity simulations. A reversed summary results in a strongly negative transfer
which the map removes. A probe predicts means: a parameter that affects only the
variance of a single summary, or higher moments, is not detected at either level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from torch import Tensor

from sbi_multilevel.diagnostics.information import as_array
from sbi_multilevel.diagnostics.probes import Probe, Score, cross_predictions, r_squared
from sbi_multilevel.level_maps.regression import spread, varies
from sbi_multilevel.utils.argument_types import check_types

_MIN_SIMULATIONS, _MAX_SCORED = 10, 2_000
_SIGNIFICANT = 2.0  # standard errors of a score
_MIN_REVERSED, _MIN_EXPLAINED = 3.0, 0.05
_WELL = 0.8  # share of the R² at the lower level


@dataclass(frozen=True, eq=False)
class Coherence:
    """Scores of a probe of the lower level, see the module.

    Args:
        level: The level.
        num_simulations: Number of simulations of the level.
        below: R² at the lower level.
        transfer: R² at the level, x unchanged.
        aligned: R² at the level, after the affine map of each summary.
        gain: Difference of `aligned` and `transfer`.
        own: R² of a probe trained on the level itself.
        reversed_summaries: Summaries whose sign the map changes.
    """

    level: int
    num_simulations: int
    below: Score
    transfer: Score
    aligned: Score
    gain: Score
    own: Score
    reversed_summaries: tuple[int, ...]

    @property
    def is_informative(self) -> bool:
        """Whether the probe predicts theta at the lower level."""
        return self.below.value > _SIGNIFICANT * self.below.error

    @property
    def is_improved(self) -> bool:
        """Whether the affine map improves the transfer by two standard errors."""
        return self.gain.value > _SIGNIFICANT * self.gain.error

    @property
    def best(self) -> Score:
        """`aligned` if the map improves the transfer, else `transfer`."""
        return self.aligned if self.is_improved else self.transfer

    @property
    def verdict(self) -> str:
        """The scores in words."""
        low, high = self.level - 1, self.level
        if not self.is_informative:
            return f"A probe of level {low} does not predict theta (R² {self.below})."
        text = f"At level {high}, a probe of level {low} {self._words(self.transfer)}"
        numbers = ", ".join(map(str, self.reversed_summaries))
        if self.is_improved:
            signs = f" (sign reversed: {numbers})" if numbers else ""
            how = self._words(self.aligned)
            text += f"; after an affine map of each summary{signs} it {how}"
        elif self._share(self.transfer) < _WELL:
            text += "; an affine map of each summary does not improve this"
        if numbers:
            noun = "summaries" if len(self.reversed_summaries) > 1 else "summary"
            text += f". Levels {low} and {high} differ in the sign of {noun} {numbers}"
        return f"{text}."

    def _share(self, score: Score) -> float:
        return score.value / self.below.value

    def _words(self, score: Score) -> str:
        if score.value < -_SIGNIFICANT * score.error:
            text = "predicts theta worse than its mean"
        elif score.value <= _SIGNIFICANT * score.error:
            text = "does not predict theta"
        else:
            part = "" if self._share(score) >= _WELL else "partly "
            text = f"{part}predicts theta"
        return f"{text} (R² {score})"


def coherence(
    theta_low: Tensor | np.ndarray,
    x_low: Tensor | np.ndarray,
    theta: Tensor | np.ndarray,
    x: Tensor | np.ndarray,
    x_coarse: Tensor | np.ndarray | None = None,
    *,
    level: int = 1,
) -> Coherence:
    """Evaluate a probe of the lower level on simulations of a level.

    Args:
        theta_low: Parameters of the lower level, shape `(n_low, d)`.
        x_low: Outputs of the lower level, shape `(n_low, k)`.
        theta: Parameters of the level, shape `(n, d)`.
        x: Outputs of the level, shape `(n, k)`.
        x_coarse: Outputs of the lower level at the same theta and noise as `x`, shape
            `(n, k)`; `None` if simulations are not paired.
        level: Index of the level, for messages.

    Returns:
        The scores and the reversed summaries.

    Raises:
        TypeError: If parameters or outputs are not tensors or arrays.
        ValueError: If a level has fewer than 10 simulations.

    Example:
    --------

    A summary with reversed sign:

    ::

        >>> rng = np.random.default_rng(0)
        >>> theta = rng.uniform(size=(400, 1))
        >>> x = theta + 0.1 * rng.normal(size=(400, 1))
        >>> found = coherence(theta[:300], x[:300], theta[300:], 1 - x[300:])
        >>> found.transfer.value < -1, found.aligned.value > 0.8
        (True, True)
        >>> found.reversed_summaries
        (0,)
    """
    check_types(coherence, locals())
    theta_low, x_low, theta, x = map(as_array, (theta_low, x_low, theta, x))
    x_coarse = None if x_coarse is None else as_array(x_coarse)
    if min(len(x_low), len(x)) < _MIN_SIMULATIONS:
        raise ValueError(
            f"Levels {level - 1} and {level} have {len(x_low)} and {len(x)} "
            f"simulations, too few for a probe. Pass {_MIN_SIMULATIONS} or more."
        )
    probe = Probe.fit(x_low, theta_low)
    scored = x_low[:_MAX_SCORED], theta_low[:_MAX_SCORED]
    aligned, signs = _aligned(theta_low, x_low, theta, x, x_coarse)
    before, after = probe(x), probe(aligned)
    return Coherence(
        level,
        len(x),
        r_squared(scored[1], cross_predictions(*scored)),
        r_squared(theta, before),
        r_squared(theta, after),
        _gain(theta, before, after),
        r_squared(theta, cross_predictions(x, theta)),
        tuple(np.flatnonzero(signs < 0).tolist()),
    )


def _aligned(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """x after the affine map, and the sign of each summary."""
    reference = x_coarse
    if reference is None:
        reference = Probe.fit(theta_low, x_low)(theta)
        explained = reference.var(axis=0) > _MIN_EXPLAINED * x_low.var(axis=0)
        reference = np.where(explained, reference, 0.0)
    a, b = ((v - v.mean(axis=0)) / spread(v) for v in (reference, x))
    least = norm.isf(norm.sf(_MIN_REVERSED) / x.shape[1]) / np.sqrt(len(x))
    signs = np.where((a * b).mean(axis=0) < -least, -1.0, 1.0)
    both = varies(x) & varies(x_low)
    scale = np.where(both, spread(x_low) / spread(x), 1.0)
    return x_low.mean(axis=0) + signs * scale * (x - x.mean(axis=0)), signs


def _gain(theta: np.ndarray, before: np.ndarray, after: np.ndarray) -> Score:
    """Increase of R² by the map, with its standard error given the map."""
    used = varies(theta)
    scale = theta[:, used].var(axis=0)
    errors = [
        ((theta - predictions)[:, used] ** 2 / scale).mean(axis=1)
        for predictions in (before, after)
    ]
    gain = errors[0] - errors[1]
    return Score(float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain))))
