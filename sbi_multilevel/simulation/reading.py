"""Converts tables to `MultilevelSimulations`, in memory or mapped from files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.simulation.accounting import failure_text
from sbi_multilevel.simulation.table import LevelTable, no_valid_simulations
from sbi_multilevel.simulation.tasks import Status

_BLOCK = 10_000


def valid_blocks(
    table: LevelTable, stop: int, size: int = _BLOCK
) -> Iterator[LevelSimulations]:
    """Valid ones of the first simulations of a level, in blocks of `size`."""
    for start in range(0, stop, size):
        rows = table.rows_with(Status.OK, start=start, stop=min(start + size, stop))
        if len(rows):
            yield table.read(rows)


def simulations_of(
    tables: Sequence[LevelTable], stops: Sequence[int], costs: tuple[float, ...] | None
) -> MultilevelSimulations:
    """The finished ones of the first `stops[l]` simulations of each level, in memory.

    A warning gives the number of failed ones.
    """
    _warn_of_failures(tables, stops)
    levels = tuple(table.simulations(stop) for table, stop in zip(tables, stops))
    return MultilevelSimulations(levels, costs)


def memory_mapped(
    tables: Sequence[LevelTable],
    stops: Sequence[int],
    costs: tuple[float, ...] | None,
    folder: str | os.PathLike,
) -> MultilevelSimulations:
    """As `simulations_of`, with tensors that map `.npy` files in `folder`."""
    _warn_of_failures(tables, stops)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    levels = tuple(_mapped(t, stop, folder) for t, stop in zip(tables, stops))
    return MultilevelSimulations(levels, costs)


def _warn_of_failures(tables: Sequence[LevelTable], stops: Sequence[int]) -> None:
    for table, stop in zip(tables, stops):
        text = failure_text(table, stop)
        if text is not None:
            warnings.warn(text, stacklevel=4)


def _mapped(table: LevelTable, stop: int, folder: Path) -> LevelSimulations:
    total = len(table.rows_with(Status.OK, stop=stop))
    if total == 0:
        raise ValueError(no_valid_simulations(table))
    names = ("theta", "x", "x_coarse") if table.is_paired else ("theta", "x")
    paths = {name: folder / f"level_{table.level}_{name}.npy" for name in names}
    files: dict[str, np.memmap] = {}
    position = 0
    for block in valid_blocks(table, stop):
        for name, path in paths.items():
            values = getattr(block, name).numpy()
            if name not in files:
                shape = (total, *values.shape[1:])
                files[name] = np.lib.format.open_memmap(
                    _new(path), "w+", values.dtype, shape
                )
            files[name][position : position + len(block)] = values
        position += len(block)
    columns = {}
    for name, path in paths.items():
        files[name].flush()
        # tensors that map a previous file of this name keep it
        os.replace(_new(path), path)
        # copy on write: changing a tensor does not change the file
        columns[name] = torch.from_numpy(np.load(path, mmap_mode="c"))
    return LevelSimulations.trusted(table.level, **columns)


def _new(path: Path) -> Path:
    """Temporary path to which a file is written before it is renamed."""
    return path.with_name(f".{path.name}.partial")
