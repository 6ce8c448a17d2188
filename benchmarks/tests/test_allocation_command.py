"""Rows by a pilot against rules of thumb: equal budgets, and the command line."""

import warnings

import numpy as np
import pytest

from sbi_multilevel.allocation.optimal import simulation_costs
from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import allocation
from sbi_multilevel_benchmarks.allocation import (
    RULES,
    SETTINGS,
    Setting,
    allocation_table,
    by_pilot,
)
from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.tasks import get_task


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_rules_spend_the_budget_and_no_more(name):
    task, budget = get_task(name), SETTINGS[name].budget
    unit = np.array(simulation_costs(task.costs))
    rows = {rule: np.array(RULES[rule](task, budget)) for rule in RULES}
    for counts in rows.values():
        assert budget - unit.sum() < unit @ counts <= budget
    assert len(set(rows["equal rows"])) == 1
    assert np.ptp(unit * rows["equal spending"]) < unit.max()


@pytest.mark.slow
def test_the_pilot_counts():
    task, setting = get_task("g-and-k"), Setting(600.0, (60, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = by_pilot(task, setting, seed=0)
    assert 580 < done.spent <= 600
    assert done.spent == done.simulations.total_cost


@pytest.mark.slow
def test_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(allocation, "SETTINGS", {"g-and-k": Setting(600.0, (60, 20))})
    out = tmp_path / "allocation.jsonl"
    command_line.main(["allocation", "--seeds", "1", "--out", str(out)])
    records = read_records(out)
    assert [r["scheme"] for r in records] == list(allocation.SCHEMES)
    assert all(np.isfinite(record["metrics"]["kl"]["mean"]) for record in records)
    assert "--out FILE" in records[0]["command"]
    given = allocation_table(records)
    assert len(given.rows) == 4 and str(given) in capsys.readouterr().out


def test_what_the_file_has_is_not_run_again(monkeypatch, tmp_path):
    monkeypatch.setattr(allocation, "SETTINGS", {"g-and-k": Setting(600.0, (60, 20))})
    seen = []

    def stub(run):
        seen.append((run.scheme, run.seed))
        if run.scheme == "pilot" and len(seen) < 6:
            raise RuntimeError("no luck")
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
