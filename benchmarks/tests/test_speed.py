"""The command `speed`: rows, ratios and file."""

import json

import pytest
import torch

from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks.cost import interleaved
from sbi_multilevel_benchmarks.scale import simulations
from sbi_multilevel_benchmarks.speed import Comparison, Speed

ROWS = ("log-prob", "step-maf-200", "ensemble")
SCALED = ("npe", "mfnpe", "mlnpe", "hybridnpe")


def test_medians_are_of_alternating_runs():
    calls = []

    def run(name, seconds):
        calls.append(name)
        return seconds.pop(0)

    a, b = [1.0, 9.0, 2.0], [4.0, 3.0, 5.0]
    runs = [lambda: run("a", a), lambda: run("b", b)]
    assert interleaved(runs, 3) == [2.0, 4.0]
    assert calls == ["a", "b"] * 3


def test_cells_of_a_row():
    assert Comparison("work", 2.0, 3.0, 1.2).cells == ("work", "2", "3", "1.50", "1.2")
    assert Comparison("work", None, 3.0, "ends").cells[1:] == ("-", "3", "-", "ends")


def test_levels_share_noise():
    high = simulations(20, 10)[1]
    assert torch.allclose(high.x_coarse, 0.9 * high.x + 0.2)
    assert high.x.shape == (10, 10)


def test_rows_with_many_simulations_are_asked_for():
    speed = Speed(quick=True)
    added = {*speed.works(scale=True)} - {*speed.works()}
    assert added == {f"scale-{name}-500" for name in SCALED}


def test_the_command_prints_the_rows_and_writes_them(capsys, tmp_path):
    file = tmp_path / "speed.jsonl"
    threads = torch.get_num_threads()
    try:
        command_line.main(["speed", "--quick", "--out", str(file), "--only", *ROWS])
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| work | plain sbi (seconds) | this package (seconds)")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["aim"] for row in rows] == [1.2, 1.15, 1.5]
    assert len(lines) == 2 + len(ROWS)
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in rows)


def test_an_unknown_row_is_named():
    with pytest.raises(ValueError, match="no such works.*'lunch'.*train-npe-maf"):
        command_line.main(["speed", "--quick", "--only", "lunch"])
