"""Every simulation ends with one outcome, even if some raise, hang or die."""

import multiprocessing
import random
import warnings
from dataclasses import dataclass
from itertools import islice

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_multilevel import SimulationStore
from sbi_multilevel.simulation.engine import LostSimulations, run_tasks
from sbi_multilevel.simulation.filling import RunOptions, fill
from sbi_multilevel.simulation.table import memory_table
from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work
from sbi_multilevel.simulation.time_limit import TimeIsUp
from sbi_multilevel.simulation.workers import WorkerDied, in_workers
from tests.two_levels import PRIOR, assert_same, coarse, fine, normal_noise, simulate

STATUS = {
    "raises": Status.FAILED,
    "returns too few outputs": Status.FAILED,
    "hangs": Status.TIMED_OUT,
    "returns NaN": Status.INVALID,
    "kills its worker": Status.FAILED,
    "ignores its alarm": Status.TIMED_OUT,
}


def table_of(num_rows):
    """A table whose seeds are the numbers of the simulations."""
    return memory_table(0, torch.zeros(num_rows, 3), torch.arange(num_rows))


def sound(theta, seeds):
    return theta + seeds[:, None].sin()


@dataclass(frozen=True)
class Faulty:
    """A simulator with a fault in some simulations."""

    faults: dict[int, str]

    def __call__(self, theta, seeds):
        rows, x = seeds.tolist(), sound(theta, seeds)
        found = self.of(rows)
        if "raises" in found:
            raise ArithmeticError("no convergence")
        if "hangs" in found:
            raise TimeIsUp("as the alarm of a time limit does")
        is_nan = [self.faults.get(row) == "returns NaN" for row in rows]
        x[torch.tensor(is_nan)] = torch.nan
        return x[1:] if "returns too few outputs" in found else x

    def of(self, rows):
        """Faults of some simulations."""
        return {self.faults[row] for row in rows if row in self.faults}


@dataclass
class Pool:
    """An executor with workers that die.

    It takes tasks in advance and finishes them in any order; outcomes that were not yet
    returned are lost when a worker dies. Tasks that run alone are not killed from
    outside, as this cannot be distinguished from tasks that kill their worker.
    """

    simulator: Faulty
    seed: int
    num_kills: int
    names_killers: bool  # as Dask does; at the end
    is_closed: bool = False

    def __post_init__(self):
        self._random = random.Random(self.seed)

    def __call__(self, tasks, work, num_workers):
        ahead = self._random.randint(1, 6)
        under_way, ended, killers = list(islice(tasks, ahead)), [], set()
        is_alone = len(under_way) == 1
        try:
            while under_way:
                where = self._random.randrange(len(under_way))
                number, task = under_way.pop(where)
                if self._dies_of(task):
                    killers.add(number)
                else:
                    if self.num_kills and not is_alone and self._random.random() < 0.1:
                        self.num_kills -= 1
                        raise WorkerDied(RuntimeError("killed from outside"))
                    ended.append((number, work(task)))
                taken = list(islice(tasks, 1))
                under_way += taken
                is_alone = is_alone and not taken
                while ended and self._random.random() < 0.6:
                    yield ended.pop(0)
            yield from ended
        finally:
            self.is_closed = True
        if killers:
            raise WorkerDied(RuntimeError("gave up"), suspects=killers)

    def _dies_of(self, task):
        found = self.simulator.of(task.rows.tolist())
        if "kills its worker" in found and not self.names_killers:
            raise WorkerDied(RuntimeError("died"))
        if "ignores its alarm" in found:
            raise WorkerDied(TimeoutError("no answer"), Status.TIMED_OUT)
        return "kills its worker" in found


@st.composite
def cases(draw):
    """Number of simulations, batch size and faults; a wave has 64 batches."""
    num_rows, batch_size = draw(st.integers(1, 200)), draw(st.integers(1, 9))
    rows, kinds = st.integers(0, num_rows - 1), st.sampled_from(sorted(STATUS))
    faults = draw(st.dictionaries(rows, kinds, max_size=20))
    return num_rows, batch_size, faults


def run(table, batch_size, work, executor, num_workers=None):
    """Fill a table; returns the numbers of the finished simulations."""
    came = []
    tasks = table.tasks(len(table), batch_size)
    for task, outcome in run_tasks(tasks, work, num_workers, executor):
        came += task.rows.tolist()
        table.write(task.rows, outcome)
    return came


def assert_right(table, faults, came):
    """Each simulation finished once, with its status, and x of a serial run."""
    assert sorted(came) == list(range(len(table)))
    wanted = [
        STATUS[faults[i]] if i in faults else Status.OK for i in range(len(table))
    ]
    assert table.columns["status"].tolist() == wanted
    serial = table_of(len(table))
    options = RunOptions((7,), 1, 1.0, show_progress_bars=False)
    fill((serial,), (len(serial),), Work((sound,)), options)
    ok = table.rows_with(Status.OK)
    if len(ok):
        assert torch.equal(table.tensor("x", ok), serial.tensor("x", ok))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_every_simulation_returns_once_with_its_status(
    case, seed, num_kills, names_killers
):
    num_rows, batch_size, faults = case
    table, simulator = table_of(num_rows), Faulty(faults)
    pool = Pool(simulator, seed, num_kills, names_killers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # e.g. about a batch that failed without reason
        came = run(table, batch_size, Work((simulator,)), pool)
    assert_right(table, faults, came)


class TerminatedWorkerError(Exception):
    """Raised by joblib if a process has died."""


class Deadly(Work):
    """Work that raises the errors of joblib for processes that died or hang."""

    def __call__(self, task):
        (simulator,) = self.simulators
        found = simulator.of(task.rows.tolist())
        if "kills its worker" in found:
            raise TerminatedWorkerError
        if "ignores its alarm" in found:
            raise multiprocessing.TimeoutError
        return super().__call__(task)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_workers", (1, 3))
def test_worker_deaths_reported_by_joblib_lose_no_simulation(seed, num_workers):
    """Threads of joblib, with concurrent tasks."""
    rng = np.random.default_rng(seed)
    kinds = sorted(STATUS)
    faults = {int(row): str(rng.choice(kinds)) for row in rng.integers(0, 90, 15)}
    table, work = table_of(90), Deadly((Faulty(faults),))
    with joblib.parallel_config(backend="threading"):
        came = run(table, int(rng.integers(1, 5)), work, in_workers, num_workers)
    assert_right(table, faults, came)


# ------------------------------------------------------- errors of the executor


def forgetting(tasks, work, num_workers):
    """Loses the outcome of one task."""
    for number, task in tasks:
        if 5 not in task.rows:
            yield number, work(task)


def repeating(tasks, work, num_workers):
    for number, task in tasks:
        outcome = work(task)
        yield number, outcome
        yield number, outcome


def dying_idle(tasks, work, num_workers):
    """Dies before it takes a task."""
    raise WorkerDied(RuntimeError("idle"))
    yield


@pytest.mark.parametrize(
    "executor, named",
    [
        (forgetting, "1 tasks of 2 simulations were submitted .* and none returned"),
        (dying_idle, "5 tasks of 10 simulations were submitted .* none returned"),
        (repeating, "its simulations would be counted twice"),
    ],
)
def test_an_executor_that_loses_simulations_raises(executor, named):
    with pytest.raises(LostSimulations, match=named):
        run(table_of(10), 2, Work((sound,)), executor)


def test_missing_outcomes_are_requested_again():
    def first_only(tasks, work, num_workers):
        for number, task in islice(list(tasks), 1):
            yield number, work(task)

    table = table_of(10)
    assert_right(table, {}, run(table, 2, Work((sound,)), first_only))


@pytest.mark.parametrize("is_short", (True, False))
def test_an_outcome_needs_a_status_for_each_simulation(is_short):
    class Half(Work):
        def __call__(self, task):
            status = np.array([Status.OK, Status.PENDING], np.uint8)
            return Outcome(status[:1] if is_short else status, np.zeros((2, 2)))

    match = "2 simulations of level 0 .* 1 of them with a status"
    with pytest.raises(LostSimulations, match=match):
        run(table_of(10), 2, Half((sound,)), in_workers)


def test_missing_simulations_are_counted():
    class Careless(Task):
        def halves(self):
            return super().halves()[:1]

    def failing(theta, seeds):
        raise ArithmeticError("no convergence")

    whole = table_of(10).task(np.arange(10))
    tasks = [Careless(0, whole.rows, whole.theta, whole.seeds)]
    match = "10 simulations were submitted, and 9 did not return.*1 "
    with pytest.raises(LostSimulations, match=match):
        list(run_tasks(tasks, Work((failing,)), None))


def test_a_run_that_leaves_simulations_pending_raises():
    class Leaky(np.ndarray):
        """Forgets values written to the last entry."""

        def __setitem__(self, index, value):
            super().__setitem__(index, value)
            super().__setitem__(-1, Status.PENDING)

    table = table_of(10)
    table.columns["status"] = table.columns["status"].view(Leaky)
    options = RunOptions((3,), show_progress_bars=False)
    fill((table,), (9,), Work((sound,)), options)  # the last one is not requested
    match = "1 of 10 simulations of level 0 are pending .* number 9"
    with pytest.raises(LostSimulations, match=match):
        fill((table,), (10,), Work((sound,)), options)


def test_a_closed_run_stops_its_workers():
    table, simulator = table_of(50), Faulty({})
    pool = Pool(simulator, seed=0, num_kills=0, names_killers=False)
    results = run_tasks(table.tasks(50, 1), Work((simulator,)), None, pool)
    next(results)
    results.close()
    assert pool.is_closed


def test_retry_keeps_the_status_of_simulations_that_are_not_run(tmp_path):
    pytest.importorskip("zarr")

    def failing(theta, noise):
        raise ArithmeticError("no convergence")

    failing.__qualname__ = "fine"
    path, options = tmp_path / "run.zarr", dict(show_progress_bars=False)
    store = SimulationStore.create(path, PRIOR, (8, 6), noise=normal_noise)
    store.run([coarse, failing], max_failure_share=1.0, **options)
    with pytest.raises(ValueError, match="num_simulations"):
        store.run([coarse, fine], num_simulations=(8, 9), retry="failed", **options)
    assert len(store.failures()) == 6
    store.run([coarse, fine], num_simulations=(8, 4), retry="failed", **options)
    assert [failure.index for failure in store.failures()] == [4, 5]
    store.run([coarse, fine], retry="failed", **options)
    assert_same(store.to_simulations(), simulate(n=(8, 6)))
