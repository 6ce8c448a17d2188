"""The simulations of one level while they are run: columns, one of them a status.

The columns are arrays in memory, or those of a store on disk. Both are written in the
same order: first the data, then the status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.simulation.tasks import Outcome, Status, Task

_BLOCK = 10_000  # statuses read at a time


class Columns(Protocol):
    """Named arrays with the indexing of numpy, in memory or on disk."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Any: ...

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Create an empty array, in place of an existing one."""
        ...


# name -> type of the values, and value of entries that have not been written
KINDS: dict[str, tuple[str, Any]] = {
    "theta": ("float32", np.nan),
    "seed": ("int64", 0),
    "seconds": ("float64", 0.0),
    "error": ("str", ""),
    "x": ("float32", np.nan),
    "x_coarse": ("float32", np.nan),
    "status": ("uint8", int(Status.PENDING)),
}


class MemoryColumns(dict):
    """Columns in memory."""

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Create an array filled with the value of unwritten entries."""
        dtype, fill = KINDS[name]
        self[name] = np.full(shape, fill, object if dtype == "str" else dtype)


def memory_table(level: int, theta: Tensor, seeds: Tensor) -> LevelTable:
    """A table in memory whose simulations are all pending."""
    columns = MemoryColumns(theta=theta.numpy(), seed=seeds.numpy())
    columns.create("seconds", (len(theta), 2))
    columns.create("error", (len(theta),))
    columns.create("status", (len(theta),))
    return LevelTable(level, columns)


@dataclass(frozen=True)
class FailedSimulation:
    """A simulation that failed: level, number in the level, status, and the reason."""

    level: int
    index: int
    status: str
    error: str


@dataclass(frozen=True, eq=False)
class LevelTable:
    """All simulations of a level, one per row: theta and seeds, and x once it is known.

    Args:
        level: The level.
        columns: `theta`, `seed`, `status`, `seconds` and, once a simulation has
            finished, `x` and (above level 0) `x_coarse`.
    """

    level: int
    columns: Columns

    def __len__(self) -> int:
        return self.columns["status"].shape[0]

    @property
    def is_paired(self) -> bool:
        """Whether simulations include the output of the level below."""
        return self.level > 0

    def rows_with(
        self, *statuses: Status, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Numbers of the simulations that have one of the statuses, ascending."""
        found = [np.zeros(0, np.int64)]
        for first, status in self._status(start, stop):
            found.append(first + np.flatnonzero(np.isin(status, statuses)))
        return np.concatenate(found)

    def counts(self, num_simulations: int | None = None) -> dict[Status, int]:
        """Number of simulations with each status, of the first `num_simulations`."""
        totals = np.zeros(len(Status), np.int64)
        for _, status in self._status(0, num_simulations):
            totals += np.bincount(status, minlength=len(Status))
        return {status: int(totals[status]) for status in Status}

    def _status(self, start: int, stop: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of the status, each with the number of its first simulation."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, _BLOCK):
            status = self._at("status", slice(first, min(first + _BLOCK, stop)))
            if status.max() >= len(Status):
                raise ValueError(
                    f"status of level {self.level} has the value {status.max()}, but "
                    f"there are {len(Status)} statuses. Use a store that "
                    "`SimulationStore` wrote."
                )
            yield first, status

    def task(self, rows: np.ndarray) -> Task:
        """The simulations of these numbers as a task."""
        theta, seeds = self.tensor("theta", rows), self.tensor("seed", rows)
        return Task(self.level, rows, theta, seeds)

    def tasks(self, num_simulations: int, batch_size: int) -> Iterator[Task]:
        """Pending simulations of the first ones, in batches on a fixed grid."""
        block = batch_size * max(1, _BLOCK // batch_size)  # read at a time
        for first in range(0, num_simulations, block):
            pending = self.rows_with(
                Status.PENDING, start=first, stop=min(first + block, num_simulations)
            )
            if len(pending) == 0:
                continue
            task = self.task(pending)
            edges = np.arange(first, first + block + batch_size, batch_size)
            for start, stop in pairwise(np.searchsorted(pending, edges)):
                if stop > start:
                    yield task.part(slice(start, stop))

    def write(self, rows: np.ndarray, outcome: Outcome) -> Outcome:
        """Write the outcome of simulations, the status last.

        Returns it, as a failure if x does not have the shape of existing x.
        """
        outcome = self._with_known_shape(outcome)
        for name in ("x", "x_coarse"):
            values = getattr(outcome, name)
            if values is not None:
                if name not in self.columns or not self._fits(name, values):
                    self.columns.create(name, (len(self), *values.shape[1:]))
                self._write(name, rows, values)
        self._write("seconds", rows, outcome.seconds)
        if outcome.error is not None:
            self._write("error", rows, np.full(len(rows), outcome.error, object))
        self._write("status", rows, outcome.status)
        return outcome

    def reset(self, *statuses: Status, stop: int | None = None) -> int:
        """Make simulations with these statuses pending again; returns their number."""
        rows = self.rows_with(*statuses, stop=stop)
        if len(rows):
            self._write("error", rows, np.full(len(rows), "", object))
            self.mark(rows, Status.PENDING)
        return len(rows)

    def mark(self, rows: np.ndarray, status: Status) -> None:
        """Set the status of the simulations `rows`."""
        if len(rows):
            self._write("status", rows, np.full(len(rows), status, np.uint8))

    def failures(self) -> Iterator[FailedSimulation]:
        """The simulations that failed or timed out, with the reason."""
        rows = self.rows_with(Status.FAILED, Status.TIMED_OUT)
        for row, status, error in zip(
            rows, self._read("status", rows), self._read("error", rows)
        ):
            yield FailedSimulation(
                self.level, int(row), Status(int(status)).label, str(error)
            )

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of finished simulations, and runs they are known for, each `(2,)`."""
        rows = self.rows_with(Status.OK, Status.INVALID)
        seconds = self._read("seconds", rows)
        return np.nansum(seconds, axis=0), np.isfinite(seconds).sum(axis=0)

    def theta_and_seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Theta of finished simulations, and the seconds of both sides, where known."""
        rows = self.rows_with(Status.OK, Status.INVALID)
        theta, seconds = self._read("theta", rows), self._read("seconds", rows)
        known = np.isfinite(seconds).any(axis=1)
        return theta[known], np.nansum(seconds[known], axis=1)

    def total_seconds(self) -> float:
        """Seconds spent by all simulations, including failed ones."""
        return float(np.nansum(self._at("seconds", slice(None))))

    def simulations(self, num_simulations: int | None = None) -> LevelSimulations:
        """The finished simulations; `LevelSimulations` drops the invalid ones."""
        rows = self.rows_with(Status.OK, Status.INVALID, stop=num_simulations)
        if len(rows) == 0:
            raise ValueError(no_valid_simulations(self))
        return self.read(rows)

    def read(self, rows: np.ndarray) -> LevelSimulations:
        """The simulations of these numbers."""
        x_coarse = self.tensor("x_coarse", rows) if self.is_paired else None
        theta, x = self.tensor("theta", rows), self.tensor("x", rows)
        return LevelSimulations(self.level, theta, x, x_coarse)

    def tensor(self, name: str, rows: np.ndarray) -> Tensor:
        """A column at `rows`."""
        return torch.from_numpy(self._read(name, rows))

    def _fits(self, name: str, values: np.ndarray) -> bool:
        return self.columns[name].shape[1:] == values.shape[1:]

    def _with_known_shape(self, outcome: Outcome) -> Outcome:
        """The outcome, or a failure if x does not have the shape of existing x."""
        if outcome.x is None or "x" not in self.columns or self._fits("x", outcome.x):
            return outcome
        if len(self.rows_with(Status.OK, Status.INVALID)) == 0:
            return outcome
        error = (
            f"x of one simulation has shape {outcome.x.shape[1:]}, but that of earlier "
            f"simulations has {self.columns['x'].shape[1:]}. If those are wrong, retry "
            "them: their status is 'ok' or 'invalid'"
        )
        seconds = float(outcome.seconds.sum())
        return Outcome.failed(len(outcome.status), Status.FAILED, error, seconds)

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._at(name, contiguous(rows))

    def _at(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        with self._damage_explained(name, index):
            # copied, so that the caller may change it
            return np.array(self.columns[name][index])

    def _write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        index = contiguous(rows)
        with self._damage_explained(name, index):  # writing to a chunk reads it first
            self.columns[name][index] = values

    @contextlib.contextmanager
    def _damage_explained(self, name: str, index: slice | np.ndarray) -> Iterator[None]:
        try:
            yield
        # raised by zarr's codecs, and for a missing array
        except (ValueError, RuntimeError, KeyError) as error:
            raise OSError(
                f"{name} of level {self.level} cannot be read for some of the "
                f"simulations {index}: {error}. `SimulationStore.repair` makes damaged "
                "simulations pending again."
            ) from error


def contiguous(rows: np.ndarray) -> slice | np.ndarray:
    """Ascending numbers, as a slice if they are consecutive, which is faster."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def no_valid_simulations(table: LevelTable) -> str:
    """The message for a level without valid simulations."""
    return (
        f"Level {table.level} has 0 valid simulations of {len(table)}: none has been "
        "run, or all failed. Run the pending simulations, or `retry` the failed ones."
    )
