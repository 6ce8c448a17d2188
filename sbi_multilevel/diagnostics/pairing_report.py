"""Results of `check_pairing`, in words and as a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.diagnostics.shared_noise import SharedNoise
from sbi_multilevel.diagnostics.tables import MAX_LISTED, abridged, plus_minus

_SIGNIFICANT = 0.01
# smaller correlations given theta reduce the variance by less than a tenth
_WEAK = 0.3
# no shared noise is reported only if the correlation is below this by 2 errors
_MAX_UNPAIRED = 0.5
# a summary may match another one only if its own counterpart has a larger p-value
_MIN_P_UNPAIRED = 0.1

PAIRED, WEAK = "paired", "weakly paired"
UNPAIRED, INCONCLUSIVE = "not paired", "inconclusive"
NO_NOISE, ONE_SIDED = "no noise", "noise at one level only"
INTERNAL, PARTLY_INTERNAL = "internal randomness", "partly internal randomness"
OTHER_SUMMARY, BATCH = "matches another summary", "depends on its batch"


@dataclass(frozen=True, eq=False)
class LevelPairing:
    """Shared noise of a level and the lower level.

    Args:
        level: The level.
        shared: Estimates and tests of shared noise.
        irreproducible: Share of the variance given theta that is not reproduced at the
            same theta and noise, at the level and at the lower level, shape `(2, k)`.
        depends_on_batch: Whether outputs are reproduced in batches of one only, at the
            level and at the lower level.
    """

    level: int
    shared: SharedNoise
    irreproducible: np.ndarray
    depends_on_batch: tuple[bool, bool] = (False, False)

    @property
    def states(self) -> tuple[str, ...]:
        """The state of each summary, as in the table."""
        shared, differs = self.shared, self.irreproducible > 0
        is_paired = shared.p_value < _SIGNIFICANT
        by_batch = np.array(self.depends_on_batch)[:, np.newaxis]
        is_likely_paired = shared.p_value <= _MIN_P_UNPAIRED
        has_counterpart = shared.counterpart_p_value < _SIGNIFICANT
        rules = (  # the first that applies
            (differs.any(axis=0) & (by_batch | ~differs).all(axis=0), BATCH),
            (differs.any(axis=0) & is_paired, PARTLY_INTERNAL),
            (differs.any(axis=0), INTERNAL),
            (~shared.is_noisy.any(axis=0), NO_NOISE),
            (is_paired & (np.abs(shared.correlation) < _WEAK), WEAK),
            (is_paired, PAIRED),
            (~is_likely_paired & has_counterpart, OTHER_SUMMARY),
            (~shared.is_noisy.all(axis=0), ONE_SIDED),
            (self._upper_limits <= _MAX_UNPAIRED, UNPAIRED),
        )
        conditions, states = zip(*rules)
        return tuple(np.select(conditions, states, INCONCLUSIVE).tolist())

    def _are(self, *states: str) -> np.ndarray:
        """Mask of the summaries in one of these states."""
        return np.isin(self.states, states)

    @property
    def _upper_limits(self) -> np.ndarray:
        """Upper limit (2 standard errors) of the size of each correlation."""
        size = np.abs(self.shared.correlation) + 2 * self.shared.correlation_error
        return size.clip(max=1.0)

    @property
    def is_paired(self) -> bool:
        """Whether some summary is paired and none is known to be unpaired.

        Also true if no summary has noise.
        """
        states, good = set(self.states), {PAIRED, WEAK}
        return states <= {NO_NOISE} or (
            bool(states & good) and states <= good | {NO_NOISE, INCONCLUSIVE}
        )

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self._are(INTERNAL, PARTLY_INTERNAL, BATCH).any():
            return self._irreproducible_verdict()
        if self._are(NO_NOISE).all():
            return (
                "no noise: x is a function of theta at both levels, so that outputs at "
                "the same theta are pairs."
            )
        if self._are(PAIRED, WEAK).any():
            return self._paired_verdict()
        if matches := self._matches():
            return (
                "not paired, but noise is shared by other summaries: "
                f"{matches}. Check the order of summaries."
            )
        return self._unpaired_verdict()

    def _paired_verdict(self) -> str:
        good, unclear = self._are(PAIRED, WEAK), self._are(INCONCLUSIVE)
        bad = ~(good | unclear | self._are(NO_NOISE))
        values = self.shared.correlation[good]
        low, high = f"{values.min():.2f}", f"{values.max():.2f}"
        span = low if low == high else f"{low} to {high}"
        start = f"{PAIRED if self._are(PAIRED).any() else WEAK}:"
        if bad.any():
            start = f"partly paired: {_summaries(bad)} not paired; otherwise"
        text = f"{start} the correlation given theta is {span}"
        if matches := self._matches():
            text += f"; {matches}"
        if unclear.any():
            text += f"; {_summaries(unclear)} inconclusive, increase num_simulations"
        return f"{text}."

    def _irreproducible_verdict(self) -> str:
        internal, by_batch = self._irreproducible(False), self._irreproducible(True)
        text = ""
        if internal:
            text = (
                f"internal randomness: {internal} is not reproduced at the same theta "
                "and noise. Use only the noise that is passed to the simulator. "
            )
        if by_batch:
            text += (
                f"dependence on the batch: the output of {by_batch} is reproduced in "
                "batches of one only. Compute each output from its own theta and noise "
                "and seed no generator per batch, e.g. by `vectorize_simulator`. "
            )
        rest = LevelPairing(self.level, self.shared, np.zeros_like(self.irreproducible))
        return f"{text}Otherwise: {rest.verdict}"

    def _irreproducible(self, depends_on_batch: bool) -> str:
        """The levels that are not reproduced for one of the two reasons."""
        parts = []
        for side, level in enumerate((self.level, self.level - 1)):
            here = self.irreproducible[side] > 0
            if here.any() and self.depends_on_batch[side] == depends_on_batch:
                percent = _percent(self.irreproducible[side][here])
                share = "" if depends_on_batch else f"about {percent} of the noise of "
                parts.append(f"level {level} ({share}{_summaries(here)})")
        return " and ".join(parts)

    def _unpaired_verdict(self) -> str:
        if self._are(UNPAIRED, INCONCLUSIVE).any():
            return (
                "not paired: no shared noise detected (correlation given theta at most "
                f"{np.nanmax(self._upper_limits):.2f}). Check that both simulators use "
                "the same part of the noise."
            )
        where = [
            f"level {level}"
            for side, level in enumerate((self.level, self.level - 1))
            if not self.shared.is_noisy[side].any()
        ]
        who = where[0] if where else "one side of each summary"
        return f"no shared noise: {who} has no noise. Pairs have only theta in common."

    def _matches(self) -> str:
        """The summaries that match another one of the lower level, if any."""
        pairs = [
            f"summary {summary} matches {self.shared.counterpart[summary]}"
            for summary in np.flatnonzero(self._are(OTHER_SUMMARY))
        ]
        return f"{', '.join(pairs)} of level {self.level - 1}" if pairs else ""

    def table(self) -> str:
        """Estimates of each summary; of many, those with the largest p-values."""
        shared, rows = self.shared, []
        for s, state in enumerate(self.states):
            rho = plus_minus(shared.correlation[s], shared.correlation_error[s])
            ratio = plus_minus(shared.variance_ratio[s], shared.variance_ratio_error[s])
            p = "-" if np.isnan(shared.p_value[s]) else f"{shared.p_value[s]:.3f}"
            rows.append(f"  {s:>7}  {rho:>17}  {ratio:>24}  {p:>6}  {state}")
        ranks = -np.nan_to_num(shared.p_value, nan=-1.0)
        title = (
            "  summary  corr. given theta  variance paired/unpaired       p  verdict"
        )
        return "\n".join([title, *abridged(rows, ranks, "with smaller p")])


@dataclass(frozen=True, eq=False)
class PairingReport:
    """Results of `check_pairing`; `print` shows them.

    Args:
        levels: Levels 1 to L, each with the level below.
        simulations: The simulations, as pairs that can be trained on. All levels share
            theta and noise, and several simulations share each theta; they are less
            informative than as many from `simulate_multilevel`.
        num_runs: Number of runs of each simulator, including repeated ones.
        num_failed: Number of simulations left out because they failed or are not finite
            at some level.
        costs: Cost of a run of each simulator; `None` if unknown.
        num_invalid: Number of these that returned NaN or infinity.
    """

    levels: tuple[LevelPairing, ...]
    simulations: MultilevelSimulations
    num_runs: int
    num_failed: int
    costs: tuple[float, ...] | None
    num_invalid: int = 0

    @property
    def is_paired(self) -> bool:
        """Whether all levels are paired, in every summary."""
        return all(level.is_paired for level in self.levels)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The result in words, for levels 1 to L."""
        return tuple(
            f"Level {each.level} with level {each.level - 1}: {each.verdict}"
            for each in self.levels
        )

    @property
    def cost(self) -> float | None:
        """Total cost; `None` if unknown."""
        return None if self.costs is None else self.num_runs * sum(self.costs)

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", at a cost of {self.cost:.3g}"
        left_out = ""
        if self.num_failed:
            left_out = f" {self.num_failed} simulations were left out"
            if self.num_invalid:
                left_out += f" ({self.num_invalid} with NaN or inf in x)"
            left_out += "."
        lines = [f"Pairing, from {self.num_runs} runs of each level{cost}.{left_out}"]
        for level, verdict in zip(self.levels, self.verdicts):
            lines += [verdict, level.table()]
        return "\n".join(lines)


def _summaries(chosen: np.ndarray) -> str:
    numbers = np.flatnonzero(chosen).tolist()
    if len(numbers) == len(chosen) > 1:
        return "all summaries"
    listed = ", ".join(map(str, numbers[:MAX_LISTED]))
    more = "" if len(numbers) <= MAX_LISTED else ", ..."
    return f"{'summary' if len(numbers) == 1 else 'summaries'} {listed}{more}"


def _percent(shares: np.ndarray) -> str:
    low, high = (f"{float(f'{100 * end:.1g}'):g}" for end in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"
