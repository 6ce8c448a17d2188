"""The command `allocation`: budgets, records and table."""

import warnings

import numpy as np
import pytest

from sbi_multilevel.allocation.optimal import simulation_costs
from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import allocation, get_task
from sbi_multilevel_benchmarks.allocation import (
    RULES,
    SETTINGS,
    Setting,
    allocation_table,
    by_pilot,
)
from sbi_multilevel_benchmarks.journal import read_records


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_rules_spend_the_budget(name):
    task, budget = get_task(name), SETTINGS[name].budget
    unit = np.array(simulation_costs(task.costs))
    numbers = {rule: np.array(RULES[rule](task, budget)) for rule in RULES}
    for counts in numbers.values():
        assert budget - unit.sum() < unit @ counts <= budget
    assert len(set(numbers["equal rows"])) == 1
    assert np.ptp(unit * numbers["equal spending"]) < unit.max()


@pytest.mark.slow
def test_the_cost_of_the_pilot_is_part_of_the_budget():
    task, setting = get_task("g-and-k"), Setting(600.0, (60, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = by_pilot(task, setting, seed=0)
    assert 580 < done.spent <= 600
    assert done.spent == done.simulations.total_cost


@pytest.mark.slow
def test_the_command_writes_records_and_prints_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(allocation, "SETTINGS", {"g-and-k": Setting(600.0, (60, 20))})
    out = tmp_path / "allocation.jsonl"
    command_line.main(["allocation", "--seeds", "1", "--out", str(out)])
    records = read_records(out)
    assert [r["scheme"] for r in records] == list(allocation.SCHEMES)
    assert all(np.isfinite(record["metrics"]["kl"]["mean"]) for record in records)
    assert "--out FILE" in records[0]["command"]
    given = allocation_table(records)
    assert len(given.rows) == 4 and str(given) in capsys.readouterr().out


def test_runs_of_the_file_are_not_repeated_but_failed_ones_are(monkeypatch, tmp_path):
    monkeypatch.setattr(allocation, "SETTINGS", {"g-and-k": Setting(600.0, (60, 20))})
    seen = []

    def stub(run):
        seen.append((run.scheme, run.seed))
        if run.scheme == "pilot" and len(seen) < 6:
            raise RuntimeError("a failure")
        result = {"kl": {"mean": 2.0 + run.seed, "median": 1.0}}
        return {
            **dict(task=run.task, scheme=run.scheme, seed=run.seed, budget=600.0),
            **dict(num_simulations=[60 + run.seed, 20], metric="kl", metrics=result),
            "seconds": 1.0,
        }

    monkeypatch.setattr(allocation, "run_allocation", stub)
    given = ["allocation", "--out", str(tmp_path / "a.jsonl"), "--seeds"]
    with pytest.raises(SystemExit):
        command_line.main([*given, "1"])
    assert seen == [(scheme, 0) for scheme in allocation.SCHEMES]
    with pytest.raises(SystemExit):
        command_line.main([*given, "1"])
    assert seen[4:] == [("pilot", 0)]
    command_line.main([*given, "2"])
    assert seen[5:] == [("pilot", 0), *((scheme, 1) for scheme in allocation.SCHEMES)]
    rows = allocation_table(read_records(tmp_path / "a.jsonl")).rows
    cells = ("g-and-k, kl", "600", "pilot", "60 + 20", "2", "2.500 ± 0.500", "1")
    assert cells in rows and len(rows) == 4
