"""What `check_pairing` found, in words and as a table; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.diagnostics.shared_noise import SharedNoise

_SIGNIFICANT = 0.01
# correlation given theta below which pairs hardly lower a variance (by a tenth)
_WEAK = 0.3
# a correlation that may be above this, but is not significant, is left open
_OPEN = 0.5
# a summary that may well be paired with its counterpart follows no other
_SURELY_NOT = 0.1
_MAX_LISTED = 12

PAIRED, WEAK = "paired", "weakly paired"
UNPAIRED, UNCLEAR = "not paired", "cannot tell"
NO_NOISE, ONE_SIDED = "no noise", "noise on one side only"
OWN, PARTLY_OWN = "own randomness", "partly own randomness"
FOLLOWS, MIXED = "follows another", "depends on its batch"


@dataclass(frozen=True, eq=False)
class LevelPairing:
    """How a level goes with the one below it.

    Args:
        level: The level.
        shared: What the two have in common at the same theta.
        own: Share of the variance given theta that is not reproduced at the same theta
            and noise, at the level and at the one below, shape `(2, k)`.
        is_mixed: Whether a row alone is reproduced but differs from the same row in a
            batch, at the level and at the one below.
    """

    level: int
    shared: SharedNoise
    own: np.ndarray
    is_mixed: tuple[bool, bool] = (False, False)

    @property
    def states(self) -> tuple[str, ...]:
        """One of the words of the table for each summary."""
        return tuple(self._state(summary) for summary in range(self.own.shape[1]))

    def _state(self, summary: int) -> str:
        shared = self.shared
        is_paired = shared.p_value[summary] < _SIGNIFICANT
        is_own = self.own[:, summary] > 0
        if is_own.any():
            if np.array(self.is_mixed)[is_own].all():
                return MIXED
            return PARTLY_OWN if is_paired else OWN
        if not shared.is_noisy[:, summary].any():
            return NO_NOISE
        if is_paired:
            is_weak = abs(shared.correlation[summary]) < _WEAK
            return WEAK if is_weak else PAIRED
        if not shared.p_value[summary] <= _SURELY_NOT and (
            shared.counterpart_p_value[summary] < _SIGNIFICANT
        ):
            return FOLLOWS
        if not shared.is_noisy[:, summary].all():
            return ONE_SIDED
        return UNCLEAR if not self._most[summary] <= _OPEN else UNPAIRED

    @property
    def _most(self) -> np.ndarray:
        """Upper limit (2 standard errors) of the size of each correlation."""
        size = np.abs(self.shared.correlation) + 2 * self.shared.correlation_error
        return size.clip(max=1.0)

    @property
    def is_paired(self) -> bool:
        """Whether some summary is paired, and none was seen not to be.

        Also where no summary has any noise.
        """
        states = set(self.states)
        good = {PAIRED, WEAK}
        return states <= {NO_NOISE} or (
            bool(states & good) and states <= good | {NO_NOISE, UNCLEAR}
        )

    @property
    def verdict(self) -> str:
        """In plain words."""
        states = np.array(self.states)
        own = np.isin(states, (OWN, PARTLY_OWN, MIXED))
        if own.any():
            return self._own_randomness()
        if (states == NO_NOISE).all():
            return (
                "no noise: x is a function of theta at both levels, so that rows at "
                "the same theta are pairs."
            )
        if np.isin(states, (PAIRED, WEAK)).any():
            return self._paired(states)
        follows = states == FOLLOWS
        if follows.any():
            return (
                "not paired summary by summary, but noise is shared: "
                f"{self._followed(follows)}. Are summaries in another order?"
            )
        return self._not_paired(states)

    def _paired(self, states: np.ndarray) -> str:
        good, open_ = np.isin(states, (PAIRED, WEAK)), states == UNCLEAR
        bad = ~good & ~open_ & (states != NO_NOISE)
        known = self._range(good)
        if bad.any():
            text = f"partly: {_names(bad)} not; of the others {known}"
        else:
            word = PAIRED if (states == PAIRED).any() else WEAK
            text = f"{word}: {known}"
        follows = states == FOLLOWS
        text += f"; {self._followed(follows)}" if follows.any() else ""
        if open_.any():
            text += f"; for {_summaries(open_)} more rows would tell"
        return f"{text}."

    def _own_randomness(self) -> str:
        drawn, mixed = self._changing(False), self._changing(True)
        text = ""
        if drawn:
            text = (
                f"draws randomness of its own: {drawn} is not reproduced at the same "
                "theta and noise. Draw all of it from the noise that the simulator is "
                "given. "
            )
        if mixed:
            text += (
                f"rows depend on their batch: a row of {mixed} differs from the same "
                "row alone, which is reproduced. Does the simulator combine rows, or "
                "seed a generator once a batch? Compute each row from its own theta "
                "and noise, e.g. by `vectorize_simulator`. "
            )
        rest = LevelPairing(self.level, self.shared, np.zeros_like(self.own))
        return f"{text}As it is: {rest.verdict}"

    def _changing(self, is_mixed: bool) -> str:
        """The levels whose rows change for one of the two reasons, and how much."""
        parts = []
        for side, level in enumerate((self.level, self.level - 1)):
            here = self.own[side] > 0
            if here.any() and self.is_mixed[side] == is_mixed:
                share = f"about {_percent(self.own[side][here])} of the noise of "
                parts.append(
                    f"level {level} ({'' if is_mixed else share}{_summaries(here)})"
                )
        return " and ".join(parts)

    def _not_paired(self, states: np.ndarray) -> str:
        if not np.isin(states, (UNPAIRED, UNCLEAR)).any():
            where = [
                f"level {level}"
                for side, level in enumerate((self.level, self.level - 1))
                if not self.shared.is_noisy[side].any()
            ]
            who = where[0] if where else "one side"
            return (
                f"no noise to share: {who} has none. Pairs have theta in common only."
            )
        return (
            "not paired: no shared noise was seen (correlation given theta at most "
            f"{np.nanmax(self._most):.2f}). Do both simulators use the same part of "
            "the noise?"
        )

    def _range(self, chosen: np.ndarray) -> str:
        values = self.shared.correlation[chosen]
        low, high = f"{values.min():.2f}", f"{values.max():.2f}"
        span = low if low == high else f"{low} to {high}"
        return f"the correlation given theta is {span}"

    def _followed(self, follows: np.ndarray) -> str:
        pairs = [
            f"{summary} follows {self.shared.counterpart[summary]}"
            for summary in np.flatnonzero(follows)
        ]
        return f"summary {', '.join(pairs)} of level {self.level - 1}"

    def table(self) -> str:
        """The summaries, those with the largest p-value first."""
        shared, states = self.shared, self.states
        lines = [
            "  summary  corr. given theta  variance paired/unpaired       p  verdict"
        ]
        order = np.arange(len(states))
        if len(order) > _MAX_LISTED:
            order = np.argsort(-np.nan_to_num(shared.p_value, nan=-1.0), kind="stable")
        for s in order[:_MAX_LISTED]:
            correlation = _plus_minus(
                shared.correlation[s], shared.correlation_error[s]
            )
            ratio = _plus_minus(
                shared.variance_ratio[s], shared.variance_ratio_error[s]
            )
            p = "-" if np.isnan(shared.p_value[s]) else f"{shared.p_value[s]:.3f}"
            lines.append(
                f"  {s:>7}  {correlation:>17}  {ratio:>24}  {p:>6}  {states[s]}"
            )
        if len(order) > _MAX_LISTED:
            lines.append(f"  and {len(order) - _MAX_LISTED} with smaller p")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class PairingReport:
    """What `check_pairing` found.

    Args:
        pairs: Levels 1 to L.
        simulations: The rows, pairs that can be trained on. Those of all levels have
            theta and noise in common, and several rows each theta: as training rows
            they are worth less than as many of `simulate_multilevel`.
        num_runs: Runs of each simulator, repeated ones included.
        num_failed: Rows that failed or are NaN at some level, and were left out.
        costs: Cost of a run of each simulator; `None` if unknown.
        num_invalid: Rows with NaN or infinity at some level, as far as it ran.
    """

    pairs: tuple[LevelPairing, ...]
    simulations: MultilevelSimulations
    num_runs: int
    num_failed: int
    costs: tuple[float, ...] | None
    num_invalid: int = 0

    @property
    def is_paired(self) -> bool:
        """Whether all levels are driven by the same noise, in every summary."""
        return all(pair.is_paired for pair in self.pairs)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A sentence for each level from 1 up."""
        return tuple(
            f"Level {pair.level} with level {pair.level - 1}: {pair.verdict}"
            for pair in self.pairs
        )

    @property
    def cost(self) -> float | None:
        """Cost of all runs."""
        return None if self.costs is None else self.num_runs * sum(self.costs)

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", at a cost of {self.cost:.3g}"
        left_out = ""
        if self.num_failed:
            left_out = f" {self.num_failed} rows were left out"
            if self.num_invalid:
                left_out += f" ({self.num_invalid} with NaN or inf in x)"
            left_out += "."
        lines = [f"Pairing, from {self.num_runs} runs of each level{cost}.{left_out}"]
        for pair, verdict in zip(self.pairs, self.verdicts):
            lines += [verdict, pair.table()]
        return "\n".join(lines)


def _summaries(chosen: np.ndarray) -> str:
    numbers = np.flatnonzero(chosen).tolist()
    if len(numbers) == len(chosen) > 1:
        return "all summaries"
    listed = ", ".join(map(str, numbers[:_MAX_LISTED]))
    more = "" if len(numbers) <= _MAX_LISTED else ", ..."
    return f"{'summary' if len(numbers) == 1 else 'summaries'} {listed}{more}"


def _names(chosen: np.ndarray) -> str:
    return f"{_summaries(chosen)} {'is' if chosen.sum() == 1 else 'are'}"


def _percent(shares: Sequence[float] | np.ndarray) -> str:
    low, high = f"{100 * min(shares):.1g}", f"{100 * max(shares):.1g}"
    low, high = f"{float(low):g}", f"{float(high):g}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _plus_minus(value: float, error: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.2f} ± {'?' if np.isnan(error) else f'{error:.2f}'}"
