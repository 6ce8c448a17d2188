"""Runs whose process is killed, and clusters that lose a worker."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from sbi_multilevel import SimulationStore
from tests.killed_run import BATCH, ROWS, Logged, run
from tests.two_levels import assert_same, coarse, fine, simulate

pytest.importorskip("zarr")


def start(path, log):
    command = [sys.executable, "-m", "tests.killed_run", str(path), str(log)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def kill(process):
    """Kill the process and its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def rows_in(path):
    if not path.exists():
        return 0
    try:
        store = SimulationStore.open(path, read_only=True)
        return sum(len(table.rows_with(1)) for table in store.tables)
    except (ValueError, FileNotFoundError, KeyError):  # not made yet
        return 0


@pytest.mark.slow
def test_a_run_killed_20_times_gives_the_same_simulations(tmp_path):
    """One run is killed repeatedly, each time after some simulations.

    Its simulations equal those of an uninterrupted run bit for bit; finished
    simulations are kept; and only those that were running are repeated.
    """
    path, log = tmp_path / "run.zarr", tmp_path / "log"
    generator = np.random.default_rng(0)
    done, kills = [0], 0
    while kills < 20:
        process = start(path, log)
        deadline = time.monotonic() + 120
        # at a random time after some progress, as workers take seconds to start
        wanted = rows_in(path) + int(generator.integers(0, 20))
        while rows_in(path) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        assert process.poll() is None, "the run ended before it was killed 20 times"
        kill(process)
        kills += 1
        done.append(rows_in(path))
        assert done[-1] >= done[-2]  # no finished simulation is lost
    assert sum(now > before for before, now in zip(done, done[1:])) >= 10
    assert done[-1] < sum(ROWS)
    resumed = run(path, log, num_workers=2)
    assert_same(resumed, run(tmp_path / "unbroken.zarr"))
    runs = Counter(log.read_text().splitlines())
    sides = ROWS[0] + 2 * ROWS[1]
    assert len(runs) == sides
    # two workers with a batch each, and the batches in the queues of joblib
    running = 8 * 2 * BATCH * 2
    assert runs.total() - sides <= 20 * running
    assert_same(run(path), resumed)


@pytest.mark.parametrize("backend", ("loky", "threading"))
def test_simulations_do_not_depend_on_the_backend(backend):
    def rows(**options):
        return simulate((Logged(0.0, None), Logged(0.1, None)), n=(20, 10), **options)

    with joblib.parallel_config(backend=backend):
        assert_same(rows(num_workers=4, simulation_batch_size=7), rows())
        assert_same(rows(num_workers=4, simulation_batch_size=(1, 1_000)), rows())


class Faulty:
    """The high-fidelity simulator, with a fault in some simulations, by theta."""

    def __init__(self, faults, marker):
        self.faults, self.marker = faults, marker

    def __call__(self, theta, noise):
        x = fine(theta, noise)
        for row, first in enumerate(theta[:, 0].tolist()):
            fault = self.faults.get(first)
            if fault == "raises":
                raise ArithmeticError("no convergence")
            if fault == "hangs":
                time.sleep(1_000)
            if fault == "returns NaN":
                x[row] = torch.nan
            if fault == "dies":
                os._exit(1)
            if fault == "is killed once" and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_simulation_is_lost_when_processes_die(tmp_path):
    """Simulations raise, hang, return NaN or die, and a worker is killed."""
    rows = (20, 150)
    healthy = simulate((coarse, fine), n=rows)
    bad = {
        3: "raises",
        31: "dies",
        32: "raises",
        60: "hangs",
        61: "returns NaN",
        80: "is killed once",
        140: "raises",
    }
    faults = {float(healthy[1].theta[row, 0]): kind for row, kind in bad.items()}
    path = tmp_path / "run.zarr"
    sims = simulate(
        (coarse, Faulty(faults, tmp_path / "killed")),
        n=rows,
        store=path,
        num_workers=2,
        simulation_batch_size=(20, 4),
        timeout=3.0,
        max_failure_share=1.0,
    )
    statuses = {"dies": "failed", "raises": "failed", "hangs": "timed out"}
    store = SimulationStore.open(path, read_only=True)
    assert {failure.index: failure.status for failure in store.failures()} == {
        row: statuses[kind] for row, kind in bad.items() if kind in statuses
    }
    assert "144 ok, 4 failed, 1 timed out, 1 invalid" in store.summary()
    kept = torch.ones(rows[1], dtype=torch.bool)
    kept[[row for row, kind in bad.items() if kind != "is killed once"]] = False
    for name in ("theta", "x", "x_coarse"):
        assert torch.equal(getattr(sims[1], name), getattr(healthy[1], name)[kept])


# ---------------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def killing_one_worker(path, client):
    """Kill a worker of the cluster once some simulations are in the store."""
    import threading

    victim = next(iter(client.run(os.getpid).values()))

    def wait_and_kill():
        while rows_in(path) < 20:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return victim, thread


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", (1, 7, 1_000))
def test_simulations_are_the_same_on_dask(cluster, batch_size, tmp_path):
    with joblib.parallel_config(backend="dask"):
        on_dask = run(tmp_path / "run.zarr", simulation_batch_size=batch_size)
    assert_same(on_dask, run(tmp_path / "here.zarr"))


@pytest.mark.slow
def test_killing_a_dask_worker_loses_no_simulation(cluster, tmp_path):
    path = tmp_path / "run.zarr"
    victim, thread = killing_one_worker(path, cluster)
    with joblib.parallel_config(backend="dask"):
        sims = run(path)
    thread.join(60)
    assert not thread.is_alive()
    assert victim not in cluster.run(os.getpid).values()
    assert_same(sims, run(tmp_path / "here.zarr"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_simulation_that_kills_its_dask_workers_is_found(tmp_path):
    """Two of three workers die, so that the run does not wait for new ones."""
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    healthy = simulate((coarse, fine), n=(4, 9))
    deadly = Faulty({float(healthy[1].theta[4, 0]): "dies"}, tmp_path / "none")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=3,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        sims = simulate(
            (coarse, deadly),
            n=(4, 9),
            simulation_batch_size=1,
            max_failure_share=1.0,
        )
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(sims[1].x, healthy[1].x[kept])
