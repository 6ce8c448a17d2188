"""Tables of tasks by methods, with stars computed by hand."""

import math

import pytest

from sbi_multilevel_benchmarks.leaderboard import BEST, EQUAL, boards
from sbi_multilevel_benchmarks.records import Cell, Summary

ERROR, WINS, CALIBRATION, SECONDS = (
    "Error, main metric of each task",
    "Rows in which a method is best, or equal",
    "Calibration, SBC",
    "Seconds of training",
)


def cell(task, method, mean, error=0.1, **metrics):
    values = {"kl": Summary(mean, error, 5), **metrics}
    return Cell(
        task,
        None,
        method,
        (100, 10),
        "kl",
        None,
        None,
        12.4,
        5,
        {name: {"mean": each, "median": each} for name, each in values.items()},
    )


def three_tasks(method, *means, **options):
    return [cell(f"task {i}", method, mean, **options) for i, mean in enumerate(means)]


def columns(table):
    return {name: [row[i] for row in table.rows] for i, name in enumerate(table.header)}


@pytest.fixture
def given():
    return [
        *three_tasks("hybrid", 1.0, 2.0, 3.0),
        # within sqrt(0.1^2 + 0.1^2) = 0.141, beyond it, and better
        *three_tasks("mf", 1.14, 2.15, 2.0),
        *three_tasks("oracle", 0.1, 0.1, 0.1),
        cell("task 0", "rare", 0.0),
    ]


def test_stars_are_by_the_standard_error_of_the_difference(given):
    table = columns(boards(given)[ERROR])
    assert table["task"] == ["task 0", "task 1", "task 2"]
    assert table["simulations"] == ["100 + 10"] * 3
    hybrid, mf = table["hybrid"], table["mf"]
    assert hybrid == [f"1.000 ± 0.100 {BEST}", f"2.000 ± 0.100 {BEST}", "3.000 ± 0.100"]
    assert mf == [f"1.140 ± 0.100 {EQUAL}", "2.150 ± 0.100", f"2.000 ± 0.100 {BEST}"]


def test_oracles_take_no_part_and_are_last(given):
    table = boards(given)[ERROR]
    assert table.header == ("task", "simulations", "hybrid", "mf", "oracle")
    assert columns(table)["oracle"] == ["0.100 ± 0.100"] * 3


def test_methods_with_few_tasks_are_left_out(given):
    assert "rare" not in boards(given)[ERROR].header
    assert not boards([cell("task", "rare", 1.0), cell("task", "other", 1.0)])


def test_wins_are_counted_by_method(given):
    assert boards(given)[WINS].rows == (("hybrid", "2", "3"), ("mf", "2", "3"))


def test_calibration_and_seconds(given):
    assert CALIBRATION not in boards(given)
    sbc = [
        *three_tasks("hybrid", 1.0, 1.0, 1.0, sbc=Summary(0.05, 0.01, 5)),
        *three_tasks("mf", 1.0, 1.0, 1.0, sbc=Summary(0.08, 0.01, 5)),
    ]
    table = columns(boards(sbc)[CALIBRATION])
    assert table["hybrid"] == [f"0.050 ± 0.010 {BEST}"] * 3
    assert table["mf"] == ["0.080 ± 0.010"] * 3
    assert columns(boards(sbc)[SECONDS])["mf"] == ["12.400"] * 3


def test_a_method_that_failed_or_has_one_seed_can_only_be_best():
    given = [
        *three_tasks("hybrid", 1.0, math.inf, math.nan),
        *three_tasks("mf", 1.0001, 5.0, 5.0, error=math.nan),
    ]
    table = columns(boards(given)[ERROR])
    assert [text[-1] == BEST for text in table["hybrid"]] == [True, False, False]
    assert [text[-1] == BEST for text in table["mf"]] == [False, True, True]
    assert not any(EQUAL in text for text in [*table["hybrid"], *table["mf"]])
