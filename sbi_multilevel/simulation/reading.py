"""Reads from tables: costs, statuses, failures, and the simulations for training."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.simulation.tasks import Status

_BLOCK = 10_000


def measured_costs(tables: Sequence[LevelTable]) -> tuple[float, ...] | None:
    r"""Mean seconds :math:`C_l` of a run of each simulator, on both sides of pairs.

    `None` if the cost of some level is unknown.
    """
    # the last entry is that of the level below level 0
    seconds, runs = np.zeros(len(tables) + 1), np.zeros(len(tables) + 1)
    for level, table in enumerate(tables):
        rows = table.finished()
        spent = table.read("seconds", rows)
        seconds[[level, level - 1]] += np.nansum(spent, axis=0)
        runs[[level, level - 1]] += np.isfinite(spent).sum(axis=0)
    seconds, runs = seconds[:-1], runs[:-1]
    return tuple((seconds / runs).tolist()) if runs.all() else None


def summary(tables: Sequence[LevelTable], num_simulations: Sequence[int]) -> str:
    """One line: statuses of the first simulations of each level, and their seconds."""
    parts = []
    for table, stop in zip(tables, num_simulations):
        states = [
            f"{count} {status.label}"
            for status, count in table.counts(stop).items()
            if count > 0 or status is Status.OK
        ]
        seconds = np.nansum(table.read("seconds"))  # including those that failed
        parts.append(f"level {table.level}: {', '.join(states)}, {seconds:.3g} s")
    return "; ".join(parts)


def failure_text(table: LevelTable, num_simulations: int) -> str | None:
    """Number and reason of failures of the first simulations; `None` if none failed."""
    reasons = Counter(f.error for f in table.failures() if f.index < num_simulations)
    if not reasons:
        return None
    text, _ = reasons.most_common(1)[0]
    return (
        f"{reasons.total()} of {num_simulations} simulations of level {table.level} "
        f"failed and were left out, most often due to: {text}"
    )


def valid_blocks(
    table: LevelTable, stop: int, size: int = _BLOCK
) -> Iterator[LevelSimulations]:
    """Valid ones of the first simulations of a level, in blocks of `size`."""
    for start in range(0, stop, size):
        rows = table.rows_with(Status.OK, start=start, stop=min(start + size, stop))
        if len(rows):
            yield table.simulations(rows)


def simulations_of(
    tables: Sequence[LevelTable],
    stops: Sequence[int],
    costs: tuple[float, ...] | None,
    folder: str | os.PathLike | None = None,
) -> MultilevelSimulations:
    """The finished ones of the first `stops[l]` simulations of each level.

    A warning gives the number of failed ones. With a folder, tensors map `.npy` files
    in it; else they are in memory.
    """
    for table, stop in zip(tables, stops):
        text = failure_text(table, stop)
        if text is not None:
            warnings.warn(text, stacklevel=3)
    levels = []
    for table, stop in zip(tables, stops):
        # `LevelSimulations` drops the invalid ones, with a warning
        kept = (Status.OK, Status.INVALID) if folder is None else (Status.OK,)
        rows = table.rows_with(*kept, stop=stop)
        if len(rows) == 0:
            raise ValueError(
                f"Level {table.level} has 0 valid simulations of {len(table)}: none "
                "has been run, or all failed. Run the pending simulations, or `retry` "
                "the failed ones."
            )
        if folder is None:
            levels.append(table.simulations(rows))
        else:
            levels.append(_mapped(table, stop, len(rows), Path(folder)))
    return MultilevelSimulations(tuple(levels), costs)


def _mapped(
    table: LevelTable, stop: int, num_valid: int, folder: Path
) -> LevelSimulations:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("theta", "x", "x_coarse") if table.is_paired else ("theta", "x")
    files: dict[str, np.memmap] = {}
    first = 0
    for block in valid_blocks(table, stop):
        for name in names:
            values = getattr(block, name).numpy()
            if name not in files:
                partial = folder / f".level_{table.level}_{name}.npy.partial"
                shape = (num_valid, *values.shape[1:])
                files[name] = np.lib.format.open_memmap(
                    partial, "w+", values.dtype, shape
                )
            files[name][first : first + len(block)] = values
        first += len(block)
    columns = {}
    for name, file in files.items():
        file.flush()
        path = folder / f"level_{table.level}_{name}.npy"
        # tensors that map a previous file of this name keep it
        os.replace(file.filename, path)
        # copy on write: changing a tensor does not change the file
        columns[name] = torch.from_numpy(np.load(path, mmap_mode="c"))
    return LevelSimulations.trusted(table.level, **columns)
