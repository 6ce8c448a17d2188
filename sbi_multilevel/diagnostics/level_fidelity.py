"""Results of `fidelity_report`, in words and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sbi_multilevel.diagnostics.coherence import Coherence
from sbi_multilevel.diagnostics.correlations import Correlations
from sbi_multilevel.diagnostics.information import Information
from sbi_multilevel.diagnostics.loss_variance import LossVariance
from sbi_multilevel.diagnostics.probes import plus_minus

Informativeness = Literal["high", "moderate", "low", "none"]
_SIGNIFICANT = 2.0  # standard errors
_MODERATE, _HIGH = 0.1, 0.8  # shares of the entropy power
# effective number of high-fidelity simulations, relative to the number of pairs, below
# which the gain is negligible
_MIN_GAIN = 1.1
_MAX_LISTED = 12
_NOT_PAIRED = "unknown: simulations are not paired"


@dataclass(frozen=True, eq=False)
class LevelFidelity:
    """Comparison of a level with the lower level.

    Args:
        level: The level.
        coherence: Scores of a probe of the lower level.
        correlations: Correlations of x and x_coarse; `None` without pairs.
        information: Mutual information of x and x_coarse; `None` without pairs, or with
            too few.
        uncertainty_coefficient: I / H, with the differential entropy H of x in units of
            its standard deviations; NaN if H is not positive.
        loss: Variance of the loss with and without pairs; `None` without pairs, or with
            too few.
    """

    level: int
    coherence: Coherence
    correlations: Correlations | None = None
    information: Information | None = None
    uncertainty_coefficient: float = math.nan
    loss: LossVariance | None = None

    @property
    def is_paired(self) -> bool:
        """Whether the simulations are paired."""
        return self.correlations is not None

    @property
    def informativeness(self) -> Informativeness:
        """How informative the lower level is about this one.

        *high*: a probe of the lower level predicts theta better than one of the
        available simulations of the level, beyond the errors of both, or x_coarse
        removes 80 % of the entropy power of x. *moderate*: the probe predicts theta, or
        x_coarse removes 10 %. *none*: neither theta nor x is predicted. *low*:
        otherwise.
        """
        probe = self.coherence
        best, own = probe.best, probe.own
        transfers = probe.is_informative and best.value > _SIGNIFICANT * best.error
        found, share = self.information, 0.0
        if found is not None and found.nats > _SIGNIFICANT * found.error:
            share = found.informational_r2
        gain, error = best.value - own.value, math.hypot(best.error, own.error)
        if (transfers and gain > error) or share > _HIGH:
            return "high"
        if transfers or share > _MODERATE:
            return "moderate"
        return "low" if probe.is_informative or share > 0 else "none"

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        probe = self.coherence
        text = (
            f"Informativeness of level {self.level - 1} about level {self.level}: "
            f"{self.informativeness}. {probe.verdict}"
        )
        if probe.is_informative:
            text += (
                f" A probe trained on the {probe.num_simulations} simulations of level "
                f"{self.level} has R² {probe.own}."
            )
        if self.loss is not None:
            text += f" {self._loss_verdict(self.loss)}"
        return text

    def _loss_verdict(self, loss: LossVariance) -> str:
        low, high = loss.effective_num_high.interval
        least = _MIN_GAIN * loss.num_high
        span = f"{low:.0f} to {high:.0f} simulations of level {self.level}"
        what = f"For the multilevel loss, {loss.num_high} pairs"
        if low < least < high:
            return f"{what} are too few to estimate their effective number ({span})."
        text = f"{what} and {loss.num_low} simulations of level {self.level - 1} are"
        if high <= least:
            return f"{text} equivalent to hardly more than the pairs alone ({span})."
        value = loss.effective_num_high.value
        return f"{text} equivalent to about {value:.0f} ({span})."

    def table(self) -> str:
        """All estimates."""
        found, loss, probe = self.information, self.loss, self.coherence
        unknown = "unknown: too few pairs" if self.is_paired else _NOT_PAIRED
        coefficient = "undefined: H is not positive"
        if not math.isnan(self.uncertainty_coefficient):
            coefficient = f"{self.uncertainty_coefficient:.3f}"
        lines = [
            ("information I(x; x_coarse)", found),
            ("  uncertainty coefficient I / H(x)", coefficient if found else None),
            ("Var[f_l - f_(l-1)] / Var f_l", loss.variance_ratio if loss else None),
            ("correlation of f given theta", loss.correlation if loss else None),
            (
                "effective high-fidelity simulations",
                loss.effective_num_high if loss else None,
            ),
            (f"R² of a probe, at level {self.level - 1}", probe.below),
            (f"  at level {self.level}", probe.transfer),
            ("  after an affine map of summaries", probe.aligned),
            (f"  trained at level {self.level}", probe.own),
        ]
        text = [f"  {name:<37} {value or unknown}" for name, value in lines]
        return "\n".join(text + self._summaries())

    def _summaries(self) -> list[str]:
        found = self.correlations
        if found is None:
            return [f"  {'correlation of summaries':<37} {_NOT_PAIRED}"]
        lines = ["  summary    correlation    given theta"]
        order = np.arange(len(found.raw))
        if len(order) > _MAX_LISTED:
            order = np.argsort(np.nan_to_num(np.abs(found.raw)), kind="stable")
        for s in order[:_MAX_LISTED]:
            raw = plus_minus(found.raw[s], found.raw_error[s])
            rest = plus_minus(found.given_theta[s], found.given_theta_error[s])
            lines.append(f"  {s:>7}  {raw:>13}  {rest:>13}")
        if len(order) > _MAX_LISTED:
            lines.append(f"  and {len(order) - _MAX_LISTED} with a higher correlation")
        return lines


@dataclass(frozen=True, eq=False)
class FidelityReport:
    """Comparison of each level with the lower level; `print` shows it.

    Args:
        levels: Levels 1 to L, each with the level below.
        num_simulations: Number of simulations of each level.
    """

    levels: tuple[LevelFidelity, ...]
    num_simulations: tuple[int, ...]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each comparison in words, for levels 1 to L."""
        return tuple(level.verdict for level in self.levels)

    def __str__(self) -> str:
        counts = " + ".join(map(str, self.num_simulations))
        lines = [f"Fidelity, from {counts} simulations."]
        for level in self.levels:
            lines += [level.verdict, level.table()]
        return "\n".join(lines)
