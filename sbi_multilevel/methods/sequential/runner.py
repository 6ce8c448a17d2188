"""The simulations of a round: in batches, with replacements of those that fail."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.tasks import Task, Work
from sbi_multilevel.utils.seeds import derive_seed


@dataclass(frozen=True)
class Runner:
    """Simulates proposals.

    Args:
        work: The simulators; `None` where pairs have no simulator of the level below.
        batch_sizes: Simulations per call of the simulator of each level.
        num_workers: Workers of joblib.
        max_resampling: Failed simulations of a round that may be replaced; as many as
            the round has if `None`.
        checkpoint: File that holds the simulations; `None` if they are not kept.
    """

    work: Work
    batch_sizes: Sequence[int]
    num_workers: int
    max_resampling: int | None
    checkpoint: str | os.PathLike | None

    def simulate(
        self,
        level: int,
        proposals: Proposals,
        num: int,
        draw: Callable[[int], Proposals],
        seed: int,
        round_: int,
        after_batch: Callable[[], None],
    ) -> None:
        """Simulate proposals, and others in place of those that fail.

        Args:
            level: The level of the simulations.
            proposals: What to simulate; outputs and failures are kept in them.
            num: Valid simulations to reach.
            draw: Draws further proposals.
            seed: Seed of the round; the noise of a simulation depends on it and on its
                index alone.
            round_: The round, from 0.
            after_batch: Called after every batch, e.g. to save the state.

        Raises:
            RuntimeError: If more simulations fail than may be replaced.
        """
        limit = num if self.max_resampling is None else self.max_resampling
        failed_before = len(proposals.failures)
        while True:
            tasks = self._tasks(level, proposals, seed)
            results = run_tasks(tasks, self.work, self.num_workers)
            with contextlib.closing(results):
                for task, outcome in results:
                    proposals.record(task, outcome)
                    after_batch()
                    if len(proposals.failures) - failed_before > limit:
                        raise RuntimeError(
                            self._too_many_failures(proposals, limit, round_)
                        )
            if len(proposals.outputs) >= num:
                break
            proposals.extend(draw(num - len(proposals.outputs)))
        if proposals.failures:
            warnings.warn(
                f"{len(proposals.failures)} simulations of round {round_ + 1} failed "
                "and were replaced by others from the same proposal (last error: "
                f"{proposals.last_failure}). The posterior is conditional on a valid "
                "output.",
                stacklevel=4,
            )

    def _tasks(self, level: int, proposals: Proposals, seed: int) -> list[Task]:
        """The simulations that are not done yet, in batches."""
        missing, tasks, size = proposals.missing, [], self.batch_sizes[level]
        for first in range(0, len(missing), size):
            indices = missing[first : first + size]
            seeds = torch.tensor([derive_seed(seed, index) for index in indices])
            theta = proposals.theta[indices]
            tasks.append(Task(level, np.array(indices), theta, seeds))
        return tasks

    def _too_many_failures(self, proposals: Proposals, limit: int, round_: int) -> str:
        kept = ""
        if self.checkpoint is not None:
            kept = f" Valid simulations are kept in {self.checkpoint}."
        num_failed, num_valid = len(proposals.failures), len(proposals.outputs)
        return (
            f"{num_failed} of {num_failed + num_valid} simulations of round "
            f"{round_ + 1} failed, more than max_resampling={limit}; last error: "
            f"{proposals.last_failure}.{kept} Fix the simulator and call `run` again, "
            "or raise max_resampling."
        )
