"""The rows of one level while they are simulated: columns, and a status for each row.

The columns are arrays in memory, or those of a store on disk. Both are written the
same way: data first, then the status that speaks of it.
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

_BLOCK = 10_000  # rows of status that are read at once


class Columns(Protocol):
    """Named arrays that are indexed like numpy's, in memory or on disk."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Any: ...

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Make an array in which nothing is written yet, in place of an old one."""
        ...


# name -> type of the values, and what stands where nothing has been written
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
        """Make an array full of what stands for "nothing written"."""
        dtype, fill = KINDS[name]
        self[name] = np.full(shape, fill, object if dtype == "str" else dtype)


def memory_table(level: int, theta: Tensor, seeds: Tensor) -> LevelTable:
    """A table in memory of rows that are all pending.

    Args:
        level: The level.
        theta: Parameters, shape `(n, d_theta)`.
        seeds: Seeds, shape `(n,)`.
    """
    columns = MemoryColumns(theta=theta.numpy(), seed=seeds.numpy())
    columns.create("seconds", (len(theta), 2))
    columns.create("error", (len(theta),))
    columns.create("status", (len(theta),))
    return LevelTable(level, columns)


@dataclass(frozen=True)
class FailedSimulation:
    """A row that failed: its level and number, its status in words, and the reason."""

    level: int
    row: int
    status: str
    error: str


@dataclass(frozen=True, eq=False)
class LevelTable:
    """All rows of a level: theta and seeds, and x where it is known.

    Args:
        level: The level.
        columns: `theta`, `seed`, `status`, `seconds` and, once a row has come back,
            `x` and (above level 0) `x_coarse`.
    """

    level: int
    columns: Columns

    def __len__(self) -> int:
        return self.columns["status"].shape[0]

    @property
    def is_paired(self) -> bool:
        """Whether rows carry the output of the level below."""
        return self.level > 0

    def rows_with(
        self, *statuses: Status, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        """Numbers of the rows that have one of the statuses, ascending."""
        found = [np.zeros(0, np.int64)]
        for first, status in self._status(start, stop):
            found.append(first + np.flatnonzero(np.isin(status, statuses)))
        return np.concatenate(found)

    def counts(self, num_rows: int | None = None) -> dict[Status, int]:
        """Number of rows with each status, of the first `num_rows`."""
        totals = np.zeros(len(Status), np.int64)
        for _, status in self._status(0, num_rows):
            totals += np.bincount(status, minlength=len(Status))
        return {status: int(totals[status]) for status in Status}

    def _status(self, start: int, stop: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of the status of some rows, each with the number of its first row."""
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
        """The rows, ready to run."""
        return Task(
            self.level,
            rows,
            torch.from_numpy(self._read("theta", rows)),
            torch.from_numpy(self._read("seed", rows)),
        )

    def tasks(self, num_rows: int, batch_size: int) -> Iterator[Task]:
        """Pending rows of the first `num_rows`, in batches on a fixed grid."""
        block = batch_size * max(1, _BLOCK // batch_size)  # read at once
        for first in range(0, num_rows, block):
            pending = self.rows_with(
                Status.PENDING, start=first, stop=min(first + block, num_rows)
            )
            if len(pending) == 0:
                continue
            task = self.task(pending)
            edges = np.arange(first, first + block + batch_size, batch_size)
            for start, stop in pairwise(np.searchsorted(pending, edges)):
                if stop > start:
                    yield task.part(slice(start, stop))

    def write(self, rows: np.ndarray, outcome: Outcome) -> Outcome:
        """Write what became of `rows`; the status comes last.

        Returns:
            The outcome, as a failure if x does not have the shape of earlier rows.
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
        """Make rows with these statuses pending again; returns how many.

        Args:
            *statuses: The statuses.
            stop: Of the first so many rows only.
        """
        rows = self.rows_with(*statuses, stop=stop)
        if len(rows):
            self._write("error", rows, np.full(len(rows), "", object))
            self.mark(rows, Status.PENDING)
        return len(rows)

    def mark(self, rows: np.ndarray, status: Status) -> None:
        """Give rows a status."""
        if len(rows):
            self._write("status", rows, np.full(len(rows), status, np.uint8))

    def failures(self) -> Iterator[FailedSimulation]:
        """The rows that failed or timed out, with the reason."""
        rows = self.rows_with(Status.FAILED, Status.TIMED_OUT)
        for row, status, error in zip(
            rows, self._read("status", rows), self._read("error", rows)
        ):
            yield FailedSimulation(
                self.level, int(row), Status(int(status)).label, str(error)
            )

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds spent on both sides, and rows for which they are known, shape `(2,)`.

        Of the rows that came back; failed ones may have ended early.
        """
        rows = self.rows_with(Status.OK, Status.INVALID)
        seconds = self._read("seconds", rows)
        return np.nansum(seconds, axis=0), np.isfinite(seconds).sum(axis=0)

    def total_seconds(self) -> float:
        """Seconds spent by all rows, those of failed ones included."""
        return float(
            sum(
                np.nansum(self._at("seconds", slice(i, i + _BLOCK)))
                for i in range(0, len(self), _BLOCK)
            )
        )

    def simulations(self, num_rows: int | None = None) -> LevelSimulations:
        """The rows that came back; `LevelSimulations` drops the invalid ones.

        Raises:
            ValueError: If none did.
        """
        rows = self.rows_with(Status.OK, Status.INVALID, stop=num_rows)
        if len(rows) == 0:
            raise ValueError(no_valid_rows(self))
        return self.read(rows)

    def read(self, rows: np.ndarray) -> LevelSimulations:
        """The rows of these numbers."""
        x_coarse = self.tensor("x_coarse", rows) if self.is_paired else None
        theta, x = self.tensor("theta", rows), self.tensor("x", rows)
        return LevelSimulations(self.level, theta, x, x_coarse)

    def tensor(self, name: str, rows: np.ndarray) -> Tensor:
        """A column at `rows`."""
        return torch.from_numpy(self._read(name, rows))

    def _fits(self, name: str, values: np.ndarray) -> bool:
        return self.columns[name].shape[1:] == values.shape[1:]

    def _with_known_shape(self, outcome: Outcome) -> Outcome:
        """The outcome, or a failure if x has another shape than rows that are there."""
        if outcome.x is None or "x" not in self.columns or self._fits("x", outcome.x):
            return outcome
        if len(self.rows_with(Status.OK, Status.INVALID)) == 0:
            return outcome
        error = (
            f"x has shape {outcome.x.shape[1:]} a row, but that of earlier rows is "
            f"{self.columns['x'].shape[1:]}. If those are wrong, retry them: they are "
            "'ok' or 'invalid'"
        )
        seconds = float(outcome.seconds.sum())
        return Outcome.failed(len(outcome.status), Status.FAILED, error, seconds)

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._at(name, contiguous(rows))

    def _at(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        with self._damage_explained(name, index):
            # a copy that the caller may change
            return np.array(self.columns[name][index])

    def _write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        index = contiguous(rows)
        with self._damage_explained(name, index):  # chunks are read to be changed
            self.columns[name][index] = values

    @contextlib.contextmanager
    def _damage_explained(self, name: str, index: slice | np.ndarray) -> Iterator[None]:
        try:
            yield
        # of zarr's codecs, and of an array that is not there
        except (ValueError, RuntimeError, KeyError) as error:
            raise OSError(
                f"{name} of level {self.level} cannot be read in some of the rows "
                f"{index}: {error}. `SimulationStore.repair` makes damaged rows "
                "pending again."
            ) from error


def contiguous(rows: np.ndarray) -> slice | np.ndarray:
    """Rows, ascending, as a slice where they are one, which is faster."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def no_valid_rows(table: LevelTable) -> str:
    """What to say of a level without rows."""
    return (
        f"Level {table.level} has 0 valid rows of {len(table)}: none has been "
        "simulated, or all failed. Run the pending rows, or `retry` the others."
    )
