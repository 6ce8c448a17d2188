"""What `fidelity_report` found, in words and as a table; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sbi_multilevel.diagnostics.coherence import Coherence
from sbi_multilevel.diagnostics.correlations import Correlations
from sbi_multilevel.diagnostics.information import Information
from sbi_multilevel.diagnostics.losses import LossPairs

_CLEARLY = 2.0  # standard errors
_NOTABLE, _MOST = 0.1, 0.8  # shares of the entropy power
# rows that pairs stand for, a pair, below which they save hardly anything
_WORTHWHILE = 1.1
_MAX_LISTED = 12
_UNKNOWN = "not known: rows are not paired"

MUCH, SOMETHING, LITTLE, NOTHING = "much", "something", "little", "nothing"


@dataclass(frozen=True, eq=False)
class LevelFidelity:
    """What the level below tells about a level.

    Args:
        level: The level.
        coherence: What a probe of the level below reads at the level.
        correlations: Of x and x_coarse; `None` where rows are not paired.
        information: Mutual information of x and x_coarse; `None` where rows are not
            paired, or too few.
        published: The uncertainty coefficient I / H as published, with H of x in units
            of its standard deviations; NaN where H is not positive.
        loss: What pairs do for the loss; `None` where rows are not paired, or too few.
    """

    level: int
    coherence: Coherence
    correlations: Correlations | None = None
    information: Information | None = None
    published: float = math.nan
    loss: LossPairs | None = None

    @property
    def is_paired(self) -> bool:
        """Whether the rows are pairs, without which most of this is not known."""
        return self.correlations is not None

    @property
    def tells(self) -> str:
        """How much the level below tells: much, something, little or nothing.

        *much*: a probe of the level below reads more of theta than one of the rows at
        hand, beyond the errors of both; or x_coarse removes 80 % of the entropy power
        of x. *something*: the probe reads theta; or 10 %. *nothing*: it does not, and
        there is no mutual information. *little*: the rest.
        """
        probe = self.coherence
        best, own = probe.best, probe.own
        reads = probe.is_informative and best.value > _CLEARLY * best.error
        found, share = self.information, 0.0
        if found is not None and found.nats > _CLEARLY * found.error:
            share = found.share
        gain, error = best.value - own.value, math.hypot(best.error, own.error)
        if (reads and gain > error) or share > _MOST:
            return MUCH
        if reads or share > _NOTABLE:
            return SOMETHING
        return LITTLE if probe.is_informative or share > 0 else NOTHING

    @property
    def verdict(self) -> str:
        """In plain words."""
        probe = self.coherence
        text = (
            f"Level {self.level - 1} tells {self.tells} about level {self.level}. "
            f"{probe.verdict}"
        )
        if probe.is_informative:
            text += f" A probe of the {probe.num_rows} rows there has R² {probe.own}."
        if self.loss is not None:
            text += f" {self._rows()}"
        return text

    def _rows(self) -> str:
        """What the pairs are worth for the loss, or that they are too few to tell."""
        loss = self.loss
        assert loss is not None
        (low, high), least = loss.worth.interval, _WORTHWHILE * loss.num_high
        span = f"({low:.0f} to {high:.0f} rows of level {self.level})"
        what, pairs = "For the multilevel loss", f"{loss.num_high} pairs"
        if low < least < high:
            return f"{what}, {pairs} are too few to tell what they save {span}."
        text = f"{what}, {pairs} with {loss.num_low} cheap rows stand for"
        if high <= least:
            return f"{text} hardly more than themselves {span}."
        return f"{text} about {loss.worth.value:.0f} {span}."

    def table(self) -> str:
        """All that was measured."""
        found, loss = self.information, self.loss
        few = "not known: too few pairs"
        unknown = few if self.is_paired else _UNKNOWN
        published = "none: H is not positive"
        if not math.isnan(self.published):
            published = f"{self.published:.3f}"
        lines = [
            ("information I(x; x_coarse)", found),
            ("  as published, I / H(x)", published if found else None),
            ("Var[f_l - f_(l-1)] / Var f_l", loss.ratio if loss else None),
            ("correlation of f beyond theta", loss.correlation if loss else None),
            ("rows that the pairs stand for", loss.worth if loss else None),
        ]
        probe = self.coherence
        scores = [
            (f"R² of a probe, at level {self.level - 1}", probe.below),
            (f"  at level {self.level}, as it is", probe.transfer),
            ("  after an affine map a summary", probe.aligned),
            (f"  of {probe.num_rows} rows of its own", probe.own),
        ]
        text = [f"  {name:<32} {value or unknown}" for name, value in lines]
        text += [f"  {name:<32} {value}" for name, value in scores]
        return "\n".join(text + self._summaries())

    def _summaries(self) -> list[str]:
        found = self.correlations
        if found is None:
            return [f"  {'correlation of summaries':<32} {_UNKNOWN}"]
        lines = ["  summary    correlation   beyond theta"]
        order = np.arange(len(found.raw))
        if len(order) > _MAX_LISTED:
            order = np.argsort(np.nan_to_num(np.abs(found.raw)), kind="stable")
        for s in order[:_MAX_LISTED]:
            raw = _plus_minus(found.raw[s], found.raw_error[s])
            rest = _plus_minus(found.beyond_theta[s], found.beyond_theta_error[s])
            lines.append(f"  {s:>7}  {raw:>13}  {rest:>13}")
        if len(order) > _MAX_LISTED:
            lines.append(f"  and {len(order) - _MAX_LISTED} with a higher correlation")
        return lines


@dataclass(frozen=True, eq=False)
class FidelityReport:
    """What `fidelity_report` found.

    Args:
        levels: Levels 1 to L, each with the one below it.
        num_simulations: Rows of each level.
    """

    levels: tuple[LevelFidelity, ...]
    num_simulations: tuple[int, ...]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Plain words, for each level from 1 up."""
        return tuple(level.verdict for level in self.levels)

    def __str__(self) -> str:
        lines = [f"Fidelity, from {' + '.join(map(str, self.num_simulations))} rows."]
        for level in self.levels:
            lines += [level.verdict, level.table()]
        return "\n".join(lines)


def _plus_minus(value: float, error: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f} ± {error:.2f}"
