"""Injected failures: each leads to a status or an error, and no simulation is lost."""

import contextlib
import os
import signal
import sys
import threading
import time

import joblib
import numpy as np
import pytest
import torch

from sbi_multilevel import SimulationStore, TooManyFailures
from sbi_multilevel.simulation.tasks import Status
from tests.two_levels import PRIOR, assert_same, coarse, fine, normal_noise
from tests.two_levels import simulate as run_

ROWS = (40, 20)


def is_bad(theta):
    """Some simulations, identified by their parameters."""
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
    """Catches all exceptions, but must still time out."""
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
    # simulator: status of the failed simulations, their error, options
    raising: ("failed", "ArithmeticError: no convergence at step 3", {}),
    wrong_shape: ("failed", "has shape", {}),
    exiting: ("failed", "SystemExit: 3", {}),
    sleeping: ("timed out", "longer than timeout=0.2 seconds", dict(timeout=0.2)),
    swallowing: ("timed out", "longer than timeout=0.2 seconds", dict(timeout=0.2)),
    dying: ("failed", "worker died", {}),
    nan: ("invalid", "", {}),
}


def run(simulator=fine, num_simulations=ROWS, **options):
    return run_((coarse, simulator), n=num_simulations, **options)


@pytest.fixture(scope="module")
def healthy():
    return run()


def assert_all_but_bad(sims, healthy):
    """All simulations of level 1 that are not bad exist, in pairs, and no bad ones."""
    pairs, good = sims[1], ~is_bad(healthy[1].theta)
    assert 0 < (~good).sum() < 5
    for name in ("theta", "x", "x_coarse"):
        assert torch.equal(getattr(pairs, name), getattr(healthy[1], name)[good])
    assert torch.equal(sims[0].x, healthy[0].x)


def _cases():
    """Every fault with 1 and 2 workers, alone and in batches, if it is detectable."""
    for simulator in FAULTS:
        for workers, batch_size in ((1, 1), (1, 1_000), (2, 1), (2, 7)):
            # without workers, a simulator that kills its process ends the test; and
            # which of several simulations has a wrong shape depends on the batch
            if (simulator is dying and workers == 1) or (
                simulator is wrong_shape and batch_size > 1
            ):
                continue
            takes_long = simulator is dying  # workers take seconds to restart
            yield pytest.param(
                simulator,
                workers,
                batch_size,
                marks=pytest.mark.slow if takes_long else (),
                id=f"{simulator.__name__}-{workers}-{batch_size}",
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("simulator, workers, batch_size", _cases())
def test_a_failed_simulation_is_recorded_and_does_not_stop_the_run(
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
    # a fixed simulator runs them with the same theta and noise
    simulator.__qualname__, name = "fixed", simulator.__qualname__
    try:
        fixed = lambda theta, noise: fine(theta, noise)  # noqa: E731
        fixed.__qualname__ = name
        store.run([coarse, fixed], retry=(status,), show_progress_bars=False)
    finally:
        simulator.__qualname__ = name
    assert torch.equal(store.to_simulations()[1].x, healthy[1].x)


def test_a_simulation_that_kills_its_worker_is_found(healthy):
    deadly = float(healthy[1].theta[2, 0])

    def deadly_for_one(theta, noise):
        if (theta[:, 0] == deadly).any():
            os._exit(1)
        return fine(theta, noise)

    options = dict(num_workers=2, simulation_batch_size=2, max_failure_share=1.0)
    with pytest.warns(UserWarning, match="1 of 4 simulations of .*worker died"):
        sims = run(deadly_for_one, num_simulations=(2, 4), **options)
    assert torch.equal(sims[1].x, healthy[1].x[[0, 1, 3]])


@pytest.mark.parametrize("simulator", (raising, sleeping), ids=lambda s: s.__name__)
def test_in_memory_failures_are_left_out_with_a_warning(simulator, healthy):
    _, text, options = FAULTS[simulator]
    with pytest.warns(UserWarning, match=f"of level 1 failed .*{text}"):
        sims = run(simulator, max_failure_share=1.0, **options)
    assert_all_but_bad(sims, healthy)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("simulator", (raising, sleeping), ids=lambda s: s.__name__)
def test_threads_continue_after_failures(simulator, healthy):
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


def test_a_simulator_that_cannot_be_pickled_raises():
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
def test_bad_options_raise_with_their_name(options, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        run(store=tmp_path / "run.zarr", **options)


def test_retry_needs_a_store():
    with pytest.raises(ValueError, match="retry"):
        run(retry=("failed",))


def test_statuses_have_the_documented_names():
    names = ["pending", "ok", "failed", "timed out", "invalid"]
    assert [status.label for status in Status] == names
    assert Status.all_named(names) == list(Status)
    assert np.uint8(Status.OK) == 1


# ------------------------------------------------------------- unusual simulators


@pytest.mark.slow
def test_a_worker_that_blocks_signals_is_killed(healthy, monkeypatch):
    hanging = float(healthy[1].theta[1, 0])

    def deaf(theta, noise):
        """Hangs like code in C that no signal interrupts."""
        if (theta[:, 0] == hanging).any():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(1_000)
        return fine(theta, noise)

    # time for the start of workers; 300 seconds by default
    monkeypatch.setattr("sbi_multilevel.simulation.workers._GRACE_SECONDS", 30.0)
    options = dict(num_workers=2, timeout=0.5, max_failure_share=1.0)
    with pytest.warns(UserWarning, match="1 of 3 simulations of .*did not answer"):
        sims = run(deaf, num_simulations=(2, 3), simulation_batch_size=1, **options)
    assert torch.equal(sims[1].x, healthy[1].x[[0, 2]])


def test_a_base_exception_is_a_failure(healthy):
    class Panic(BaseException):
        """Raised e.g. by simulators in Rust."""

    def panicking(theta, noise):
        if is_bad(theta).any():
            raise Panic("index out of bounds")
        return fine(theta, noise)

    with pytest.warns(UserWarning, match="Panic: index out of bounds"):
        assert_all_but_bad(run(panicking, max_failure_share=1.0), healthy)


def test_a_simulator_may_reuse_its_output(healthy):
    buffer = torch.zeros(1_000, 2)

    def reusing(simulator):
        def simulate(theta, noise):
            buffer[: len(theta)] = simulator(theta, noise)
            return buffer[: len(theta)]

        return simulate

    assert_same(run_((reusing(coarse), reusing(fine)), n=ROWS), healthy)


def test_a_first_simulation_of_a_wrong_shape_can_be_retried(healthy, tmp_path):
    path = tmp_path / "run.zarr"

    def wrong_at_first(theta, noise):
        x = fine(theta, noise)
        return x[:, :1] if (theta[:, 0] == first).any() else x

    def coarse_too(theta, noise):
        x = coarse(theta, noise)
        return x[:, :1] if (theta[:, 0] == first).any() else x

    first = float(healthy[1].theta[0, 0])
    store = SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise)
    with pytest.raises(TooManyFailures, match="of earlier simulations .*'ok' or 'inv"):
        store.run(
            [coarse_too, wrong_at_first],
            simulation_batch_size=1,
            show_progress_bars=False,
        )
    store.rename_simulators([coarse, fine])
    store.retry("ok", "failed")
    sims = run(store=path)
    assert_same(sims, healthy)
