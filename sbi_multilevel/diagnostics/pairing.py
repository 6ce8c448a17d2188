r"""Are the levels driven by the same randomness?

The multilevel loss needs pairs: :math:`x = G_l(\theta, u)` and :math:`x_\mathrm{coarse}
= G_{l-1}(\theta, u)` at the same noise u. Where a simulator draws numbers of its own,
or reads another part of the noise, rows look like pairs and are none. A few runs show
it: each level at the same few thetas, with the same few noises at each. Deviations from
the mean of a theta are compared (`sbi_multilevel.diagnostics.shared_noise`), so that it
does not count that both levels follow theta, and rows of one theta and different noises
are the unpaired ones to compare pairs with.

Some rows are run a second time with the same theta and noise, at another place among
the rows, and the last of them alone. An output that changes is drawn from elsewhere, or
depends on the other rows of its batch, which two more runs of such a row, alone, tell
apart; what share of the noise this is, is :math:`\tfrac12 \mathbb{E} (x' - x)^2 /
\mathbb{E}\, \mathrm{Var}[x \mid \theta]`.

Each level runs `num_simulations` rows and `num_repeats` again, with all costs
:math:`(n + r) \sum_l C_l`. Fifty rows see a correlation given theta of 0.7 nine
times in ten for one summary and three times in four for each of ten; smaller ones need
more rows, and where that matters the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.pairing_report import LevelPairing, PairingReport
from sbi_multilevel.diagnostics.shared_noise import noise_variance, shared_noise
from sbi_multilevel.simulation.accounting import failure_text, measured_costs
from sbi_multilevel.simulation.arguments import (
    CHECKED_ALONE,
    check_num_costs,
    check_seed,
    per_level,
    processed_prior,
)
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.filling import Effort, fill
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    derive_seed,
    draw_theta,
    row_seeds,
    seeded,
)
from sbi_multilevel.simulation.table import LevelTable, memory_table
from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work, status_of
from sbi_multilevel.utils.argument_types import check_types

_STREAM = 20
_MIN_NOISES, _MIN_THETAS = 3, 4
# a repeated output may differ by so much of its deviation, or of the largest value
_TOLERANCE, _ROUNDING = 1e-2, 1e-5


def check_pairing(
    simulators: Sequence[Simulator],
    prior: Any,
    noise: NoiseSampler | None = None,
    *,
    num_simulations: int = 50,
    num_noises: int = 5,
    num_repeats: int = 10,
    seed: int = 0,
    simulation_batch_size: int | Sequence[int] = 1_000,
    num_workers: int | None = None,
    costs: Sequence[float] | None = None,
    timeout: float | None = None,
    max_failure_share: float = 0.2,
    show_progress_bars: bool = False,
) -> PairingReport:
    r"""Check that neighbouring levels are driven by the same noise.

    At a fixed theta, pairs share their noise if :math:`\mathrm{Var}[x - x_\mathrm{
    coarse} \mid \theta]` is below that of rows with different noises; see the module
    for estimates and tests.

    Args:
        simulators: One a level, cheapest first, as of `simulate_multilevel`.
        prior: Prior over theta, anything that sbi takes.
        noise: Noise sampler, as of `simulate_multilevel`; `None` for seeds.
        num_simulations: Rows of each level, `num_noises` at each theta.
        num_noises: Noises at each theta, at least 3.
        num_repeats: Rows of each level that are run a second time.
        seed: Root seed, an integer >= 0. Rows are others than those that
            `simulate_multilevel` makes with the same seed.
        simulation_batch_size: As of `simulate_multilevel`.
        num_workers: As of `simulate_multilevel`.
        costs: Cost of a run of each simulator; the seconds measured by default.
        timeout: As of `simulate_multilevel`.
        max_failure_share: As of `simulate_multilevel`.
        show_progress_bars: Whether to show a progress bar a level.

    Returns:
        A verdict for each level and summary, and the rows. `print` it.

    Raises:
        ValueError: If the arguments do not fit, the levels return other shapes, rows of
            a batch are mixed up, or too few rows are valid.
        TooManyFailures: If a larger share of rows fails than is allowed.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> def coarse(theta, noise):
        ...     return theta + noise
        >>> def fine(theta, noise):  # draws its own numbers
        ...     return theta + torch.randn(len(theta), 1)
        >>> report = check_pairing(
        ...     [coarse, fine],
        ...     BoxUniform(-torch.ones(1), torch.ones(1)),
        ...     lambda n, generator: torch.randn(n, 1, generator=generator),
        ... )
        >>> report.is_paired
        False
        >>> report.verdicts
        ('Level 1 with level 0: draws randomness of its own: level 1 (about ...
    """
    check_types(check_pairing, locals(), but=CHECKED_ALONE)
    work = _EachAlone(simulators, noise, timeout)
    _check_arguments(simulators, num_simulations, num_noises, num_repeats, costs, seed)
    with seeded(seed):  # sbi draws from the prior to check it
        prior = processed_prior(prior)
    num_thetas = num_simulations // num_noises
    root = derive_seed(seed, _STREAM)
    theta = draw_theta(prior, root, 0, num_thetas).repeat_interleave(num_noises, dim=0)
    seeds = row_seeds(root, 0, 0, len(theta))
    again = torch.arange(len(theta)).flip(0)[:num_repeats]
    rows = torch.cat([torch.arange(len(theta)), again])
    tables = tuple(
        memory_table(level, theta[rows], seeds[rows])
        for level in range(len(simulators))
    )
    effort = Effort(
        per_level(simulation_batch_size, len(simulators)),
        num_workers,
        max_failure_share,
        show_progress_bars,
    )
    fill(tables, (len(rows) - 1,) * len(tables), work, effort)
    chosen = tuple(map(float, costs)) if costs is not None else measured_costs(tables)
    quiet = replace(effort, show_progress_bars=False)
    fill(tables, (len(rows),) * len(tables), work, quiet)  # the last row, alone
    runs = _Runs.of(tables, theta, again)
    mixed = [_is_mixed(runs, table, work, effort) for table in tables]
    return PairingReport(
        tuple(
            replace(
                runs.pairing(level, seed), is_mixed=(mixed[level], mixed[level - 1])
            )
            for level in range(1, len(tables))
        ),
        runs.simulations(chosen),
        len(rows),
        int((~runs.valid).sum()),
        chosen,
        _num_invalid(tables, len(theta)),
    )


def _check_arguments(
    simulators: Sequence[Simulator],
    num_simulations: int,
    num_noises: int,
    num_repeats: int,
    costs: Sequence[float] | None,
    seed: int,
) -> None:
    if len(simulators) < 2:
        raise ValueError(
            f"simulators has {len(simulators)} levels, but pairing is about two or "
            "more. Pass one simulator a level, the cheapest first."
        )
    if num_noises < _MIN_NOISES or num_simulations < _MIN_THETAS * num_noises:
        raise ValueError(
            f"num_simulations={num_simulations} and num_noises={num_noises} are too "
            f"few to tell: pass num_noises >= {_MIN_NOISES}, and num_simulations >= "
            f"{_MIN_THETAS} * num_noises."
        )
    if not 1 <= num_repeats <= num_simulations // num_noises * num_noises:
        raise ValueError(
            f"num_repeats={num_repeats} must be between 1 and the rows of a level, a "
            "multiple of num_noises up to num_simulations."
        )
    check_num_costs(costs, len(simulators))
    check_seed(seed)


class _EachAlone(Work):
    """Runs the simulator of a level without that below, at rows of all levels."""

    def _run(self, task: Task) -> Outcome:
        x, seconds = self._side(task, task.level)
        # no run of the level below, whose time is not known
        spent = np.full((len(task), 2), np.nan)
        spent[:, 0] = seconds / len(task)
        return Outcome(status_of(x, None), spent, x)


@dataclass(frozen=True, eq=False)
class _Runs:
    """Outputs of all levels at the same rows, and again at some of them.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        groups: Number of the theta of each row, shape `(n,)`.
        x: Outputs of each level, shape `(n, *x_shape)`, NaN where a run failed.
        x_again: Second outputs of the rows `again`.
        again: Numbers of the rows that were run twice, shape `(r,)`.
        valid: Rows that no level failed at and whose theta has another, shape `(n,)`.
    """

    theta: Tensor
    groups: np.ndarray
    x: tuple[Tensor, ...]
    x_again: tuple[Tensor, ...]
    again: Tensor
    valid: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[LevelTable], theta: Tensor, again: Tensor) -> _Runs:
        """Read what was run.

        Raises:
            ValueError: If the levels return other shapes, or too few rows are valid.
        """
        outputs = [_outputs(table) for table in tables]
        shapes = [tuple(x.shape[1:]) for x in outputs]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"x of the levels has shapes {shapes} a row. All levels must return x "
                "of one shape: summarise the outputs to common features."
            )
        count = len(theta)
        _, groups = np.unique(theta.numpy(), axis=0, return_inverse=True)
        finite = [x[:count].isfinite().flatten(1).all(dim=1) for x in outputs]
        valid = torch.stack(finite).all(dim=0).numpy()
        groups = groups.reshape(-1)
        valid &= np.bincount(groups, weights=valid)[groups] > 1
        if len(np.unique(groups[valid])) < _MIN_THETAS:
            reasons = [failure_text(table, len(table)) for table in tables]
            why = "; ".join(text for text in reasons if text) or "NaN or inf in x"
            raise ValueError(
                f"Only {int(valid.sum())} of {count} rows are valid at all levels: "
                f"{why}. Pass a larger num_simulations, or mend the simulators."
            )
        first = tuple(x[:count] for x in outputs)
        second = tuple(x[count:] for x in outputs)
        return cls(theta, groups, first, second, again, valid)

    def pairing(self, level: int, seed: int) -> LevelPairing:
        """A level and the one below it."""
        x, x_coarse = (self.flat(self.x[side]) for side in (level, level - 1))
        groups = self.groups[self.valid]
        shared = shared_noise(x[self.valid], x_coarse[self.valid], groups, seed=seed)
        own = [self.own_share(side) for side in (level, level - 1)]
        return LevelPairing(level, shared, np.stack(own))

    def own_share(self, level: int) -> np.ndarray:
        """Share of the noise of each summary that a second run does not repeat."""
        x, x_again = self.flat(self.x[level]), self.flat(self.x_again[level])
        change = x_again - x[self.again.numpy()]
        change = change[np.isfinite(change).all(axis=1)] ** 2
        valid = x[self.valid]
        variance = noise_variance(valid, self.groups[self.valid])
        rounding = _ROUNDING * np.abs(valid).max(axis=0)
        largest = change.max(axis=0, initial=0.0)
        is_own = largest > _TOLERANCE**2 * variance + rounding**2
        share = (
            change.sum(axis=0)
            / max(len(change), 1)
            / 2
            / np.where(variance > 0, variance, np.inf)
        )
        share = np.where(variance > 0, share.clip(max=1.0), 1.0)
        return np.where(is_own, share, 0.0)

    @staticmethod
    def flat(x: Tensor) -> np.ndarray:
        """One row a row, in double precision."""
        return x.flatten(1).double().numpy()

    def simulations(self, costs: tuple[float, ...] | None) -> MultilevelSimulations:
        """The valid rows of all levels, as pairs."""
        valid = torch.from_numpy(self.valid)
        theta, x = self.theta[valid], [side[valid] for side in self.x]
        levels = [
            LevelSimulations.trusted(level, theta, x[level], below)
            for level, below in enumerate([None, *x[:-1]])
        ]
        return MultilevelSimulations(tuple(levels), costs)


def _is_mixed(runs: _Runs, table: LevelTable, work: Work, effort: Effort) -> bool:
    """Whether a row that a second run did not repeat is repeated where it is alone."""
    level = table.level
    if not runs.own_share(level).any():
        return False
    numbers = runs.again.numpy()
    batch = np.stack([
        runs.flat(runs.x[level])[numbers],
        runs.flat(runs.x_again[level]),
    ])
    change = np.nan_to_num(np.abs(batch[1] - batch[0])).sum(axis=1)
    task = table.task(numbers[[change.argmax()] * 2])
    alone = memory_table(level, task.theta, task.seeds)
    for part, outcome in run_tasks(alone.tasks(2, 1), work, effort.num_workers):
        alone.write(part.rows, outcome)
    return torch.equal(*_outputs(alone))


def _num_invalid(tables: Sequence[LevelTable], num_rows: int) -> int:
    """How many of the first rows have NaN or infinity at some level."""
    rows = [table.rows_with(Status.INVALID, stop=num_rows) for table in tables]
    return len(np.unique(np.concatenate(rows)))


def _outputs(table: LevelTable) -> Tensor:
    """Outputs of all rows, NaN where there is none."""
    rows = np.arange(len(table))
    x = torch.full((len(table), 1), torch.nan)
    if "x" in table.columns:
        x = table.tensor("x", rows)
        failed = np.setdiff1d(rows, table.rows_with(Status.OK))
        x[failed] = torch.nan
    return x
