r"""Does what is learned at the low level read the high one?

A probe is trained to tell theta from x of the level below, and then asked about rows of
the level itself. That it tells theta at its own level and not here, or wrongly, means
that the levels code theta differently: their summaries mean other things, as after a
change of sign, unit or order. Four numbers, each the mean :math:`R^2` over parameters:

- *below*: such a probe at rows of its own level, cross-validated (2 000 of them);
- *transfer*: the same probe at rows of the level above, x as it is;
- *aligned*: the same after the affine map of each summary :math:`j`

  .. math:: x_j \mapsto m^-_j + \epsilon_j \frac{s^-_j}{s_j} (x_j - m_j), \qquad
      \epsilon_j = \pm 1,

  with means m and deviations s of both levels, and the sign :math:`\epsilon_j` that of
  the correlation of :math:`x_j` with its counterpart: :math:`x_{\mathrm{coarse}, j}`
  in pairs, else the mean of summary j of the level below at the same theta, by a
  regression on its rows, if theta explains 5 % of it. The sign is negative only if the
  correlation is surely so, by three standard errors of one summary, and more of many
  (Bonferroni);
- *own*: a probe trained on the rows of the level itself, cross-validated.

Where transfer reaches *own*, cheap rows have taught as much as the dear ones have. A
reversed summary shows as a strongly negative transfer that alignment mends. A probe
predicts means: a parameter that moves nothing but the spread of a single output (or
higher moments) is invisible to it, at either level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from sbi_multilevel.diagnostics.probes import (
    Probe,
    Score,
    cross_predictions,
    r_squared,
)
from sbi_multilevel.level_maps.regression import spread, varies

_MAX_JUDGED = 2_000
_CLEARLY = 2.0  # standard errors
_SURELY, _MIN_EXPLAINED = 3.0, 0.05
_WELL = 0.8  # share of what the probe reads at its own level


@dataclass(frozen=True, eq=False)
class Coherence:
    """What a probe of the level below reads; see the module.

    Args:
        level: The level.
        num_rows: Its rows.
        below: R² at the level below.
        transfer: R² at the level, x as it is.
        aligned: R² at the level, after an affine map of each summary.
        gain: What the map adds.
        own: R² of a probe trained on the rows of the level itself.
        reversed_summaries: Summaries whose sign the map changes.
    """

    level: int
    num_rows: int
    below: Score
    transfer: Score
    aligned: Score
    gain: Score
    own: Score
    reversed_summaries: tuple[int, ...]

    @property
    def is_informative(self) -> bool:
        """Whether x of the level below tells theta at all, to a probe."""
        return self.below.value > _CLEARLY * self.below.error

    @property
    def is_mended(self) -> bool:
        """Whether the affine map improves the transfer clearly."""
        return self.gain.value > _CLEARLY * self.gain.error

    @property
    def best(self) -> Score:
        """Transfer, with the affine map where that is clearly better."""
        return self.aligned if self.is_mended else self.transfer

    @property
    def verdict(self) -> str:
        """In plain words."""
        low, high = self.level - 1, self.level
        if not self.is_informative:
            return f"x of level {low} tells a probe nothing of theta (R² {self.below})."
        text = f"A probe of level {low} {self._reading(self.transfer, f'level {high}')}"
        if self.is_mended:
            flipped = ", ".join(map(str, self.reversed_summaries))
            signs = f" (reversing {flipped})" if flipped else ""
            how = self._reading(self.aligned, "it")
            text += f"; after an affine map of each summary{signs} it {how}"
        elif self._share(self.transfer) < _WELL:
            text += "; an affine map of each summary does not mend this"
        return f"{text}.{self._opposite()}"

    def _opposite(self) -> str:
        """A sentence on the summaries that go the other way round."""
        if not self.reversed_summaries:
            return ""
        names = ", ".join(map(str, self.reversed_summaries))
        text = f"Summaries {names} fall at level {self.level} where they rise"
        if len(self.reversed_summaries) == 1:
            text = f"Summary {names} falls at level {self.level} where it rises"
        return f" {text} at level {self.level - 1}."

    def _share(self, score: Score) -> float:
        return score.value / self.below.value

    def _reading(self, score: Score, what: str) -> str:
        if score.value < -_CLEARLY * score.error:
            return f"misreads {what} (R² {score})"
        if score.value <= _CLEARLY * score.error:
            return f"does not read {what} (R² {score})"
        part = "" if self._share(score) >= _WELL else " in part"
        return f"reads {what}{part} (R² {score})"

    def __str__(self) -> str:
        return (
            f"R² for theta: {self.below} at level {self.level - 1}; at level "
            f"{self.level} {self.transfer}, aligned {self.aligned}; of {self.num_rows} "
            f"rows of its own {self.own}"
        )


def coherence(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray | None = None,
    *,
    level: int = 1,
) -> Coherence:
    """Ask a probe of the level below about the rows of a level.

    Args:
        theta_low: Parameters of the level below, shape `(n_low, d)`.
        x_low: Its outputs, shape `(n_low, k)`.
        theta: Parameters of the level, shape `(n, d)`.
        x: Its outputs, shape `(n, k)`.
        x_coarse: Outputs of the level below at the same rows, if they are pairs.
        level: Number of the level, for words.

    Raises:
        ValueError: If a level has fewer than 10 rows.

    Example:
    --------

    A summary with its sign reversed:

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
    if min(len(x_low), len(x)) < 10:
        raise ValueError(
            f"Levels {level - 1} and {level} have {len(x_low)} and {len(x)} rows, too "
            "few for a probe. Pass 10 or more."
        )
    judged = x_low[:_MAX_JUDGED], theta_low[:_MAX_JUDGED]
    probe = Probe.fit(x_low, theta_low)
    aligned, signs = _aligned(theta_low, x_low, theta, x, x_coarse)
    answers, mended = probe(x), probe(aligned)
    return Coherence(
        level,
        len(x),
        r_squared(judged[1], cross_predictions(*judged)),
        r_squared(theta, answers),
        r_squared(theta, mended),
        _gain(theta, answers, mended),
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
    """x on the scale of the level below, and the sign of each summary's map."""
    reference = x_coarse
    if reference is None:
        reference = Probe.fit(theta_low, x_low)(theta)
        explained = reference.var(axis=0) > _MIN_EXPLAINED * x_low.var(axis=0)
        reference = np.where(explained, reference, 0.0)
    a, b = ((v - v.mean(axis=0)) / spread(v) for v in (reference, x))
    surely = norm.isf(norm.sf(_SURELY) / x.shape[1]) / np.sqrt(len(x))
    is_reversed = (a * b).mean(axis=0) < -surely
    signs = np.where(is_reversed, -1.0, 1.0)
    both = varies(x) & varies(x_low)
    scale = np.where(both, spread(x_low) / spread(x), 1.0)
    return x_low.mean(axis=0) + signs * scale * (x - x.mean(axis=0)), signs


def _gain(theta: np.ndarray, answers: np.ndarray, mended: np.ndarray) -> Score:
    """What the map adds to R², with its error over rows, the map given."""
    used = varies(theta)
    scale = theta[:, used].var(axis=0)
    before, after = (
        ((theta - predictions)[:, used] ** 2 / scale).mean(axis=1)
        for predictions in (answers, mended)
    )
    gain = before - after
    return Score(float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain))))
