"""Finds unreadable chunks of a store, and makes their simulations pending again."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbi_multilevel.simulation.table import KINDS, LevelTable
from sbi_multilevel.simulation.tasks import Status, status_of

_BLOCK = 10_000  # simulations read at a time


def repair_table(table: LevelTable) -> int:
    """Empty damaged chunks of a level; simulations whose x is lost are pending again.

    This includes simulations whose file is missing. If the chunk of the status is
    damaged, simulations with a complete x are "ok". The status of simulations is
    written before their data is changed. Returns the number of those to run again.
    """
    damaged = {name: _damaged(array) for name, array in table.columns.items()}
    for name in ("theta", "seed"):
        if damaged[name]:
            chunk = damaged[name][0]
            raise OSError(
                f"{name} of level {table.level} is damaged for the simulations "
                f"{chunk.start} to {chunk.stop - 1}. Create a new store from the "
                "prior, and record those simulations of this one that can be read."
            )
    for name in ("seconds", "error", "status"):
        _empty(table, name, damaged[name])
    outputs = [name for name in ("x", "x_coarse") if name in damaged]
    without_x = _rows([chunk for name in outputs for chunk in damaged[name]])
    lost = np.intersect1d(table.finished(), without_x)
    table.mark(lost, Status.PENDING)
    for name in outputs:
        _empty(table, name, damaged[name])
    gone = _without(table, table.rows_with(Status.OK))
    table.mark(gone, Status.PENDING)
    unknown = _rows(damaged["status"])
    still_unknown = _without(table, unknown)
    table.mark(np.setdiff1d(unknown, still_unknown), Status.OK)
    return len(lost) + len(gone) + len(still_unknown)


def _rows(chunks: list[range]) -> np.ndarray:
    """The simulations of chunks."""
    return np.array([row for chunk in chunks for row in chunk], np.int64)


def _without(table: LevelTable, rows: np.ndarray) -> np.ndarray:
    """Simulations of `rows` whose x (or x_coarse) is not written, or not finite."""
    if len(rows) == 0 or "x" not in table.columns:
        return rows
    without = []
    for part in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
        x = table.read("x", part)
        x_coarse = table.read("x_coarse", part) if table.is_paired else None
        without.append(part[status_of(x, x_coarse) != Status.OK])
    return np.concatenate(without)


def _empty(table: LevelTable, name: str, chunks: list[range]) -> None:
    """Write the value of unwritten entries to chunks."""
    for chunk in chunks:
        table.columns[name][chunk.start : chunk.stop] = KINDS[name][1]


def _damaged(array: Any) -> list[range]:
    """The simulations of each chunk that cannot be read."""
    damaged = []
    for start in range(0, array.shape[0], array.chunks[0]):
        stop = min(start + array.chunks[0], array.shape[0])
        try:
            array[start:stop]
        except (ValueError, RuntimeError):  # raised by zarr's codecs
            damaged.append(range(start, stop))
    return damaged
