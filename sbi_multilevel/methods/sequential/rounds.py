"""The simulations of a round: proposed, under way, done, failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.noise import derive_seed
from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work


@dataclass
class Proposals:
    """Parameters proposed in a round and what became of them.

    Args:
        theta: Proposed parameters, shape `(n, d_theta)`.
        weights: Their weights in the loss, shape `(n,)`.
        acceptance: Share of prior draws in the truncated region; NaN if unknown.
        active: Which of them were acquired, shape `(n,)`; none by default.
        outputs: x, and x_coarse if there is one, of the rows that ended well.
        failures: What the others said that ended.
    """

    theta: Tensor
    weights: Tensor
    acceptance: float = float("nan")
    active: Tensor | None = None
    outputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

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
    def ended(self) -> set[int]:
        """Rows whose simulation ended, well or not."""
        return {*self.outputs, *self.failures}

    def note(self, task: Task, outcome: Outcome) -> None:
        """Keep what became of some rows."""
        sides = [side for side in (outcome.x, outcome.x_coarse) if side is not None]
        known = next(iter(self.outputs.values()), None)
        fits = known is None or not sides or sides[0].shape[1:] == known[0].shape
        for i, (row, status) in enumerate(zip(task.rows.tolist(), outcome.status)):
            if not fits:
                self.failures[row] = "x has another shape than that of earlier rows"
            elif status == Status.OK:
                self.outputs[row] = tuple(torch.from_numpy(side[i]) for side in sides)
            else:
                self.failures[row] = outcome.error or "NaN or inf in x"

    def done(self) -> tuple[Tensor, ...]:
        """Theta, x and, with pairs, x_coarse of the rows that are valid."""
        rows = sorted(self.outputs)
        columns = (
            torch.stack(column) for column in zip(*(self.outputs[r] for r in rows))
        )
        return self.theta[rows], *columns

    def is_passive(self, theta: Tensor) -> Tensor:
        """Which rows were proposed in this round and not acquired, shape `(n,)`."""
        is_known, index = self._find(theta)
        return is_known & ~self.is_active[index]

    def weights_of(self, theta: Tensor) -> Tensor:
        """Weights of proposed rows.

        Raises:
            ValueError: If a row was not proposed in this round.
        """
        is_known, index = self._find(theta)
        unknown = ~is_known
        if unknown.any():
            raise ValueError(
                f"theta of {int(unknown.sum())} of {len(theta)} rows was not proposed "
                "in this round, so its importance weight is unknown. Pass rows of "
                "`propose()`, unchanged, or use `Acquisition(correct=False)`."
            )
        return self.weights[index]

    def _find(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Whether rows were proposed, and as which."""
        same = (theta[:, None] == self.theta.to(theta)).all(dim=-1)
        return same.any(dim=1), same.int().argmax(dim=1)


def simulate(
    proposals: Proposals, work: Work, seed: int, batch_size: int, num_workers: int
) -> Iterator[Proposals]:
    """Run the simulations that are not done yet; yields after every batch.

    Args:
        proposals: What to run; filled in place, in the order in which rows come back.
        work: The simulators, that of level 1 and the one below or `None`.
        seed: Seed of the round; the noise of a row depends on it and the row alone.
        batch_size: Rows that a simulator is given at once.
        num_workers: Workers of joblib.
    """
    missing = [row for row in range(len(proposals.theta)) if row not in proposals.ended]
    tasks = [
        _task(proposals.theta, seed, missing[first : first + batch_size])
        for first in range(0, len(missing), batch_size)
    ]
    with contextlib.closing(run_tasks(tasks, work, num_workers)) as results:
        for task, outcome in results:
            proposals.note(task, outcome)
            yield proposals


def _task(theta: Tensor, seed: int, rows: list[int]) -> Task:
    seeds = torch.tensor([derive_seed(seed, row) for row in rows], dtype=torch.int64)
    return Task(1, np.array(rows), theta[rows], seeds)
