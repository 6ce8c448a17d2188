"""The simulations of a round: proposed, under way, done, failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from joblib import Parallel, delayed
from torch import Tensor

from sbi_multilevel.simulation.noise import NoiseSampler, Simulator, derive_seed
from sbi_multilevel.simulation.run import Task, run_task

Pair = tuple[Simulator, Simulator | None]


@dataclass
class Proposals:
    """Parameters proposed in a round and what became of them.

    Args:
        theta: Proposed parameters, shape `(n, d_theta)`.
        weights: Their weights in the loss, shape `(n,)`.
        acceptance: Share of prior draws in the truncated region; NaN if unknown.
        active: Which of them were acquired, shape `(n,)`; none by default.
        outputs: x, and x_coarse if there is one, of the first rows; `None` where a
            simulation failed.
        failures: What the failed simulations said.
    """

    theta: Tensor
    weights: Tensor
    acceptance: float = float("nan")
    active: Tensor | None = None
    outputs: list[tuple[Tensor, ...] | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_active(self) -> Tensor:
        """Which proposals were acquired, shape `(n,)`."""
        if self.active is not None:
            return self.active
        return torch.zeros(len(self.theta), dtype=torch.bool)

    def extend(self, other: Proposals) -> None:
        """Add proposals, e.g. in place of failed ones."""
        self.active = torch.cat([self.is_active, other.is_active])
        self.theta = torch.cat([self.theta, other.theta])
        self.weights = torch.cat([self.weights, other.weights])

    @property
    def num_done(self) -> int:
        """Simulations that ended with a valid output."""
        return sum(output is not None for output in self.outputs)

    def done(self) -> tuple[Tensor, ...]:
        """Theta, x and, with pairs, x_coarse of the rows that are valid."""
        rows = [i for i, output in enumerate(self.outputs) if output is not None]
        outputs = [output for output in self.outputs if output is not None]
        columns = (torch.stack(column) for column in zip(*outputs))
        return self.theta[rows], *columns

    def weights_of(self, theta: Tensor) -> Tensor:
        """Weights of proposed rows.

        Raises:
            ValueError: If a row was not proposed in this round.
        """
        same = (theta[:, None] == self.theta.to(theta)).all(dim=-1)
        unknown = ~same.any(dim=1)
        if unknown.any():
            raise ValueError(
                f"theta of {int(unknown.sum())} of {len(theta)} rows was not proposed "
                "in this round, so its importance weight is unknown. Pass rows of "
                "`propose()`, unchanged, or use `Acquisition(correct=False)`."
            )
        return self.weights[same.int().argmax(dim=1)]


def simulate(
    proposals: Proposals,
    simulators: Pair,
    noise: NoiseSampler | None,
    seed: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[Proposals]:
    """Run the simulations that are not done yet; yields after every batch.

    Args:
        proposals: What to run; filled in place.
        simulators: The simulator and the one a level below, or `None`.
        noise: Noise sampler, or `None` for seeds.
        seed: Seed of the round; the noise of a row depends on it and the row alone.
        batch_size: Rows that a simulator is given at once.
        num_workers: Processes.
    """
    start, stop = len(proposals.outputs), len(proposals.theta)
    tasks = [
        _task(proposals.theta, seed, first, min(first + batch_size, stop))
        for first in range(start, stop, batch_size)
    ]
    if num_workers == 1:
        results = (_attempt(task, simulators, noise) for task in tasks)
    else:
        parallel = Parallel(n_jobs=num_workers, return_as="generator")
        results = parallel(delayed(_attempt)(t, simulators, noise) for t in tasks)
    for outputs, failures in results:
        proposals.outputs += outputs
        proposals.failures += failures
        yield proposals


def _task(theta: Tensor, seed: int, start: int, stop: int) -> Task:
    seeds = [derive_seed(seed, row) for row in range(start, stop)]
    return Task(
        1, (start, stop), theta[start:stop], torch.tensor(seeds, dtype=torch.int64)
    )


def _attempt(
    task: Task, simulators: Pair, noise: NoiseSampler | None
) -> tuple[Sequence[tuple[Tensor, ...] | None], list[str]]:
    """Outputs of each row, `None` for one that failed, and what failures said."""
    try:
        result = run_task(task, simulators, noise)
    except Exception as error:  # one bad row must not lose a round
        if len(task.theta) == 1:
            return [None], [f"{type(error).__name__}: {error}"]
        # which row it was is not known: one by one
        parts = [
            _attempt(_row(task, row), simulators, noise)
            for row in range(len(task.theta))
        ]
        return [rows[0] for rows, _ in parts], [f for _, fs in parts for f in fs]
    columns = [result.x, *([] if result.x_coarse is None else [result.x_coarse])]
    outputs: list[tuple[Tensor, ...] | None] = list(zip(*columns))
    failures = []
    for row, output in enumerate(outputs):
        if output is not None and not all(part.isfinite().all() for part in output):
            outputs[row] = None
            failures.append("NaN or inf in x")
    return outputs, failures


def _row(task: Task, row: int) -> Task:
    at = slice(row, row + 1)
    first = task.rows[0] + row
    return Task(task.level, (first, first + 1), task.theta[at], task.seeds[at])
