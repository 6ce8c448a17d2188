"""Runs of the benchmark: plugins, resuming, failures, processes."""

import json
import os
import textwrap
import time
from pathlib import Path

import pytest
import torch

import sbi_multilevel_benchmarks
from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import registry, run
from sbi_multilevel_benchmarks.fit import Fit, runs_of
from sbi_multilevel_benchmarks.journal import Journal, read_records
from sbi_multilevel_benchmarks.pool import FailedRun, run_groups
from sbi_multilevel_benchmarks.records import finished, key
from sbi_multilevel_benchmarks.registry import get_task

PLUGIN = Path(__file__).parent / "plugin.py"
TINY = ["middle", "--methods", "average", "of-all", "--seeds", "2"]


@pytest.fixture(autouse=True)
def registries():
    """Tasks and methods registered by a test are removed after it."""
    kept = [(known, known.copy()) for known in (registry.TASKS, registry.METHODS)]
    yield
    for known, before in kept:
        known.clear()
        known.update(before)
    registry._plugins.clear()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out.jsonl"


@pytest.fixture
def counted(monkeypatch):
    """Keys of the runs that are run."""
    seen, run_one = [], run.run_one

    def count(given):
        seen.append(key(given.identity))
        return run_one(given)

    monkeypatch.setattr(run, "run_one", count)
    return seen


def _command(*words, out):
    command_line.main([*words, "--plugin", str(PLUGIN), "--out", str(out)])


def _timeless(records):
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "date")}
        for record in records
    ]


# ------------------------------------------------------------- plugins


def test_a_plugin_adds_tasks_and_methods(out, capsys):
    _command("middle", "middle-again", *TINY[1:], out=out)
    records = read_records(out)
    named = {(r["task"], r["method"], r["seed"]) for r in records}
    tasks, methods = ("middle", "middle-again"), ("average", "of-all")
    assert named == {(t, m, s) for t in tasks for m in methods for s in (0, 1)}
    assert len(records) == 8
    assert all(r["num_simulations"] == [6, 3] for r in records)
    assert records[0]["metric"] == "gap" and list(records[0]["metrics"]) == [
        "gap",
        "other",
    ]
    runs = {r["method"]: (r["runs"], r["cost"]) for r in records}
    # a pair of level 1 is a run of level 0, too
    assert runs == {"average": ([0, 3], 30.0), "of-all": ([9, 3], 39.0)}
    assert "| middle-again | 6 + 3 | of-all | 2 |" in capsys.readouterr().out
    assert get_task("middle-again").name == "middle-again"


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.slow
def test_the_example_of_the_documentation_runs(out, tmp_path):
    text = sbi_multilevel_benchmarks.__doc__ or ""
    _, _, example = text.partition("::\n\n")
    example, _, _ = example.partition("\nA task that")
    file = tmp_path / "my.py"
    file.write_text(textwrap.dedent(example))
    options = ["--num-simulations", "60,20", "--seeds", "1", "--out", str(out)]
    methods = ["--methods", "high", "my-method", "--plugin", str(file)]
    command_line.main(["my-task", *methods, *options])
    costs = {r["method"]: r["cost"] for r in read_records(out)}
    assert costs == {"high": 400.0, "my-method": 200.0}


def test_a_record_has_its_provenance_and_no_path(out):
    _command(*TINY, "--seeds=1", out=out)
    record = read_records(out)[0]
    assert record["versions"]["sbi"].startswith("0.27")
    assert record["python"].startswith("3.") and record["threads"] == 1
    assert record["date"].endswith("+00:00")
    assert record["command"].endswith("--seeds=1 --plugin FILE --out FILE")
    assert str(out.parent) not in out.read_text()
    assert str(PLUGIN.parent) not in out.read_text()
    assert command_line._command(["ou", "--data=/home/me"]).endswith(" ou --data=FILE")


def test_names_are_unique_and_plugins_exist(tmp_path):
    registry.load_plugin(PLUGIN)
    registry.load_plugin(PLUGIN)  # is run once
    with pytest.raises(ValueError, match="name='middle' is the name of another task"):
        registry.register_task("middle", lambda data: None)
    with pytest.raises(ValueError, match="name='ml' is the name of another method"):
        registry.register_method("ml", lambda *given: None)
    with pytest.raises(ValueError, match="is a command"):
        registry.register_task("report", lambda data: None)
    with pytest.raises(ValueError, match="is no file"):
        registry.load_plugin(tmp_path / "none.py")


def test_all_methods_have_the_same_simulations_and_test_points(out):
    registry.load_plugin(PLUGIN)
    given, evaluated = [], []

    def spy(task, simulations, seed):
        torch.rand(1 + len(given))  # methods do not share random numbers
        given.append(simulations)
        simulate = task.simulate_high

        def simulate_high(*arguments, **options):
            evaluated.append(simulate(*arguments, **options))
            return evaluated[-1]

        task.simulate_high = simulate_high
        return Fit(torch.zeros(1), simulations[-1].x, 1)

    for name in ("spy", "spy-again"):
        registry.register_method(name, spy)
    _command("middle", "--methods", "spy", "spy-again", "--seeds", "1", out=out)
    for one, other in zip(*given):
        for column in ("theta", "x", "x_coarse"):
            values = getattr(one, column), getattr(other, column)
            assert values == (None, None) or torch.equal(*values)
    assert all(torch.equal(*pair) for pair in zip(*evaluated))


@pytest.mark.parametrize("paired", [True, False])
def test_runs_make_the_cost_of_all_simulations(paired):
    theta, x = torch.rand(7, 2), torch.rand(7, 3)
    levels = [LevelSimulations(0, theta, x)]
    for level in (1, 2):
        n = 7 - 2 * level
        coarse = x[:n] + 0.01 * level if paired else None
        levels.append(LevelSimulations(level, theta[:n], x[:n], coarse))
    simulations = MultilevelSimulations(tuple(levels), (1.0, 5.0, 25.0))
    runs = runs_of(simulations)
    assert runs == ((12, 8, 3) if paired else (7, 5, 3))
    cost = sum(n * cost for n, cost in zip(runs, (1.0, 5.0, 25.0)))
    assert cost == simulations.total_cost


# ------------------------------------------------------------- resuming


def test_the_same_command_runs_the_missing_runs(out, counted):
    _command(*TINY, out=out)
    before, lines = read_records(out), out.read_bytes().splitlines(keepends=True)
    assert len(counted) == 4
    # killed while writing the third
    out.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    counted.clear()
    _command(*TINY, out=out)
    assert counted == [key(record) for record in before[2:]]
    assert out.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    assert _timeless(read_records(out)) == _timeless(before)
    counted.clear()
    _command(*TINY[:-1], "3", out=out)
    assert [seed for _, _, _, seed, _ in counted] == [2, 2]
    counted.clear()
    _command(*TINY, "--num-simulations", "6,3", "6,4", out=out)
    assert [counts for _, _, counts, _, _ in counted] == [(6, 4)] * 4


def test_each_record_is_on_disk_before_the_next_run(out, monkeypatch):
    seen, synced, run_one = [], [], run.run_one

    def observe(given):
        seen.append((len(read_records(out)), len(synced)))
        return run_one(given)

    monkeypatch.setattr(run, "run_one", observe)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    _command(*TINY, out=out)
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # complete lines
    assert synced == sorted(set(synced)) and synced[-1] == out.stat().st_size


@pytest.mark.parametrize(
    "end, kept",
    [(b'{"a": 1}\n{"b"', 1), (b'{"a": 1}\n{"b": 2}', 2), (b"", 0), (b'{"a', 0)],
)
def test_an_incomplete_last_line_is_removed(tmp_path, end, kept):
    path = tmp_path / "out.jsonl"
    path.write_bytes(end)
    assert len(read_records(path)) == kept and path.read_bytes() == end
    journal = Journal(path)
    assert len(journal.records) == kept
    journal.append({"c": "é"})
    assert len(read_records(path)) == kept + 1 and read_records(path)[-1]["c"] == "é"


def test_other_invalid_lines_raise(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"a": 1}\n[2]\n{"b": 2}\n')
    with pytest.raises(ValueError, match="Line 2 of path"):
        Journal(path)
    with pytest.raises(ValueError, match="is no file"):
        read_records(tmp_path / "none.jsonl")


# ------------------------------------------------------------- failures


def test_a_failure_is_recorded_ends_no_other_run_and_is_repeated(
    out, counted, monkeypatch, capsys
):
    command = ["middle", "--methods", "failing", "average", "--seeds", "2"]
    monkeypatch.setenv("FAILING_SEED", "0")
    with pytest.raises(SystemExit) as ended:
        _command(*command, out=out)
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "1 runs failed" in printed.out
    assert "middle failing (6, 3) seed 0: RuntimeError: a failure" in printed.out
    assert 'raise RuntimeError("a failure")' in printed.err
    records = read_records(out)
    (failure,) = [record for record in records if "error" in record]
    assert failure["error"] == "RuntimeError: a failure" and "date" in failure
    assert len(finished(records)) == 3
    counted.clear()
    monkeypatch.delenv("FAILING_SEED")
    _command(*command, out=out)
    assert counted == [("middle", "failing", (6, 3), 0, None)]
    assert len(finished(read_records(out))) == 4


def test_invalid_runs_raise_before_anything_is_run(out, counted):
    with pytest.raises(ValueError, match="has 3 numbers, but task='middle' has 2"):
        _command(*TINY, "--rows", "6,3", "6,3,2", out=out)  # the deprecated alias
    with pytest.raises(ValueError, match="infers one observation"):
        _command("middle", "--methods", "average", "mf-abc", out=out)
    assert counted == []


# ------------------------------------------------------------- processes


@pytest.mark.slow
def test_processes_give_the_same_records_and_a_crash_loses_one_run(out, tmp_path):
    alone = tmp_path / "alone.jsonl"
    _command(*TINY, out=alone)
    methods = ["--methods", "average", "crashing", "of-all", "--seeds", "2"]
    with pytest.raises(SystemExit):
        _command("middle", *methods, "--workers", "2", out=out)
    records = read_records(out)
    deaths = [record for record in records if "error" in record]
    assert [record["method"] for record in deaths] == ["crashing"] * 2
    assert all(
        "its process ended with exit code 1" in record["error"] for record in deaths
    )
    given = [
        sorted(
            (json.dumps({**r, "command": ""}, sort_keys=True) for r in _timeless(some))
        )
        for some in (finished(records), read_records(alone))
    ]
    assert given[0] == given[1]


def _call(item):
    time.sleep(60 if item == "long" else 0)
    if item == "bad":
        raise KeyError(item)
    return {"item": item, "process": os.getpid()}


def test_groups_stay_in_one_process_and_closing_ends_all():
    groups = [["a", "bad", "b", "long"], ["c", "d", "long"], ["never"]]
    results = {}
    start = time.monotonic()
    running = run_groups(_call, groups, num_workers=2)
    while len(results) < 5:
        item, result = next(running)
        results[item] = result
    running.close()
    assert time.monotonic() - start < 50
    assert set(results) == {"a", "bad", "b", "c", "d"}
    assert isinstance(results["bad"], FailedRun)
    assert results["bad"].reason == "KeyError: 'bad'"
    processes = {item: results[item]["process"] for item in "abcd"}
    assert processes["a"] == processes["b"] != processes["c"] == processes["d"]
