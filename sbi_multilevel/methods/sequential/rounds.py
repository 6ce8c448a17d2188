"""Rounds of proposals, simulations and training for one observation."""

from __future__ import annotations

import contextlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.sequential.settings import Settings, explained
from sbi_multilevel.methods.sequential.state import Proposals, RoundState
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.tasks import Work
from sbi_multilevel.utils.files import expect, read_state, replacing


@dataclass(frozen=True)
class Runner:
    """How proposals are simulated.

    Args:
        work: The simulators; `None` where pairs have no simulator of the level below.
        batch_sizes: Simulations per call of the simulator of each level.
        num_workers: Workers of joblib.
        max_resampling: Failed simulations of a round that may be replaced; as many as
            the round has if `None`.
        checkpoint: File that holds the simulations; `None` if they are not kept.
        show_progress_bars: Whether to show progress.
    """

    work: Work
    batch_sizes: Sequence[int]
    num_workers: int
    max_resampling: int | None
    checkpoint: str | os.PathLike | None
    show_progress_bars: bool


class Rounds(ABC):
    """Sequential inference: a subclass draws proposals, and trains in each round.

    Args:
        settings: What does not change from round to round.
        state: The state at the beginning.
    """

    _settings: Settings
    _state: RoundState

    def __init__(self, settings: Settings, state: RoundState):
        self._settings, self._state = settings, state

    @property
    def x_o(self) -> Tensor:
        """The observation, shape `(1, *x_shape)`."""
        return self._state.x_o

    @property
    def summary(self) -> dict[str, Any]:
        """Lists with an entry per round, see the class."""
        return self._state.summary

    def save(self, path: str | os.PathLike) -> None:
        """Write the state: networks, simulations that were appended, the current round.

        Low-fidelity simulations for pre-training are not written: append the same ones
        to resume.

        Args:
            path: The file; it is replaced as a whole.
        """
        path, settings = Path(path), self._settings.saved(self.x_o)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            torch.save({"settings": settings, **self._state.content()}, unfinished)

    def load(self, path: str | os.PathLike) -> Self:
        """Resume from a state that `save` wrote.

        Args:
            path: The file. It is read without unpickling.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If it was written under other settings, or by another network,
                or holds something else; the object stays as it was then.
            OSError: If it cannot be read.
        """
        content = self._read(path)
        self._settings.check_saved(content["settings"], self.x_o, path)
        with explained(path):
            self._state = self._state.restored(content, self._settings)
        return self

    # What subclasses do

    @abstractmethod
    def train(self) -> Any:
        """Train on the simulations that were appended, which ends the round."""

    @abstractmethod
    def _draw(self, num: int, level: int, index: int, is_active: bool) -> Proposals:
        """Proposals of a level; the draw of this index has a seed of its own."""

    @abstractmethod
    def _weighted(self, part: LevelSimulations) -> LevelSimulations:
        """Simulations of this round with the weights of their proposals."""

    # Parts of the steps

    def _read(self, path: str | os.PathLike) -> dict[str, Any]:
        """The content of a file; nothing is unpickled but tensors and plain values."""
        with explained(path):
            content = read_state(path)
            expect(isinstance(content, dict), f"it holds a {type(content).__name__}")
            for name, kind in self._state.KINDS.items():
                found = type(content.get(name, ...))  # `None` may be right
                is_right = issubclass(found, kind)
                expect(is_right, f"{name} is missing, or a {found.__name__}")
            return content

    def _drawn(self, num: int, level: int, is_active: bool = True) -> Proposals:
        index = self._state.num_draws
        self._state.num_draws += 1
        return self._draw(num, level, index, is_active)

    def _propose(self, numbers: Mapping[int, int]) -> tuple[Tensor, ...]:
        """Draw proposals of each level, and add them to those of the round."""
        pending, thetas = self._state.pending, []
        for level, num in numbers.items():
            drawn = self._drawn(num, level)
            thetas.append(drawn.theta)
            if level in pending:
                pending[level].extend(drawn)
            elif num > 0:
                pending[level] = drawn
        return tuple(thetas)

    def _append(self, new: Iterable[LevelSimulations]) -> Self:
        """Store simulations of this round; nothing is stored if some do not fit."""
        old = self._state
        state = replace(old, parts=[*old.parts], num_new=dict(old.num_new))
        for part in new:
            state.check(part, self._settings.prior)
            part = self._weighted(part)
            state.parts.append(part)
            state.num_new[part.level] = state.num_new.get(part.level, 0) + len(part)
        self._state = state
        return self

    def _simulate_rounds(
        self,
        runner: Runner,
        sizes: Callable[[], Mapping[int, int]],
        total: int,
        done: Callable[[], int],
    ) -> None:
        """Propose, simulate and train, as long as a round follows.

        Args:
            runner: How proposals are simulated.
            sizes: Returns the simulations of each level in this round; none at the end.
            total: Length of the progress bar.
            done: Returns how much of it is done.
        """

        def keep() -> None:
            if runner.checkpoint is not None:
                self.save(runner.checkpoint)
            bar.update(done() - bar.n)

        with tqdm(total=total, disable=not runner.show_progress_bars) as bar:
            bar.update(done())  # of a run that is resumed
            while numbers := sizes():
                bar.set_description(f"Round {self._state.index + 1}")
                if not self._state.pending and any(numbers.values()):
                    self._propose(numbers)
                    keep()
                pending = self._state.pending
                for level in pending:
                    self._simulate(level, numbers[level], runner, keep)
                valid = (item for item in pending.items() if item[1].outputs)
                self._append(LevelSimulations(n, *each.done()) for n, each in valid)
                self.train()
                keep()

    def _simulate(
        self, level: int, num: int, runner: Runner, keep: Callable[[], None]
    ) -> None:
        """Simulate proposals of a level, and others in place of those that fail.

        Args:
            level: The level.
            num: Valid simulations to reach.
            runner: How proposals are simulated.
            keep: Called after every batch, to save the state.

        Raises:
            RuntimeError: If more simulations fail than may be replaced.
        """
        index, proposals = self._state.index, self._state.pending[level]
        seed, failures = self._settings.noise_seed(index, level), proposals.failures
        limit = num if runner.max_resampling is None else runner.max_resampling
        failed_before, which = len(failures), f"simulations of round {index + 1} failed"
        kept = ""
        if runner.checkpoint is not None:
            kept = f" Valid simulations are kept in {runner.checkpoint}."
        while True:
            tasks = proposals.tasks(level, seed, runner.batch_sizes[level])
            results = run_tasks(tasks, runner.work, runner.num_workers)
            with contextlib.closing(results):
                for task, outcome in results:
                    proposals.record(task, outcome)
                    keep()
                    if len(failures) - failed_before > limit:
                        num_done = len(failures) + len(proposals.outputs)
                        raise RuntimeError(
                            f"{len(failures)} of {num_done} {which}, more than "
                            f"max_resampling={limit}; last error: "
                            f"{failures[max(failures)]}.{kept} Fix the simulator and "
                            "call `run` again, or raise max_resampling."
                        )
            missing = num - len(proposals.outputs)
            if missing <= 0:
                break
            proposals.extend(self._drawn(missing, level, is_active=False))
        if failures:
            warnings.warn(
                f"{len(failures)} {which} and were replaced by others from the same "
                f"proposal (last error: {failures[max(failures)]}). The posterior is "
                "conditional on a valid output.",
                stacklevel=4,
            )
