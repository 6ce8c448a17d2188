"""Tasks whose simulations are run once, and read afterwards.

A folder holds one store (`SimulationStore`) per seed, and the settings they depend on:

.. code-block:: text

    l5pc-<hash of the settings>/
      settings.json
      pairs-0.zarr     simulations of all levels with root seed 0
      high-10000.zarr  simulations of the highest level alone

A simulation depends on the root seed, its level and its number alone. So a smaller
number of simulations is the beginning of a larger one, and those of different seeds are
independent. The simulations are the same as without a store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from sbi_multilevel import MultilevelSimulations, simulate_multilevel
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.tasks import Status
from sbi_multilevel.storage import SimulationStore, layout
from sbi_multilevel_benchmarks.posterior_task import TEST_SEED, PosteriorTask

STORE_VARIABLE = "SBI_MULTILEVEL_SIMULATIONS"


def settings_folder(root: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """The folder of the stores of these settings; it is made, with the settings in it.

    Args:
        root: Folder of all settings.
        name: Beginning of the name of the folder.
        settings: All that the simulations depend on, except seeds; plain values.
    """
    text = json.dumps(settings, indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = root / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if not file.exists():
        file.write_text(text + "\n")
    return folder


@dataclass(frozen=True)
class Runs:
    """Valid simulations of a few levels, from a store if there is one.

    Args:
        simulators: One per level.
        prior: Prior over theta.
        noise: Draws the noise.
        costs: Cost of a run of each simulator.
        batch_size: Number of simulations that are written together.
        show_progress_bars: Whether to show the progress of simulations that are run.
    """

    simulators: Sequence[Simulator]
    prior: Any
    noise: NoiseSampler
    costs: tuple[float, ...]
    batch_size: int = 64
    show_progress_bars: bool = False

    def first(
        self, num_simulations: Sequence[int], seed: int, store: Path | None
    ) -> MultilevelSimulations:
        """The first valid simulations of each level; those that are missing are run.

        Invalid ones are replaced by the next draws from the prior.

        Args:
            num_simulations: Number of valid simulations of each level.
            seed: Root seed.
            store: The store, or `None` to keep simulations in memory.
        """
        asked = planned = tuple(num_simulations)
        while True:
            found = self._planned(planned, seed, store)
            missing = [n - valid for n, valid in zip(asked, found.num_simulations)]
            if max(missing) <= 0:
                break
            planned = tuple(n + max(0, m) for n, m in zip(planned, missing))
        levels = tuple(level[torch.arange(n)] for level, n in zip(found.levels, asked))
        return MultilevelSimulations(levels, self.costs)

    def _planned(
        self, planned: tuple[int, ...], seed: int, store: Path | None
    ) -> MultilevelSimulations:
        """The valid ones among the first simulations of each level."""
        if store is None:
            return self._run(planned, seed, None)
        found = self._read(planned, store)
        if found is None:
            store.parent.mkdir(parents=True, exist_ok=True)
            # another process may run the same simulations, and is waited for
            with FileLock(f"{store}.run.lock"):
                found = self._read(planned, store) or self._run(planned, seed, store)
        return found

    def _read(
        self, planned: tuple[int, ...], path: Path
    ) -> MultilevelSimulations | None:
        """Stored simulations, `None` if some are missing; the store is not locked."""
        if not layout.is_store(path):
            return None
        store = SimulationStore.open(path, read_only=True)
        tables = store.tables
        if any(n > len(table) for n, table in zip(planned, tables)):
            return None
        if any(t.counts(n)[Status.PENDING] for n, t in zip(planned, tables)):
            return None
        return store.to_simulations(planned, costs=self.costs)

    def _run(
        self, planned: tuple[int, ...], seed: int, store: Path | None
    ) -> MultilevelSimulations:
        return simulate_multilevel(
            self.simulators,
            self.prior,
            planned,
            noise=self.noise,
            seed=seed,
            simulation_batch_size=self.batch_size,
            costs=self.costs,
            store=store,
            show_progress_bars=self.show_progress_bars,
        )


class StoredTask(PosteriorTask):
    """A task of an expensive simulator, whose exact posterior is not known.

    Estimates are evaluated by the true theta of simulations of the highest level, which
    are run when they are first used.

    Attributes:
        folder: Folder of the stores (`keep_in`); `None` keeps simulations in memory.
        num_observations: Number of observations, at least 2.
        batch_size: Number of simulations that are written together.
    """

    metric, has_reference = "nltp", False
    folder: Path | None = None
    num_observations = 100
    batch_size = 64

    def keep_in(
        self, folder: str | os.PathLike | None, settings: Mapping[str, Any]
    ) -> None:
        """Keep simulations in a folder.

        Args:
            folder: Folder of the stores of all tasks; `None` for that of the variable
                `SBI_MULTILEVEL_SIMULATIONS`, and in memory without it.
            settings: See `settings_folder`.
        """
        root = folder or os.environ.get(STORE_VARIABLE)
        if root:
            self.folder = settings_folder(Path(root), self.name, settings)

    def simulate(
        self,
        num_simulations: tuple[int, ...],
        seed: int,
        show_progress_bars: bool = False,
    ) -> MultilevelSimulations:
        """Simulations of all levels, the first of those with larger numbers.

        Different seeds have no simulation in common.

        Args:
            num_simulations: Number of simulations of each level.
            seed: Root seed.
            show_progress_bars: Whether to show the progress of new simulations.
        """
        runs = self._runs(slice(None), show_progress_bars)
        return runs.first(num_simulations, seed, self._store(f"pairs-{seed}"))

    def simulate_level(
        self, level: int, num_simulations: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        name = "high" if level == self.highest_level else f"level-{level}"
        runs = self._runs(slice(level, level + 1))
        store = self._store(f"{name}-{seed}")
        found = runs.first((num_simulations,), seed + 1_000_000, store)
        return found[0].theta, found[0].x

    def simulate_test(self, num_simulations: int) -> tuple[Tensor, Tensor]:
        """Theta and x of the test simulations, the first of which are observations.

        Args:
            num_simulations: Number of simulations.
        """
        return self.simulate_high(num_simulations, seed=TEST_SEED)

    @cached_property
    def true_theta(self) -> Tensor:  # pyright: ignore
        return self._observed[0]

    @cached_property
    def observations(self) -> Tensor:  # pyright: ignore
        return self._observed[1]

    def reference(self, index: int) -> Tensor:
        raise TypeError(f"The exact posterior of task={self.name!r} is not known.")

    @cached_property
    def _observed(self) -> tuple[Tensor, Tensor]:
        return self.simulate_test(self.num_observations)

    def _runs(self, levels: slice, show_progress_bars: bool = False) -> Runs:
        return Runs(
            self.simulators[levels],
            self.prior,
            self.noise,
            self.costs[levels],
            self.batch_size,
            show_progress_bars,
        )

    def _store(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.zarr"
