"""The proposals of a round, and what became of their simulations."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.validation import check_columns
from sbi_multilevel.simulation.tasks import Outcome, Status, Task
from sbi_multilevel.utils.files import expect
from sbi_multilevel.utils.seeds import derive_seed


@dataclass
class Proposals:
    """Parameters proposed in a round and what became of them.

    Args:
        theta: Proposed parameters, shape `(n, d_theta)`.
        weights: Their weights in the loss, shape `(n,)`.
        acceptance: Share of prior draws in the truncated region; NaN if unknown.
        active: Which of them are active points, shape `(n,)`; none by default.
        outputs: x, and x_coarse if there is one, of valid simulations, by index.
        failures: Error messages of failed simulations, by index.
    """

    theta: Tensor
    weights: Tensor
    acceptance: float = float("nan")
    active: Tensor | None = None
    outputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def is_active(self) -> Tensor:
        """Which proposals are active points, shape `(n,)`."""
        if self.active is not None:
            return self.active
        return torch.zeros(len(self.theta), dtype=torch.bool)

    def extend(self, other: Proposals) -> None:
        """Add proposals, e.g. in place of failed ones."""
        self.active = torch.cat([self.is_active, other.is_active])
        self.theta = torch.cat([self.theta, other.theta])
        self.weights = torch.cat([self.weights, other.weights])

    def tasks(self, level: int, seed: int, size: int) -> list[Task]:
        """Batches of the proposals that were neither simulated nor failed.

        Args:
            level: Their level.
            seed: Seed of the noise, which depends on it and on the index alone.
            size: Simulations per batch.
        """
        done, tasks = {*self.outputs, *self.failures}, []
        missing = [index for index in range(len(self.theta)) if index not in done]
        for first in range(0, len(missing), size):
            indices = missing[first : first + size]
            seeds = torch.tensor([derive_seed(seed, index) for index in indices])
            tasks.append(Task(level, np.array(indices), self.theta[indices], seeds))
        return tasks

    def record(self, task: Task, outcome: Outcome) -> None:
        """Keep the outputs and errors of some simulations."""
        sides = [side for side in (outcome.x, outcome.x_coarse) if side is not None]
        known = next(iter(self.outputs.values()), None)
        fits = known is None or not sides or sides[0].shape[1:] == known[0].shape
        for i, (index, status) in enumerate(zip(task.rows.tolist(), outcome.status)):
            if not fits:
                self.failures[index] = "x has another shape than in earlier simulations"
            elif status == Status.OK:
                self.outputs[index] = tuple(torch.from_numpy(side[i]) for side in sides)
            else:
                self.failures[index] = outcome.error or "NaN or inf in x"

    def done(self) -> tuple[Tensor, ...]:
        """Theta, x and, with pairs, x_coarse of the valid simulations."""
        indices = sorted(self.outputs)
        columns = (torch.stack(c) for c in zip(*(self.outputs[i] for i in indices)))
        return self.theta[indices], *columns

    def check(self) -> None:
        """Raise unless all columns have the same length, and indices are valid."""
        num, active = len(self.theta), self.is_active
        check_columns({"theta": self.theta, "weights": self.weights.unsqueeze(1)}, 1)
        is_valid = active.shape == (num,) and active.dtype == torch.bool
        expect(is_valid, "active is not a boolean for each proposal")
        expect(isinstance(self.acceptance, float), "acceptance is no number")
        indices = [*self.outputs, *self.failures]
        is_valid = all(type(index) is int and 0 <= index < num for index in indices)
        expect(is_valid, "outputs or failures have indices that were not proposed")
        kinds = {
            tuple((side.shape, side.dtype) for side in sides)
            for sides in self.outputs.values()
        }
        expect(len(kinds) < 2, "outputs differ in shape or type")
        texts = self.failures.values()
        expect(all(isinstance(text, str) for text in texts), "failures are no text")

    def is_passive(self, theta: Tensor) -> Tensor:
        """Which parameters were proposed in this round and are not active points.

        Args:
            theta: Parameters, shape `(n, d_theta)`.

        Returns:
            Booleans, shape `(n,)`.
        """
        is_known, index = self._find(theta)
        return is_known & ~self.is_active[index]

    def weights_of(self, theta: Tensor) -> Tensor:
        """Weights of proposed parameters.

        Args:
            theta: Parameters, shape `(n, d_theta)`.

        Returns:
            Weights, shape `(n,)`.

        Raises:
            ValueError: If some were not proposed in this round.
        """
        is_known, index = self._find(theta)
        if not is_known.all():
            raise ValueError(
                f"{int((~is_known).sum())} of {len(theta)} parameters in theta were "
                "not proposed in this round, so their importance weights are unknown. "
                "Pass theta as `propose()` returned it, or use "
                "`Acquisition(correct=False)`."
            )
        return self.weights[index]

    def _find(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Whether parameters were proposed, and their indices."""
        same = (theta[:, None] == self.theta.to(theta)).all(dim=-1)
        return same.any(dim=1), same.int().argmax(dim=1)
