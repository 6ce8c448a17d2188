"""Faults injected into runs: each ends in a clear status or error, nothing is lost."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import SimulationStore, TooManyFailures, simulate_multilevel
from sbi_multilevel.simulation.tasks import Status
from sbi_multilevel.simulation.time_limit import TimeIsUp, call_within

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
ROWS = (40, 20)


def coarse(theta, noise):
    return theta + noise[:, :2]


def fine(theta, noise):
    return theta + noise[:, :2] + 0.1 * noise[:, 2:]


def normal_noise(n, generator):
    return torch.randn(n, 4, generator=generator)


def is_bad(theta):
    """A few rows, told by their parameters."""
    return theta[:, 0] > 0.85


def raising(theta, noise):
    if is_bad(theta).any():
        raise ArithmeticError("no convergence\nat step 3")
    return fine(theta, noise)


def wrong_shape(theta, noise):
    x = fine(theta, noise)
    return x[:, :1] if is_bad(theta).any() else x


def exiting(theta, noise):
    if is_bad(theta).any():
        sys.exit(3)
    return fine(theta, noise)


def sleeping(theta, noise):
    if is_bad(theta).any():
        time.sleep(100)
    return fine(theta, noise)


def swallowing(theta, noise):
    """Catches exceptions, as careless simulators do; must still be ended."""
    while is_bad(theta).any():
        with contextlib.suppress(Exception):
            time.sleep(0.01)
    return fine(theta, noise)


def dying(theta, noise):
    if is_bad(theta).any():
        os._exit(1)
    return fine(theta, noise)


def nan(theta, noise):
    return torch.where(is_bad(theta)[:, None], torch.nan, fine(theta, noise))


FAULTS = {
    # simulator: status of the bad rows, what is said of them, options
    raising: ("failed", "ArithmeticError: no convergence at step 3", {}),
    wrong_shape: ("failed", "has shape", {}),
    exiting: ("failed", "SystemExit: 3", {}),
    sleeping: ("timed out", "longer than timeout=0.2 seconds", dict(timeout=0.2)),
    swallowing: ("timed out", "longer than timeout=0.2 seconds", dict(timeout=0.2)),
    dying: ("failed", "worker died", {}),
    nan: ("invalid", "", {}),
}


def run(simulator=fine, **options):
    options = {"num_simulations": ROWS, "noise": normal_noise, **options}
    return simulate_multilevel(
        [coarse, simulator], PRIOR, show_progress_bars=False, **options
    )


@pytest.fixture(scope="module")
def healthy():
    return run()


def assert_all_but_bad(sims, healthy):
    """The rows of level 1 that are not bad are there, in pairs, and no others."""
    pairs, good = sims[1], ~is_bad(healthy[1].theta)
    assert 0 < (~good).sum() < 5
    for name in ("theta", "x", "x_coarse"):
        assert torch.equal(getattr(pairs, name), getattr(healthy[1], name)[good])
    assert torch.equal(sims[0].x, healthy[0].x)


def _cases():
    """Every fault with 1 and 2 workers, alone and in batches, where it can be told."""
    for simulator in FAULTS:
        for workers, batch_size in ((1, 1), (1, 1_000), (2, 1), (2, 7)):
            # without workers, a simulator that kills its process kills ours; and which
            # of several rows has a wrong shape depends on the batch
            if (simulator is dying and workers == 1) or (
                simulator is wrong_shape and batch_size > 1
            ):
                continue
            takes_long = simulator is dying  # workers start anew, in seconds
            yield pytest.param(
                simulator,
                workers,
                batch_size,
                marks=pytest.mark.slow if takes_long else (),
                id=f"{simulator.__name__}-{workers}-{batch_size}",
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("simulator, workers, batch_size", _cases())
def test_a_bad_row_is_told_and_stops_nothing(
    simulator, workers, batch_size, healthy, tmp_path
):
    status, text, options = FAULTS[simulator]
    path = tmp_path / "run.zarr"
    sims = run(
        simulator,
        store=path,
        num_workers=workers,
        simulation_batch_size=batch_size,
        max_failure_share=1.0,
        **options,
    )
    assert_all_but_bad(sims, healthy)
    store = SimulationStore.open(path, noise=normal_noise)
    number = len(healthy[1]) - len(sims[1])
    assert f"{len(sims[1])} ok, {number} {status}" in store.summary()
    for failure in store.failures():
        assert text in failure.error and failure.status == status
    assert len(store.failures()) == (0 if status == "invalid" else number)
    # mended, the bad rows run with the same theta and noise
    simulator.__qualname__, name = "mended", simulator.__qualname__
    try:
        mended = lambda theta, noise: fine(theta, noise)  # noqa: E731
        mended.__qualname__ = name
        store.run([coarse, mended], retry=(status,), show_progress_bars=False)
    finally:
        simulator.__qualname__ = name
    assert torch.equal(store.to_simulations()[1].x, healthy[1].x)


def test_a_row_that_kills_its_worker_is_found(healthy):
    deadly = float(healthy[1].theta[2, 0])

    def deadly_for_one(theta, noise):
        if (theta[:, 0] == deadly).any():
            os._exit(1)
        return fine(theta, noise)

    options = dict(num_workers=2, simulation_batch_size=2, max_failure_share=1.0)
    with pytest.warns(UserWarning, match="1 of 4 rows of level 1 .*worker died"):
        sims = run(deadly_for_one, num_simulations=(2, 4), **options)
    assert torch.equal(sims[1].x, healthy[1].x[[0, 1, 3]])


@pytest.mark.parametrize("simulator", (raising, sleeping), ids=lambda s: s.__name__)
def test_in_memory_failures_are_left_out_with_a_warning(simulator, healthy):
    _, text, options = FAULTS[simulator]
    with pytest.warns(UserWarning, match=f"rows of level 1 failed .*{text}"):
        sims = run(simulator, max_failure_share=1.0, **options)
    assert_all_but_bad(sims, healthy)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("simulator", (raising, sleeping), ids=lambda s: s.__name__)
def test_threads_survive_too(simulator, healthy):
    options = dict(FAULTS[simulator][2], max_failure_share=1.0, num_workers=3)
    with joblib.parallel_config(backend="threading"):
        assert_all_but_bad(run(simulator, simulation_batch_size=5, **options), healthy)


def test_a_simulator_that_never_works_stops_early():
    def broken(theta, noise):
        raise KeyError("dt")

    with pytest.raises(TooManyFailures, match="more than max_failure_share=0.2.*'dt'"):
        run(broken, num_simulations=(40, 10_000))
    with pytest.raises(TooManyFailures, match="level 1 returned x of shape"):
        run(lambda theta, noise: theta[0])


def test_a_simulator_that_cannot_be_sent_to_workers_says_so():
    lock = threading.Lock()

    def unpicklable(theta, noise):
        with lock:
            return fine(theta, noise)

    with pytest.raises(Exception, match="pickle"):
        run(unpicklable, num_workers=2)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(max_failure_share=2.0), "max_failure_share"),
        (dict(retry=("broken",)), "'broken' is unknown"),
        (dict(timeout=0.0), "timeout"),
        (dict(simulation_batch_size=(1, 2, 3)), "simulation_batch_size"),
    ],
)
def test_bad_options_are_refused_by_name(options, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        run(store=tmp_path / "run.zarr", **options)


def test_retry_needs_a_store():
    with pytest.raises(ValueError, match="retry"):
        run(retry=("failed",))


# ------------------------------------------------------------- time limits


def test_a_limit_leaves_results_and_errors_alone():
    for where in (_here, _in_thread):
        assert where(lambda: call_within(5.0, lambda a: a + 1, 2)) == 3
        with pytest.raises(ZeroDivisionError):
            where(lambda: call_within(5.0, lambda: 1 / 0))
        start = time.perf_counter()
        with pytest.raises(TimeIsUp):
            where(lambda: call_within(0.05, time.sleep, 20))
        assert time.perf_counter() - start < 10


def _here(function):
    return function()


def _in_thread(function):
    ended = []

    def call():
        try:
            ended.append((function(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=call)
    thread.start(), thread.join()
    result, error = ended[0]
    if error is not None:
        raise error
    return result


# ------------------------------------------------------------------ the disk


def chunk_files(path, level, name):
    return sorted(
        p for p in (path / f"level_{level}" / name / "c").rglob("*") if p.is_file()
    )


@pytest.mark.parametrize("kept", (0, 0.5))
@pytest.mark.parametrize("name", ("x", "x_coarse", "status", "seconds"))
def test_a_truncated_chunk_is_told_and_repaired(name, kept, healthy, tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path, simulation_batch_size=5)
    file = chunk_files(path, 1, name)[-1]
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(OSError, match=f"{name} of level 1 .*repair"):
        SimulationStore.open(path).to_simulations()
    store = SimulationStore.open(path)
    assert store.repair() == (5 if name.startswith("x") else 0)
    again = run(store=path)
    for a, b in zip(again, healthy):
        assert torch.equal(a.theta, b.theta) and torch.equal(a.x, b.x)
    assert store.repair() == 0


def test_damaged_parameters_are_told(tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path)
    chunk_files(path, 0, "theta")[0].write_bytes(b"")
    with pytest.raises(OSError, match="theta of level 0"):
        SimulationStore.open(path).to_simulations()
    with pytest.raises(OSError, match="theta of level 0 is damaged"):
        SimulationStore.open(path).repair()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk_keeps_what_was_done(healthy, tmp_path):
    """A limit on the size of files stands for the disk: chunk 3 no longer fits."""
    script = """
        import resource, sys
        from tests.test_simulation_faults import *
        path = sys.argv[1]
        def coarse_(theta, noise):
            if theta[0, 0] == stop_at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
            return coarse(theta, noise)
        coarse_.__qualname__ = "coarse"
        stop_at = float(run().levels[0].theta[25, 0])
        simulate_multilevel([coarse_, fine], PRIOR, ROWS, noise=normal_noise,
            store=path, simulation_batch_size=5, show_progress_bars=False)
    """
    path = tmp_path / "run.zarr"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode != 0
    assert "cannot be read or written: File too large" in done.stderr, done.stderr
    assert "kept; mend it and run again" in done.stderr
    assert "25 ok" in SimulationStore.open(path).summary()
    for a, b in zip(run(store=path), healthy):
        assert torch.equal(a.x, b.x)


def test_a_store_that_cannot_be_written_says_so(healthy, tmp_path, monkeypatch):
    from zarr.storage import _local

    path = tmp_path / "run.zarr"
    run(store=path, num_simulations=(30, 10))

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(_local, "_put", refuse)
        with pytest.raises(OSError, match="cannot be read or written: Read-only"):
            run(store=path)
    store = SimulationStore.open(path, read_only=True)
    assert len(store.to_simulations([30, 10])[0]) == 30
    with pytest.raises(ValueError, match="read-only"):
        store.retry("ok")
    for a, b in zip(run(store=path), healthy):
        assert torch.equal(a.x, b.x)


def _hold(path, is_open, may_end):
    def slow(theta, noise):
        is_open.set()
        may_end.wait(60)
        return fine(theta, noise)

    slow.__qualname__ = "fine"
    run(slow, store=path)


def test_another_process_on_the_same_store_is_refused(healthy, tmp_path):
    path = tmp_path / "run.zarr"
    context = multiprocessing.get_context("fork")
    is_open, may_end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(path, is_open, may_end))
    other.start()
    try:
        assert is_open.wait(60)
        with pytest.raises(RuntimeError, match="written by another process"):
            SimulationStore.open(path, noise=normal_noise).run([coarse, fine])
        # reading is allowed
        assert "40 ok" in SimulationStore.open(path, read_only=True).summary()
    finally:
        may_end.set()
        other.join()
    for a, b in zip(run(store=path), healthy):
        assert torch.equal(a.x, b.x)


def test_statuses_have_the_names_of_the_docs():
    names = ["pending", "ok", "failed", "timed out", "invalid"]
    assert [status.label for status in Status] == names
    assert [Status.named(name) for name in names] == list(Status)
    assert np.uint8(Status.OK) == 1


# ------------------------------------------- found by reviewers, each with its test


@pytest.mark.slow
def test_a_worker_that_hears_no_signal_is_killed(healthy, monkeypatch):
    hanging = float(healthy[1].theta[1, 0])

    def deaf(theta, noise):
        """Hangs as code in C does that no signal interrupts."""
        if (theta[:, 0] == hanging).any():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(1_000)
        return fine(theta, noise)

    # for the start of workers; 300 seconds otherwise
    monkeypatch.setattr("sbi_multilevel.simulation.engine._GRACE_SECONDS", 30.0)
    options = dict(num_workers=2, timeout=0.5, max_failure_share=1.0)
    with pytest.warns(UserWarning, match="1 of 3 rows of level 1 .*did not answer"):
        sims = run(deaf, num_simulations=(2, 3), simulation_batch_size=1, **options)
    assert torch.equal(sims[1].x, healthy[1].x[[0, 2]])


def test_what_is_no_exception_is_a_failure_too(healthy):
    class Panic(BaseException):
        """As of simulators in Rust."""

    def panicking(theta, noise):
        if is_bad(theta).any():
            raise Panic("index out of bounds")
        return fine(theta, noise)

    with pytest.warns(UserWarning, match="Panic: index out of bounds"):
        assert_all_but_bad(run(panicking, max_failure_share=1.0), healthy)


def test_a_simulator_may_use_its_output_again(healthy):
    buffer = torch.zeros(1_000, 2)

    def reusing(simulator):
        def simulate(theta, noise):
            buffer[: len(theta)] = simulator(theta, noise)
            return buffer[: len(theta)]

        return simulate

    sims = simulate_multilevel(
        [reusing(coarse), reusing(fine)],
        PRIOR,
        ROWS,
        noise=normal_noise,
        show_progress_bars=False,
    )
    for a, b in zip(sims, healthy):
        assert torch.equal(a.x, b.x)
    assert torch.equal(sims[1].x_coarse, healthy[1].x_coarse)


def test_a_first_row_of_a_wrong_shape_does_not_spoil_the_store(healthy, tmp_path):
    path = tmp_path / "run.zarr"

    def wrong_at_first(theta, noise):
        x = fine(theta, noise)
        return x[:, :1] if (theta[:, 0] == first).any() else x

    def coarse_too(theta, noise):
        x = coarse(theta, noise)
        return x[:, :1] if (theta[:, 0] == first).any() else x

    first = float(healthy[1].theta[0, 0])
    store = SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise)
    with pytest.raises(TooManyFailures, match="of earlier rows .*'ok' or 'invalid'"):
        store.run(
            [coarse_too, wrong_at_first],
            simulation_batch_size=1,
            show_progress_bars=False,
        )
    store.rename_simulators([coarse, fine])
    store.retry("ok", "failed")
    sims = run(store=path)
    for a, b in zip(sims, healthy):
        assert torch.equal(a.x, b.x)


def test_tasks_are_taken_as_workers_need_them():
    from sbi_multilevel.simulation.engine import run_tasks
    from sbi_multilevel.simulation.table import memory_table
    from sbi_multilevel.simulation.tasks import Work

    taken, table = (
        [],
        memory_table(
            0, torch.zeros(10_000, 2), torch.arange(10_000, dtype=torch.int64)
        ),
    )

    def noted():
        for task in table.tasks(10_000, 1):
            taken.append(task)
            yield task

    results = run_tasks(noted(), Work((lambda theta, seeds: theta,)), None)
    for done in range(1_000):
        next(results)
        assert len(taken) <= done + 64
    results.close()


def test_the_limit_of_failures_is_not_met_by_chance():
    from sbi_multilevel.simulation.accounting import FailureLimit
    from sbi_multilevel.simulation.table import memory_table
    from sbi_multilevel.simulation.tasks import Outcome

    def stopped(rate, seed, rows=1_000):
        failed = np.random.default_rng(seed).random(rows) < rate
        table = memory_table(0, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
        limit = FailureLimit(table, 0.2)
        good = Outcome(np.array([Status.OK], np.uint8), np.zeros((1, 2)))
        bad = Outcome.failed(1, Status.FAILED, "why")
        try:
            for is_failed in failed:
                limit.check(bad if is_failed else good)
        except TooManyFailures:
            return True
        return False

    assert sum(stopped(0.15, seed) for seed in range(50)) <= 2
    assert all(stopped(0.3, seed) for seed in range(20))


def test_timers_of_others_go_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeIsUp):
            call_within(0.05, time.sleep, 20)
        assert not rung
        time.sleep(0.5)
        assert rung
        assert call_within(float("inf"), lambda: 3) == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_bell_rings_again_for_whoever_catches_everything():
    def stubborn():
        for _ in range(3):
            try:
                time.sleep(20)
            except:  # noqa: E722
                continue

    start = time.perf_counter()
    call_within(0.1, stubborn)
    assert time.perf_counter() - start < 10


def test_a_repair_that_is_killed_is_done_again(healthy, tmp_path, monkeypatch):
    from sbi_multilevel.simulation.store import repairing

    path = tmp_path / "run.zarr"
    run(store=path, simulation_batch_size=5)
    chunk_files(path, 1, "x")[1].write_bytes(b"")
    store = SimulationStore.open(path)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "_empty", killed)
        with pytest.raises(KeyboardInterrupt):
            store.repair()
    store.repair()
    for a, b in zip(run(store=path), healthy):
        assert torch.equal(a.x, b.x)


def test_a_chunk_that_is_gone_is_found(healthy, tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path, simulation_batch_size=5)
    chunk_files(path, 1, "x")[1].unlink()
    assert SimulationStore.open(path).repair() == 5
    for a, b in zip(run(store=path), healthy):
        assert torch.equal(a.x, b.x)


def test_a_damaged_chunk_that_is_written_to_is_told(tmp_path):
    path = tmp_path / "run.zarr"
    SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise, chunk_rows=10)
    run(store=path, num_simulations=(5, 5))
    chunk_files(path, 0, "x")[0].write_bytes(b"")
    with pytest.raises(OSError, match="x of level 0 cannot be read .*repair"):
        run(store=path)
    SimulationStore.open(path).repair()
    run(store=path)


def test_a_link_to_a_store_has_its_lock(tmp_path):
    from sbi_multilevel.simulation.store.locking import writing

    path, link = tmp_path / "run.zarr", tmp_path / "link.zarr"
    run(store=path)
    link.symlink_to(path, target_is_directory=True)
    with writing(path.resolve()), pytest.raises(RuntimeError, match="another process"):
        SimulationStore.open(link, noise=normal_noise).run([coarse, fine])
