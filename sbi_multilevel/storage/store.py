"""Simulations on disk: nothing that was simulated is lost, or simulated twice.

A store is a zarr group of plain arrays, one subgroup a level:

.. code-block:: text

    run.zarr/          attributes: format, fingerprint, names of the statuses
      level_0/ theta   (n, d_theta)  drawn when the store is made
               seed    (n,)          seed of the noise of each row
               status  (n,)          0 pending, 1 ok, 2 failed, 3 timed out, 4 invalid
               x       (n, *x_shape)
               seconds (n, 2)        in the simulator of the level, in the one below
               error   (n,)          why a row failed
      level_1/ ... and x_coarse

Data is written before the status that speaks of it, each chunk replaces its file at
once, and one process writes at a time. So a run that was killed at any moment goes on
where it was when its store is opened again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.simulation.accounting import summary
from sbi_multilevel.simulation.arguments import (
    CHECKED_ALONE,
    check_seed,
    per_level,
    processed_prior,
    simulations_per_level,
)
from sbi_multilevel.simulation.filling import Effort, fill
from sbi_multilevel.simulation.noise import (
    NoiseSampler,
    Simulator,
    check_noise,
    seeded,
)
from sbi_multilevel.simulation.reading import (
    memory_mapped,
    simulations_of,
    valid_blocks,
)
from sbi_multilevel.simulation.table import FailedSimulation
from sbi_multilevel.simulation.tasks import Status, Work
from sbi_multilevel.storage import layout, recording
from sbi_multilevel.storage.fingerprint import (
    Fingerprint,
    noise_draws,
)
from sbi_multilevel.storage.locking import writing
from sbi_multilevel.storage.opened import OpenStore
from sbi_multilevel.storage.recording import PendingRows
from sbi_multilevel.storage.repairing import repair_table
from sbi_multilevel.utils.argument_types import check_types


class SimulationStore(OpenStore):
    r"""Rows of all levels on disk, each with its status.

    Make one by `create`, or by `simulate_multilevel(..., store=path)`; open an existing
    one by `open`. Row i of level l has the theta and the noise that
    `simulate_multilevel` gives it, wherever and whenever it is run.

    Example:
    --------

    ::

        >>> import tempfile, torch
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> path = tempfile.mkdtemp() + "/run.zarr"
        >>> store = SimulationStore.create(path, prior, num_simulations=(100, 10))
        >>> rows = store.pending(level=1)
        >>> x = rows.theta + 0.1  # simulated elsewhere, from rows.theta and rows.noise
        >>> store.record(rows.ids, x, x_coarse=rows.theta)
        10
        >>> print(store.summary())
        level 0: 100 pending, 0 ok, 0 s; level 1: 10 ok, 0 s
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        prior: Any,
        num_simulations: Sequence[int],
        *,
        noise: NoiseSampler | None = None,
        seed: int = 0,
        chunk_rows: int | Sequence[int] = 1_000,
    ) -> SimulationStore:
        """Plan the rows of a run, or open the store where the same run is planned.

        A store that holds fewer rows is grown; one that holds more is left as it is.

        Args:
            path: Folder of the store.
            prior: Prior over theta, anything that sbi takes.
            num_simulations: Rows of each level.
            noise: Noise sampler, as of `simulate_multilevel`; seeds if `None`.
            seed: Root seed, an integer >= 0.
            chunk_rows: Rows of x in one file, for all levels or a number each. As many
                as are simulated at once.

        Raises:
            ValueError: If the store is one of another run (says what differs), or the
                path holds something else. Nothing is touched then.
            ImportError: If zarr is missing.
            RuntimeError: If another process writes to the store.
        """
        check_types(SimulationStore.create, locals(), but=CHECKED_ALONE)
        check_noise(noise)
        path = Path(path).resolve()
        planned = simulations_per_level(num_simulations, least=0)
        check_seed(seed)
        with seeded(seed):  # sbi draws from the prior to check it
            prior = processed_prior(prior)
        fingerprint = Fingerprint.of(prior, len(planned), seed, noise)
        with writing(path):
            if not layout.is_store(path):
                layout.make(path, fingerprint, per_level(chunk_rows, len(planned)))
            store = cls(path, noise, is_writable=True)
            store._check_is_same(fingerprint)
            layout.complete(path, len(fingerprint.prior[0]))
            for table, num_rows in zip(store.tables, planned):
                layout.grow(table, num_rows, prior, seed)
        return store

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        noise: NoiseSampler | None = None,
        read_only: bool = False,
    ) -> SimulationStore:
        """Open a store that exists.

        Args:
            path: Folder of the store.
            noise: The noise sampler of the run; needed by `pending` and `run` only.
            read_only: Whether to refuse to write.

        Raises:
            ValueError: If there is no store at `path`, its metadata is not what this
                package writes (nothing is decoded then), or the noise is another one.
        """
        check_types(SimulationStore.open, locals())
        path = Path(path).resolve()
        if not layout.is_store(path):
            raise ValueError(f"path={str(path)!r} holds no store. Use `create`.")
        store = cls(path, noise, not read_only)
        if noise is not None:
            stored = store.fingerprint
            asked = replace(stored, noise=noise_draws(noise))
            store._check_is_same(asked)
        return store

    def run(
        self,
        simulators: Sequence[Simulator],
        *,
        num_simulations: Sequence[int] | None = None,
        simulation_batch_size: int | Sequence[int] | None = None,
        num_workers: int | None = None,
        retry: str | Sequence[str] = (),
        timeout: float | None = None,
        max_failure_share: float = 0.2,
        costs: Sequence[float] | None = None,
        show_progress_bars: bool = True,
    ) -> SimulationStore:
        """Simulate the pending rows, and write each batch as it comes back.

        Args:
            simulators: One a level, cheapest first.
            num_simulations: Run the first so many rows of each level only.
            simulation_batch_size: Rows that a simulator is given at once, for all
                levels or a number each; by default the rows of a chunk.
            num_workers: Workers of joblib.
            retry: Statuses of rows to run again with the same theta and noise, out of
                "failed", "timed out" and "invalid".
            timeout: Seconds that one call of a simulator may take.
            max_failure_share: Share of failed rows above which the run stops.
            costs: Cost of a run of each simulator, for the bar of cost.
            show_progress_bars: Whether to show bars and a summary.

        Raises:
            ValueError: If the simulators are not those of earlier runs, by name, or
                rows of a batch are mixed up.
            TooManyFailures: If too many rows fail.
            RuntimeError: If another process writes to the store.
            OSError: If the store cannot be written (disk full, no permission).
        """
        check_types(SimulationStore.run, locals(), but=CHECKED_ALONE)
        work = Work(simulators, self._checked_noise(), timeout)
        sizes = simulation_batch_size or tuple(self._root.attrs["chunk_rows"])
        effort = Effort(
            per_level(sizes, len(self.tables)),
            num_workers,
            max_failure_share,
            show_progress_bars,
        )
        statuses = Status.all_named(retry)
        with self._writing(wait=0.0):
            stops = self._checked_stops(num_simulations)
            self._note_simulators(simulators)
            tables = self.tables
            # nothing is forgotten of rows that are not run
            for table, stop in zip(tables, stops):
                table.reset(*statuses, stop=stop)
            fill(tables, stops, work, effort, costs)
        return self

    def pending(self, level: int, max_rows: int | None = None) -> PendingRows:
        """Rows of a level that wait, with ids, theta and noise.

        Args:
            level: The level.
            max_rows: Return no more than so many, the first ones.

        Raises:
            ValueError: If the store has a noise sampler and was opened without it.
        """
        check_types(SimulationStore.pending, locals())
        tables = self.tables
        noise = self._checked_noise()
        return recording.pending_rows(tables[level], len(tables), noise, max_rows)

    def record(
        self, ids: Any, x: Any, *, x_coarse: Any = None, cost: Any = None
    ) -> int:
        """Take back rows that were simulated elsewhere.

        In any order; rows that are in already are kept as they are, and NaN or infinity
        makes a row invalid.

        Args:
            ids: Ids from `pending`, of one level, shape `(n,)`.
            x: Outputs of the simulator of the level, shape `(n, *x_shape)`.
            x_coarse: Those of the level below at the same theta and noise; above
                level 0.
            cost: Cost of a run, e.g. in seconds: a number, one a row `(n,)`, or one a
                row and side `(n, 2)`, the level itself first.

        Returns:
            The number of rows that are new.

        Raises:
            ValueError: If the arguments do not fit; nothing is written then.
        """
        with self._writing():
            return recording.record(self.tables, ids, x, x_coarse, cost)

    def record_failures(self, ids: Any, error: str) -> int:
        """Note that rows failed elsewhere, and why.

        Args:
            ids: Ids from `pending`, of one level, shape `(n,)`.
            error: Why.

        Returns:
            The number of rows that are new.
        """
        check_types(SimulationStore.record_failures, locals())
        with self._writing():
            return recording.record_failures(self.tables, ids, error)

    def retry(self, *statuses: str) -> int:
        """Make rows pending again, e.g. `retry("failed", "timed out")`.

        Theta and noise stay the same.

        Args:
            *statuses: Any of "failed", "timed out" and "invalid".

        Returns:
            How many rows there are.
        """
        chosen = Status.all_named(statuses)
        with self._writing():
            return sum(table.reset(*chosen) for table in self.tables)

    def rename_simulators(self, simulators: Sequence[Simulator]) -> None:
        """Take simulators of other names for those of earlier runs.

        For code that was moved or mended. Rows that are there are not run again.

        Args:
            simulators: One a level, cheapest first.
        """
        check_types(SimulationStore.rename_simulators, locals())
        with self._writing():
            self.fingerprint = replace(self.fingerprint, simulators=None)
            self._root.attrs["fingerprint"] = vars(self.fingerprint)
            self._note_simulators(simulators)

    def repair(self) -> int:
        """Make rows pending again whose chunks cannot be read; returns how many.

        A chunk carries a checksum; it can be damaged by a disk, not by a killed run.
        """
        with self._writing():
            return sum(repair_table(table) for table in self.tables)

    def failures(self) -> list[FailedSimulation]:
        """Rows that failed or timed out, with the reasons."""
        return [failure for table in self.tables for failure in table.failures()]

    def summary(self) -> str:
        """One line: what became of the rows of each level, and the seconds spent."""
        return summary(self.tables, self.num_simulations)

    def to_simulations(
        self,
        num_simulations: Sequence[int] | None = None,
        *,
        costs: Sequence[float] | None = None,
        memory_map: str | os.PathLike | None = None,
    ) -> MultilevelSimulations:
        """The valid rows, to train on.

        Args:
            num_simulations: Of the first so many rows of each level only.
            costs: Cost of each level; by default the mean of what was measured.
            memory_map: A folder for rows that outgrow memory: they are copied to `.npy`
                files there, and the tensors returned read from these as they are used.

        Raises:
            ValueError: If a level has fewer than two valid rows.
            OSError: If a chunk cannot be read; `repair` then says what is lost.
        """
        check_types(SimulationStore.to_simulations, locals())
        tables, stops = self.tables, self._checked_stops(num_simulations)
        chosen = tuple(costs) if costs is not None else self.costs
        if memory_map is not None:
            return memory_mapped(tables, stops, chosen, memory_map)
        return simulations_of(tables, stops, chosen)

    def batches(
        self, level: int, batch_size: int = 10_000
    ) -> Iterator[LevelSimulations]:
        """Valid rows of a level, in parts, e.g. to summarise what outgrows memory.

        Args:
            level: The level.
            batch_size: Rows of the store that are read at once.
        """
        check_types(SimulationStore.batches, locals())
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, but is {batch_size}.")
        return valid_blocks(self.tables[level], size=batch_size)
