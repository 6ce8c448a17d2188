"""Parts of the engine: time limits, waves of tasks, the failure limit."""

import signal
import threading
import time

import numpy as np
import pytest
import torch

from sbi_multilevel import TooManyFailures
from sbi_multilevel.simulation.engine import run_tasks
from sbi_multilevel.simulation.filling import FailureLimit
from sbi_multilevel.simulation.table import memory_table
from sbi_multilevel.simulation.tasks import Outcome, Status, Work
from sbi_multilevel.simulation.time_limit import TimeIsUp, call_within


def test_a_time_limit_does_not_change_results_and_errors():
    for where in (_here, _in_thread):
        assert where(lambda: call_within(5.0, lambda a: a + 1, 2)) == 3
        with pytest.raises(ZeroDivisionError):
            where(lambda: call_within(5.0, lambda: 1 / 0))
        start = time.perf_counter()
        with pytest.raises(TimeIsUp):
            where(lambda: call_within(0.05, time.sleep, 20))
        assert time.perf_counter() - start < 10


def test_a_failure_in_a_thread_is_described_without_the_thread():
    work = Work((vars,), None, 5.0)  # a builtin, which has no frame of its own
    task = memory_table(0, torch.zeros(2, 1), torch.arange(2)).task(np.arange(2))
    descriptions = [where(lambda: work(task)).error for where in (_here, _in_thread)]
    assert descriptions[0].startswith("TypeError: vars")
    assert descriptions[1] == descriptions[0]


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


def test_other_timers_continue():
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


def test_the_signal_is_repeated_if_the_simulator_catches_everything():
    def stubborn():
        for _ in range(3):
            try:
                time.sleep(20)
            except:  # noqa: E722
                continue

    start = time.perf_counter()
    call_within(0.1, stubborn)
    assert time.perf_counter() - start < 10


def test_tasks_are_taken_as_workers_need_them():

    taken, table = (
        [],
        memory_table(
            0, torch.zeros(10_000, 2), torch.arange(10_000, dtype=torch.int64)
        ),
    )

    def recorded():
        for task in table.tasks(10_000, 1):
            taken.append(task)
            yield task

    results = run_tasks(recorded(), Work((lambda theta, seeds: theta,)), None)
    for done in range(1_000):
        next(results)
        assert len(taken) <= done + 64
    results.close()


def test_the_failure_limit_is_not_reached_by_chance():

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


def test_data_is_written_before_its_status(monkeypatch):
    table = memory_table(1, torch.zeros(4, 2), torch.arange(4, dtype=torch.int64))
    written, write = [], type(table)._write

    def recorded(self, name, rows, values):
        written.append(name)
        write(self, name, rows, values)

    monkeypatch.setattr(type(table), "_write", recorded)
    work = Work((lambda theta, seeds: theta, lambda theta, seeds: theta + 1))
    for rows in (np.arange(2), np.arange(2, 4)):
        table.write(rows, work(table.task(rows)))
    table.write(np.arange(2), Outcome.failed(2, Status.FAILED, "why"))
    parts = " ".join(written).split("status")
    assert parts.pop() == "" and len(parts) == 3  # nothing after the last status
    assert all({"x", "x_coarse"} <= set(part.split()) for part in parts[:2])
    assert "error" in parts[2]
