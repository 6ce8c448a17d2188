"""A store that is open: its rows, its lock, and whether what is asked of it fits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sbi_multilevel.simulation.accounting import measured_costs
from sbi_multilevel.simulation.arguments import simulations_per_level
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.table import LevelTable
from sbi_multilevel.storage import layout
from sbi_multilevel.storage.fingerprint import Fingerprint, name_of
from sbi_multilevel.storage.locking import writing


class OpenStore:
    """What is known of a store, read from disk each time it is asked for.

    Args:
        path: Folder of the store.
        noise: The noise sampler of the run, if it has one and it is needed.
        is_writable: Whether it may be written to.
    """

    def __init__(self, path: Path, noise: NoiseSampler | None, is_writable: bool):
        self.path = path
        self._noise = noise
        self._is_writable = is_writable
        # open files nowhere: zarr reads and writes each chunk as it is asked for
        self._mode = "r+" if is_writable else "r"
        self._root = layout.read_root(path, self._mode)
        self.fingerprint = Fingerprint.from_json(self._root.attrs["fingerprint"])

    @property
    def tables(self) -> tuple[LevelTable, ...]:
        """The rows of each level as they are on disk."""
        return layout.tables(self.path, self._mode)

    @property
    def num_simulations(self) -> tuple[int, ...]:
        """Rows of each level that are planned, whatever became of them."""
        return tuple(len(table) for table in self.tables)

    @property
    def costs(self) -> tuple[float, ...] | None:
        """Mean seconds (or recorded cost) of a run of each simulator, if known."""
        return measured_costs(self.tables)

    def _writing(self, wait: float | None = None) -> contextlib.AbstractContextManager:
        if not self._is_writable:
            raise ValueError(
                f"store={str(self.path)!r} was opened read-only. Open it "
                "without `read_only`, to write."
            )
        return writing(self.path) if wait is None else writing(self.path, wait)

    def _check_is_same(self, asked: Fingerprint, remedy: str = "") -> None:
        differences = self.fingerprint.differences(asked)
        if differences:
            raise ValueError(
                f"store={str(self.path)!r} belongs to another run; "
                f"{'; '.join(differences)}. Name another path, or ask for the same "
                f"run{remedy}. Nothing was touched."
            )

    def _checked_stops(self, asked: Sequence[int] | None) -> tuple[int, ...]:
        """Rows of each level to use, the first ones."""
        planned = self.num_simulations
        if asked is None:
            return planned
        stops = simulations_per_level(asked, least=0)
        if len(stops) != len(planned) or any(a > b for a, b in zip(stops, planned)):
            raise ValueError(
                f"num_simulations={stops} must be a number for each level, no more "
                f"than the {planned} rows of store={str(self.path)!r}. `create` adds "
                "rows."
            )
        return stops

    def _note_simulators(self, simulators: Sequence[Simulator]) -> None:
        names = [name_of(simulator) for simulator in simulators]
        # as it is now: another process may have written it
        self._root = layout.read_root(self.path, "r+")
        self.fingerprint = Fingerprint.from_json(self._root.attrs["fingerprint"])
        known = self.fingerprint
        if len(names) != known.num_levels:
            raise ValueError(
                f"simulators has {len(names)} entries, and store={str(self.path)!r} "
                f"{known.num_levels} levels. Pass one simulator a level."
            )
        asked = replace(known, simulators=names)
        self._check_is_same(asked, "; or `rename_simulators`, if only names changed")
        if known.simulators is None:
            self._root.attrs["fingerprint"] = vars(asked)
            self.fingerprint = asked

    def _checked_noise(self) -> NoiseSampler | None:
        if self._noise is None and self.fingerprint.noise != "seeds":
            raise ValueError(
                f"store={str(self.path)!r} draws its noise by a sampler. Open it by "
                "`SimulationStore.open(path, noise=sampler)`."
            )
        return self._noise
