"""Every row ends with one outcome, whatever raises, hangs or dies on the way."""

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
from sbi_multilevel.simulation.accounting import LostRows
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.filling import Effort, fill
from sbi_multilevel.simulation.table import memory_table
from sbi_multilevel.simulation.tasks import Outcome, Status, Task, Work
from sbi_multilevel.simulation.time_limit import TimeIsUp
from sbi_multilevel.simulation.workers import WorkerDied, in_workers
from tests.two_levels import PRIOR, assert_same, coarse, fine, normal_noise, simulate

STATUS = {
    "raises": Status.FAILED,
    "returns too few rows": Status.FAILED,
    "hangs": Status.TIMED_OUT,
    "returns NaN": Status.INVALID,
    "kills its worker": Status.FAILED,
    "ignores its alarm": Status.TIMED_OUT,
}


def table_of(num_rows):
    """Rows whose seeds are their numbers."""
    return memory_table(0, torch.zeros(num_rows, 3), torch.arange(num_rows))


def sound(theta, seeds):
    return theta + seeds[:, None].sin()


@dataclass(frozen=True)
class Faulty:
    """A simulator with a fault in some rows."""

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
        return x[1:] if "returns too few rows" in found else x

    def of(self, rows):
        """Faults of some rows."""
        return {self.faults[row] for row in rows if row in self.faults}


@dataclass
class Pool:
    """An executor with workers that die.

    It takes tasks ahead and ends them in any order, and a death takes along the
    outcomes that were not handed over yet. Kills from outside spare tasks that are
    alone: these cannot be told from tasks that kill.
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
    """Rows, their faults, and the size of a batch; 64 batches are a wave."""
    num_rows, batch_size = draw(st.integers(1, 200)), draw(st.integers(1, 9))
    rows, kinds = st.integers(0, num_rows - 1), st.sampled_from(sorted(STATUS))
    faults = draw(st.dictionaries(rows, kinds, max_size=20))
    return num_rows, batch_size, faults


def run(table, batch_size, work, executor, num_workers=None):
    """Fill a table; returns the rows that came."""
    came = []
    tasks = table.tasks(len(table), batch_size)
    for task, outcome in run_tasks(tasks, work, num_workers, executor):
        came += task.rows.tolist()
        table.write(task.rows, outcome)
    return came


def assert_right(table, faults, came):
    """Each row came once, with its status, and x as of a serial run."""
    assert sorted(came) == list(range(len(table)))
    wanted = [
        STATUS[faults[i]] if i in faults else Status.OK for i in range(len(table))
    ]
    assert table.columns["status"].tolist() == wanted
    serial = table_of(len(table))
    fill((serial,), (len(serial),), Work((sound,)), Effort((7,), 1, 1.0, False))
    ok = table.rows_with(Status.OK)
    if len(ok):
        assert torch.equal(table.tensor("x", ok), serial.tensor("x", ok))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_every_row_comes_once_with_its_status(case, seed, num_kills, names_killers):
    num_rows, batch_size, faults = case
    table, simulator = table_of(num_rows), Faulty(faults)
    pool = Pool(simulator, seed, num_kills, names_killers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # e.g. of a batch that failed without a reason
        came = run(table, batch_size, Work((simulator,)), pool)
    assert_right(table, faults, came)


class TerminatedWorkerError(Exception):
    """As joblib raises it where a process has died."""


class Deadly(Work):
    """Work in which some rows end as joblib reports processes that died or hang."""

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
def test_deaths_that_joblib_reports_lose_nothing(seed, num_workers):
    """Threads of joblib, with all that goes on at the same time."""
    rng = np.random.default_rng(seed)
    kinds = sorted(STATUS)
    faults = {int(row): str(rng.choice(kinds)) for row in rng.integers(0, 90, 15)}
    table, work = table_of(90), Deadly((Faulty(faults),))
    with joblib.parallel_config(backend="threading"):
        came = run(table, int(rng.integers(1, 5)), work, in_workers, num_workers)
    assert_right(table, faults, came)


# ------------------------------------------------------- what must not be silent


def forgetting(tasks, work, num_workers):
    """Loses the outcome of one task, each time."""
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
        (forgetting, "1 tasks of 2 rows were given to workers, and none came back"),
        (dying_idle, "5 tasks of 10 rows were given to workers, and none came back"),
        (repeating, "its rows would come twice"),
    ],
)
def test_an_executor_that_loses_rows_is_named(executor, named):
    with pytest.raises(LostRows, match=named):
        run(table_of(10), 2, Work((sound,)), executor)


def test_outcomes_that_are_late_are_asked_for_again():
    def first_only(tasks, work, num_workers):
        for number, task in islice(list(tasks), 1):
            yield number, work(task)

    table = table_of(10)
    assert_right(table, {}, run(table, 2, Work((sound,)), first_only))


@pytest.mark.parametrize("is_short", (True, False))
def test_an_outcome_without_a_status_for_each_row_is_refused(is_short):
    class Half(Work):
        def __call__(self, task):
            status = np.array([Status.OK, Status.PENDING], np.uint8)
            return Outcome(status[:1] if is_short else status, np.zeros((2, 2)))

    with pytest.raises(LostRows, match="2 rows of level 0 .* 1 of them with a status"):
        run(table_of(10), 2, Half((sound,)), in_workers)


def test_rows_that_vanish_are_counted():
    class Careless(Task):
        def halves(self):
            return super().halves()[:1]

    def failing(theta, seeds):
        raise ArithmeticError("no convergence")

    whole = table_of(10).task(np.arange(10))
    tasks = [Careless(0, whole.rows, whole.theta, whole.seeds)]
    with pytest.raises(
        LostRows, match="10 rows were sent out, and 9 did not come .*1 "
    ):
        list(run_tasks(tasks, Work((failing,)), None))


def test_a_run_that_leaves_rows_pending_says_so():
    class Leaky(np.ndarray):
        """Forgets what is written to the last row."""

        def __setitem__(self, index, value):
            super().__setitem__(index, value)
            super().__setitem__(-1, Status.PENDING)

    table = table_of(10)
    table.columns["status"] = table.columns["status"].view(Leaky)
    effort = Effort((3,), show_progress_bars=False)
    fill((table,), (9,), Work((sound,)), effort)  # the last row is not asked for
    with pytest.raises(LostRows, match="1 of 10 rows of level 0 are pending .* row 9"):
        fill((table,), (10,), Work((sound,)), effort)


def test_a_run_that_is_left_early_stops_its_workers():
    table, simulator = table_of(50), Faulty({})
    pool = Pool(simulator, seed=0, num_kills=0, names_killers=False)
    results = run_tasks(table.tasks(50, 1), Work((simulator,)), None, pool)
    next(results)
    results.close()
    assert pool.is_closed


def test_retry_keeps_the_status_of_rows_that_are_not_run(tmp_path):
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
    assert [failure.row for failure in store.failures()] == [4, 5]
    store.run([coarse, fine], retry="failed", **options)
    assert_same(store.to_simulations(), simulate(n=(8, 6)))
