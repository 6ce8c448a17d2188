"""Overhead of running simulators: time per simulation, workers and memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel import SimulationStore, simulate_multilevel
from sbi_multilevel_benchmarks.records import Table

_PRIOR = BoxUniform(-torch.ones(4), torch.ones(4))
_NUM_SIMULATIONS = 20_000
_BATCH_SIZE = 1_000
_SLOW_SECONDS = 0.01
_NUM_FOR_MEMORY = (100_000, 1_000_000)


def overheads() -> Table:
    """Four measurements, with their targets."""
    plain, stored = _microseconds(None), _microseconds("store")
    one, two = _seconds_slow(1), _seconds_slow(2)
    few, many = (_peak_mebibytes(num) for num in _NUM_FOR_MEMORY)
    memory = (
        "peak memory with {1:,} simulations in a store relative to {0:,} "
        f"({many:.0f} and {few:.0f} MiB)"
    ).format(*_NUM_FOR_MEMORY)
    rows = (
        ("overhead per simulation in batches of 1 000, µs", f"{plain:.0f}", "<= 50"),
        ("the same with a store, µs", f"{stored:.0f}", "<= 150"),
        ("2 workers relative to 1, simulator of 10 ms", f"{one / two:.2f}", ">= 1.8"),
        (memory, f"{many / few:.2f}", "about 1"),
    )
    return Table(("quantity", "measured", "target"), rows)


def _fast(theta: Tensor, seeds: Tensor) -> Tensor:
    return theta + seeds[:, None] % 7


def _slow(theta: Tensor, seeds: Tensor) -> Tensor:
    time.sleep(_SLOW_SECONDS * len(theta))
    return _fast(theta, seeds)


def _microseconds(store: str | None) -> float:
    """Overhead per simulation without the simulator, the median of three runs."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            sims = simulate_multilevel(
                [_fast],
                _PRIOR,
                (_NUM_SIMULATIONS,),
                simulation_batch_size=_BATCH_SIZE,
                store=None if store is None else Path(folder) / store,
                show_progress_bars=False,
            )
            total = time.perf_counter() - start
        assert sims.total_cost is not None
        seconds.append((total - sims.total_cost) / _NUM_SIMULATIONS)
    return sorted(seconds)[1] * 1e6


def _seconds_slow(num_workers: int, num: int = 600) -> float:
    """Seconds of a simulator of 10 ms, workers already started."""
    options = dict(simulation_batch_size=1, show_progress_bars=False)
    simulate_multilevel([_slow], _PRIOR, (8,), num_workers=num_workers, **options)
    start = time.perf_counter()
    simulate_multilevel([_slow], _PRIOR, (num,), num_workers=num_workers, **options)
    return time.perf_counter() - start


def _peak_mebibytes(num: int) -> float:
    """Peak memory of a process that simulates into a store."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fill_store, args=(num, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _fill_store(num: int, sender: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = SimulationStore.create(path, _PRIOR, (num,), chunk_size=_BATCH_SIZE)
        store.run([_fast], show_progress_bars=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send(peak / (2**20 if sys.platform == "darwin" else 2**10))
