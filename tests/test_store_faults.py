"""Errors of the disk and of other processes: no simulation is lost."""

import errno
import multiprocessing
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sbi_multilevel import SimulationStore
from tests.two_levels import PRIOR, assert_same, coarse, fine, normal_noise
from tests.two_levels import simulate as run_

pytest.importorskip("zarr")

ROWS = (40, 20)


def run(simulator=fine, num_simulations=ROWS, **options):
    return run_((coarse, simulator), n=num_simulations, **options)


@pytest.fixture(scope="module")
def healthy():
    return run()


def chunk_files(path, level, name):
    return sorted(
        p for p in (path / f"level_{level}" / name / "c").rglob("*") if p.is_file()
    )


@pytest.mark.parametrize("kept", (0, 0.5))
@pytest.mark.parametrize("name", ("x", "x_coarse", "status", "seconds"))
def test_a_truncated_chunk_raises_and_can_be_repaired(name, kept, healthy, tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path, simulation_batch_size=5)
    file = chunk_files(path, 1, name)[-1]
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(OSError, match=f"{name} of level 1 .*repair"):
        SimulationStore.open(path).to_simulations()
    store = SimulationStore.open(path)
    assert store.repair() == (5 if name.startswith("x") else 0)
    again = run(store=path)
    assert_same(again, healthy)
    assert store.repair() == 0


def test_damaged_parameters_raise(tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path)
    chunk_files(path, 0, "theta")[0].write_bytes(b"")
    with pytest.raises(OSError, match="theta of level 0"):
        SimulationStore.open(path).to_simulations()
    with pytest.raises(OSError, match="theta of level 0 is damaged"):
        SimulationStore.open(path).repair()


@pytest.mark.parametrize("name", ("theta", "seed"))
def test_missing_parameters_raise(name, tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path)
    chunk_files(path, 0, name)[0].unlink()  # its folders remain
    with pytest.raises(ValueError, match=f"chunks of level_0/{name} hold at most 0"):
        SimulationStore.open(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk_keeps_finished_simulations(healthy, tmp_path):
    """A limit on the size of files simulates a full disk: chunk 3 does not fit."""
    script = """
        import resource, sys
        from tests.test_store_faults import *
        path = sys.argv[1]
        def coarse_(theta, noise):
            if theta[0, 0] == stop_at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
            return coarse(theta, noise)
        coarse_.__qualname__ = "coarse"
        stop_at = float(run().levels[0].theta[25, 0])
        run_((coarse_, fine), n=ROWS, store=path, simulation_batch_size=5)
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
    assert "kept; fix the cause and run again" in done.stderr
    assert "25 ok" in SimulationStore.open(path).summary()
    assert_same(run(store=path), healthy)


def test_a_store_that_cannot_be_written_raises(healthy, tmp_path, monkeypatch):
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
    assert_same(run(store=path), healthy)


def _hold(path, is_open, may_end):
    def slow(theta, noise):
        is_open.set()
        may_end.wait(60)
        return fine(theta, noise)

    slow.__qualname__ = "fine"
    run(slow, store=path)


def test_a_second_process_on_the_same_store_raises(healthy, tmp_path):
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
    assert_same(run(store=path), healthy)


def test_an_interrupted_repair_can_be_repeated(healthy, tmp_path, monkeypatch):
    from sbi_multilevel.storage import repairing

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
    assert_same(run(store=path), healthy)


def test_a_missing_chunk_is_found(healthy, tmp_path):
    path = tmp_path / "run.zarr"
    run(store=path, simulation_batch_size=5)
    chunk_files(path, 1, "x")[1].unlink()
    assert SimulationStore.open(path).repair() == 5
    assert_same(run(store=path), healthy)


def test_writing_to_a_damaged_chunk_raises(tmp_path):
    path = tmp_path / "run.zarr"
    SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise, chunk_size=10)
    run(store=path, num_simulations=(5, 5))
    chunk_files(path, 0, "x")[0].write_bytes(b"")
    with pytest.raises(OSError, match="x of level 0 cannot be read .*repair"):
        run(store=path)
    SimulationStore.open(path).repair()
    run(store=path)


def test_a_link_to_a_store_uses_the_same_lock(tmp_path):
    from sbi_multilevel.storage.layout import writing

    path, link = tmp_path / "run.zarr", tmp_path / "link.zarr"
    run(store=path)
    link.symlink_to(path, target_is_directory=True)
    with writing(path.resolve()), pytest.raises(RuntimeError, match="another process"):
        SimulationStore.open(link, noise=normal_noise).run([coarse, fine])
