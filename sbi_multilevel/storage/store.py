"""Simulations on disk: no simulation is lost, or run twice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbi_multilevel.simulation.arguments import (
    CHECKED_ALONE,
    per_level,
    processed_prior,
    simulations_per_level,
)
from sbi_multilevel.simulation.filling import RunOptions, fill
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator, check_noise
from sbi_multilevel.simulation.tasks import Status, Work
from sbi_multilevel.storage import layout, recording
from sbi_multilevel.storage.fingerprint import Fingerprint, name_of, noise_draws
from sbi_multilevel.storage.layout import WAIT_SECONDS, writing
from sbi_multilevel.storage.recording import PendingSimulations
from sbi_multilevel.storage.repairing import repair_table
from sbi_multilevel.storage.stored import StoredSimulations
from sbi_multilevel.utils.argument_types import check_types


class SimulationStore(StoredSimulations):
    r"""Simulations of all levels on disk, each with its status.

    Create one by `create`, or by `simulate_multilevel(..., store=path)`; open an
    existing one by `open`. Simulation i of level l has the same theta and noise as in
    `simulate_multilevel`, wherever and whenever it is run.

    Example:
    --------

    ::

        >>> import tempfile, torch
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> path = tempfile.mkdtemp() + "/run.zarr"
        >>> store = SimulationStore.create(path, prior, num_simulations=(100, 10))
        >>> pending = store.pending(level=1)
        >>> x = pending.theta + 0.1  # run elsewhere, at pending.theta and pending.noise
        >>> store.record(pending.ids, x, x_coarse=pending.theta)
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
        chunk_size: int | Sequence[int] = 1_000,
    ) -> SimulationStore:
        """Plan the simulations of a run, or open an existing store of the same run.

        A store with fewer simulations is grown; one with more is not changed.

        Args:
            path: Folder of the store.
            prior: Prior over theta, anything that sbi takes.
            num_simulations: Number of simulations of each level.
            noise: Noise sampler, as of `simulate_multilevel`; seeds if `None`.
            seed: Root seed, an integer >= 0.
            chunk_size: Simulations per file of x, one number for all levels or one per
                level. It should equal the batch size.

        Raises:
            ValueError: If the store belongs to another run (with the differences), or
                the path holds something else. Nothing is changed then.
            ImportError: If zarr is missing.
            RuntimeError: If another process is writing to the store.
        """
        check_types(SimulationStore.create, locals(), but=CHECKED_ALONE)
        check_noise(noise)
        path = Path(path).resolve()
        planned = simulations_per_level(num_simulations, least=0)
        prior = processed_prior(prior, seed)
        fingerprint = Fingerprint.of(prior, len(planned), seed, noise)
        with writing(path):
            if not layout.is_store(path):
                layout.make(path, fingerprint, per_level(chunk_size, len(planned)))
            store = cls(path, noise, "r+")
            store.fingerprint.check_same(fingerprint, path)
            layout.complete(path, len(fingerprint.prior[0]))
            for table, number in zip(store.tables, planned):
                layout.grow(table, number, prior, seed)
        return store

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        noise: NoiseSampler | None = None,
        read_only: bool = False,
    ) -> SimulationStore:
        """Open an existing store.

        Args:
            path: Folder of the store.
            noise: The noise sampler of the run; needed by `pending` and `run` only.
            read_only: Whether to prevent writing.

        Raises:
            ValueError: If there is no store at `path`, its metadata is not what this
                package writes (nothing is decoded then), or the noise differs.
        """
        check_types(SimulationStore.open, locals())
        path = Path(path).resolve()
        if not layout.is_store(path):
            raise ValueError(f"path={str(path)!r} does not hold a store. Use `create`.")
        store = cls(path, noise, "r" if read_only else "r+")
        if noise is not None:
            asked = replace(store.fingerprint, noise=noise_draws(noise))
            store.fingerprint.check_same(asked, path)
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
        """Run the pending simulations, and write each batch as it finishes.

        Args:
            simulators: One per level, the lowest fidelity first.
            num_simulations: Number of simulations of each level to consider, counted
                from the first; all by default.
            simulation_batch_size: Simulations per call of a simulator, one number for
                all levels or one per level; by default the size of a chunk.
            num_workers: Workers of joblib.
            retry: Statuses of simulations to run again with the same theta and noise:
                any of "failed", "timed out" and "invalid".
            timeout: Seconds that one call of a simulator may take.
            max_failure_share: Share of failed simulations above which the run stops.
            costs: Cost of one run of each simulator, for the progress bar of cost.
            show_progress_bars: Whether to show bars and a summary.

        Raises:
            ValueError: If the simulators differ by name from those of earlier runs, or
                a simulator mixes the simulations of a batch.
            TooManyFailures: If too many simulations fail.
            RuntimeError: If another process is writing to the store.
            OSError: If the store cannot be written (disk full, no permission).
        """
        check_types(SimulationStore.run, locals(), but=CHECKED_ALONE)
        sizes = simulation_batch_size or tuple(self._root.attrs["chunk_rows"])
        sizes = per_level(sizes, len(self.tables))
        options = RunOptions(
            sizes, num_workers, max_failure_share, show_progress_bars, timeout, costs
        )
        self.run_pending(simulators, options, num_simulations, retry)
        return self

    def run_pending(
        self,
        simulators: Sequence[Simulator],
        options: RunOptions,
        num_simulations: Sequence[int] | None = None,
        retry: str | Sequence[str] = (),
    ) -> None:
        """Run the pending simulations with given options; see `run`.

        Args:
            simulators: As of `run`.
            options: How the simulations are run.
            num_simulations: As of `run`.
            retry: As of `run`.
        """
        work = Work(simulators, self._checked_noise(), options.timeout)
        statuses = Status.all_named(retry)
        with self._writing(wait=0.0):
            stops = self._checked_stops(num_simulations)
            self._read_root()
            self._note_simulators(self.fingerprint, simulators)
            tables = self.tables
            # simulations that are not run keep their status
            for table, stop in zip(tables, stops):
                table.reset(*statuses, stop=stop)
            fill(tables, stops, work, options)

    def pending(
        self, level: int, max_simulations: int | None = None
    ) -> PendingSimulations:
        """Pending simulations of a level, with ids, theta and noise.

        Args:
            level: The level.
            max_simulations: Return at most this number, counted from the first.

        Raises:
            ValueError: If the store does not have the level, or has a noise sampler and
                was opened without it.
        """
        check_types(SimulationStore.pending, locals())
        table, noise = self._table(level), self._checked_noise()
        return recording.pending_simulations(
            table, len(self.tables), noise, max_simulations
        )

    def record(
        self, ids: Any, x: Any, *, x_coarse: Any = None, cost: Any = None
    ) -> int:
        """Record simulations that were run elsewhere, in any order.

        Simulations with NaN or infinity are invalid. A simulation that is ok keeps its
        first x: recording it again has no effect, with a warning if x differs. One that
        failed, timed out or is invalid is replaced, e.g. by that of a fixed simulator.

        Args:
            ids: Ids from `pending`, of one level, shape `(n,)`.
            x: Outputs of the simulator of the level, shape `(n, *x_shape)`.
            x_coarse: Outputs of the level below at the same theta and noise; required
                above level 0.
            cost: Cost of a run, e.g. in seconds: one number, one per simulation
                `(n,)`, or one per simulation and level `(n, 2)`, the level itself
                first.

        Returns:
            The number of simulations that were written, valid or not: all except those
            that were ok before.

        Raises:
            ValueError: If the arguments do not fit; nothing is written then.
        """
        with self._writing():
            return recording.record(self.tables, ids, x, x_coarse, cost)

    def record_failures(self, ids: Any, error: str) -> int:
        """Record that simulations failed elsewhere, and the reason.

        Simulations that are ok are not changed; others become failed.

        Args:
            ids: Ids from `pending`, of one level, shape `(n,)`.
            error: The reason.

        Returns:
            The number of these failures, without simulations that were ok before.
        """
        check_types(SimulationStore.record_failures, locals())
        with self._writing():
            return recording.record_failures(self.tables, ids, error)

    def retry(self, *statuses: str) -> int:
        """Make simulations pending again, e.g. `retry("failed", "timed out")`.

        Theta and noise stay the same.

        Args:
            *statuses: Any of "failed", "timed out" and "invalid".

        Returns:
            The number of these simulations.
        """
        chosen = Status.all_named(statuses)
        with self._writing():
            return sum(table.reset(*chosen) for table in self.tables)

    def rename_simulators(self, simulators: Sequence[Simulator]) -> None:
        """Accept simulators with other names than those of earlier runs.

        This is for code that was renamed or fixed. Existing simulations are not run
        again.

        Args:
            simulators: One per level, the lowest fidelity first.
        """
        check_types(SimulationStore.rename_simulators, locals())
        with self._writing():
            self._read_root()
            self._note_simulators(
                replace(self.fingerprint, simulators=None), simulators
            )

    def repair(self) -> int:
        """Make simulations with unreadable chunks pending again; returns their number.

        Each chunk has a checksum. A disk can damage a chunk; an interrupted run cannot.
        """
        with self._writing():
            return sum(repair_table(table) for table in self.tables)

    def _writing(self, wait: float = WAIT_SECONDS) -> contextlib.AbstractContextManager:
        if self._mode == "r":
            raise ValueError(
                f"store={str(self.path)!r} was opened read-only. Open it without "
                "`read_only` to write to it."
            )
        return writing(self.path, wait)

    def _note_simulators(
        self, known: Fingerprint, simulators: Sequence[Simulator]
    ) -> None:
        names = [name_of(simulator) for simulator in simulators]
        if len(names) != known.num_levels:
            raise ValueError(
                f"simulators has {len(names)} entries, and store={str(self.path)!r} "
                f"{known.num_levels} levels. Pass one simulator per level."
            )
        asked = replace(known, simulators=names)
        remedy = "; or `rename_simulators`, if only names changed"
        known.check_same(asked, self.path, remedy)
        if known.simulators is None:
            self._root.attrs["fingerprint"] = vars(asked)
            self.fingerprint = asked

    def _checked_noise(self) -> NoiseSampler | None:
        if self._noise is None and self.fingerprint.noise != "seeds":
            raise ValueError(
                f"store={str(self.path)!r} draws its noise from a sampler. Open it by "
                "`SimulationStore.open(path, noise=sampler)`."
            )
        return self._noise
