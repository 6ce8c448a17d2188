"""What running simulators costs beside the simulators: time a row, workers, memory."""

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

_PRIOR = BoxUniform(-torch.ones(4), torch.ones(4))
_ROWS = 20_000
_BATCH = 1_000
_SLOW_SECONDS = 0.01
_MEMORY_ROWS = (100_000, 1_000_000)


def overheads() -> str:
    """Markdown table of the four figures, with what they are to be."""
    plain, stored = _micros_a_row(None), _micros_a_row("store")
    one, two = _seconds_slow(1), _seconds_slow(2)
    few, many = (_peak_mebibytes(rows) for rows in _MEMORY_ROWS)
    rows = [
        ("overhead a row in batches of 1 000, µs", f"{plain:.0f}", "<= 50"),
        ("the same with a store, µs", f"{stored:.0f}", "<= 150"),
        ("2 workers relative to 1, simulator of 10 ms", f"{one / two:.2f}", ">= 1.8"),
        (
            f"peak memory with {_MEMORY_ROWS[1]:,} rows in a store relative to "
            f"{_MEMORY_ROWS[0]:,} ({many:.0f} and {few:.0f} MiB)",
            f"{many / few:.2f}",
            "about 1",
        ),
    ]
    lines = ["| what | measured | aim |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _cheap(theta: Tensor, seeds: Tensor) -> Tensor:
    return theta + seeds[:, None] % 7


def _slow(theta: Tensor, seeds: Tensor) -> Tensor:
    time.sleep(_SLOW_SECONDS * len(theta))
    return _cheap(theta, seeds)


def _micros_a_row(store: str | None) -> float:
    """Median of three runs; what the simulator itself takes is left out."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            sims = simulate_multilevel(
                [_cheap],
                _PRIOR,
                (_ROWS,),
                simulation_batch_size=_BATCH,
                store=None if store is None else Path(folder) / store,
                show_progress_bars=False,
            )
            total = time.perf_counter() - start
        assert sims.total_cost is not None
        seconds.append((total - sims.total_cost) / _ROWS)
    return sorted(seconds)[1] * 1e6


def _seconds_slow(num_workers: int, num_rows: int = 600) -> float:
    """Seconds for a simulator of one row and 10 ms, workers already up."""
    options = dict(simulation_batch_size=1, show_progress_bars=False)
    simulate_multilevel([_slow], _PRIOR, (8,), num_workers=num_workers, **options)
    start = time.perf_counter()
    simulate_multilevel(
        [_slow], _PRIOR, (num_rows,), num_workers=num_workers, **options
    )
    return time.perf_counter() - start


def _peak_mebibytes(num_rows: int) -> float:
    """Peak memory of a process that does nothing but a run with a store."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fill_store, args=(num_rows, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _fill_store(num_rows: int, sender: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = SimulationStore.create(path, _PRIOR, (num_rows,), chunk_rows=_BATCH)
        store.run([_cheap], show_progress_bars=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send(peak / (2**20 if sys.platform == "darwin" else 2**10))
