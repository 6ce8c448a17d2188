"""The state of sequential rounds: proposals, and what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.priors import check_inside, has_support
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_columns, check_same_shapes
from sbi_multilevel.simulation.tasks import Outcome, Status, Task
from sbi_multilevel.utils.files import expect
from sbi_multilevel.utils.seeds import derive_seed, seeded


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


@dataclass(eq=False)
class RoundState(ABC):
    """Where a run stands.

    Args:
        x_o: The observation, shape `(1, *x_shape)`.
        parts: Simulations, in the order they were appended.
        num_new: How many simulations of each level were appended since the last
            training.
        pending: Proposals of the current round, by level.
        num_draws: How often proposals were drawn in the current round.
        summary: Lists with an entry per round.

    Attributes:
        SUMMARY: What is kept of each round, and its type.
        KINDS: The entries of a file, and their types.
    """

    SUMMARY: ClassVar[Mapping[str, type]]
    KINDS: ClassVar[Mapping[str, Any]]

    x_o: Tensor
    parts: list[LevelSimulations] = field(default_factory=list)
    num_new: dict[int, int] = field(default_factory=dict)
    pending: dict[int, Proposals] = field(default_factory=dict)
    num_draws: int = 0
    summary: dict[str, list] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.summary = self.summary or {name: [] for name in self.SUMMARY}

    @property
    def index(self) -> int:
        """The current round, from 0."""
        return len(self.summary["failures"])

    def check(self, new: LevelSimulations, prior: Any) -> None:
        """Raise unless simulations fit the observation, the prior and those before.

        An observation without the channel that the outputs have gets it.

        Raises:
            ValueError: If they do not.
        """
        self.check_x(new.x)
        check_theta(new.theta, prior)
        if has_support(prior):
            check_inside(prior, new)
        if self.parts:
            check_same_shapes(new, self.parts[0])

    def check_x(self, x: Tensor) -> None:
        """Raise unless outputs have the shape of the observation, as `check`.

        Raises:
            ValueError: If the shapes differ.
        """
        x_o = self.x_o
        check_columns({"x": x}, 0)
        if x.shape[1:] == x_o.shape:
            x_o = x_o.unsqueeze(0)
        if x.shape[1:] != x_o.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} per simulation, but the observation "
                f"x_o has {tuple(x_o.shape[1:])}. Summarise both in the same way."
            )
        self.x_o = x_o

    def ended(self, entries: Mapping[str, Any]) -> Self:
        """The state at the beginning of the next round.

        Args:
            entries: What the summary keeps of this round; failures are added here.
        """
        proposals = self.pending.values()
        failures = [text for each in proposals for text in each.failures.values()]
        entries = {**entries, "failures": failures}
        return replace(
            self,
            num_new={},
            pending={},
            num_draws=0,
            summary={
                name: [*self.summary[name], entries[name]] for name in self.SUMMARY
            },
        )

    def content(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            "parts": [vars(part) for part in self.parts if len(part) > 0],
            "pending": {level: vars(each) for level, each in self.pending.items()},
            "num_new": self.num_new,
            "num_draws": self.num_draws,
            "summary": self.summary,
        }

    @abstractmethod
    def restored(self, content: Mapping[str, Any], settings: Any) -> Self:
        """The state in a file.

        Args:
            content: As of the method `content`; the entries have the types of `KINDS`.
            settings: The settings of the run.

        Raises:
            ValueError: If it is not valid; others if it has another form.
        """

    def filled(self, content: Mapping[str, Any], num_rounds: int, prior: Any) -> Self:
        """A state with the simulations, proposals and summary of a file.

        Args:
            content: As of the method `content`.
            num_rounds: How many rounds ended.
            prior: The prior.

        Raises:
            ValueError: If they are not valid; others if they have another form.
        """
        counts = [*content["num_new"].items(), (0, content["num_draws"])]
        is_valid = all(type(n) is int and n >= 0 for pair in counts for n in pair)
        expect(is_valid, f"counts are {counts!r:.60}")
        for name, kind in self.SUMMARY.items():
            values = content["summary"].get(name)
            is_valid = isinstance(values, list) and len(values) == num_rounds
            is_valid = is_valid and all(type(value) is kind for value in values)
            expect(is_valid, f"summary has {name} {values!r:.60}")
        pending = {key: Proposals(**each) for key, each in content["pending"].items()}
        for each in pending.values():
            each.check()
            check_theta(each.theta, prior)
        names = "num_new", "num_draws", "summary"
        fields = {name: content[name] for name in names}
        state = replace(self, parts=[], pending=pending, **fields)
        for columns in content["parts"]:
            part = LevelSimulations(**columns)
            state.check(part, prior)
            state.parts.append(part)
        return state


def check_theta(theta: Tensor, prior: Any) -> None:
    """Raise unless parameters have the shape of draws from the prior.

    Raises:
        ValueError: If the shapes differ.
    """
    with seeded(0):
        expected = prior.sample((1,)).shape[1:]
    if theta.shape[1:] != expected:
        raise ValueError(
            f"theta has shape {tuple(theta.shape[1:])} per simulation, but the prior "
            f"draws {tuple(expected)}. Pass parameters of `propose()`."
        )
