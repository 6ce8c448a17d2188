"""Rows by a pilot against rules of thumb: equal budgets, and the command line."""

import json
import warnings

import numpy as np
import pytest

from sbi_multilevel.benchmark import __main__ as command_line
from sbi_multilevel.benchmark import allocation
from sbi_multilevel.benchmark.allocation import (
    RULES,
    SETTINGS,
    Setting,
    allocation_table,
    by_pilot,
)
from sbi_multilevel.benchmark.tasks import get_task
from sbi_multilevel.budget.allocation import row_costs


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_rules_spend_the_budget_and_no_more(name):
    task, budget = get_task(name), SETTINGS[name].budget
    unit = np.array(row_costs(task.costs))
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
    out = tmp_path / "allocation.json"
    command_line.main(["allocation", "--seeds", "1", "--out", str(out)])
    content = json.loads(out.read_text())
    records = content["records"]
    assert [r["scheme"] for r in records] == list(allocation.SCHEMES)
    assert all(np.isfinite(record["kl"]["mean"]) for record in records)
    assert "--out FILE" in content["command"]
    table = allocation_table(records)
    assert table.count("\n") == 5 and table in capsys.readouterr().out
