"""Shares of the gap to an oracle, computed by hand."""

import json
import math

import pytest

from sbi_multilevel_benchmarks.gaps import draw_gaps, gaps, main
from sbi_multilevel_benchmarks.records import Cell, Summary


def cell(task, method, mean, counts=(100, 10), error=0.1, metric="kl"):
    value = {"mean": Summary(mean, error, 5), "median": Summary(mean, error, 5)}
    return Cell(task, None, method, counts, metric, None, None, 1.0, 5, {metric: value})


def test_shares_and_their_errors():
    given = [
        cell("a", "high", 3.0, error=0.3),
        cell("a", "hybrid", 1.5, error=0.4),
        cell("a", "mf", 4.0),
        cell("a", "oracle", 1.0, counts=(0, 1_000)),
    ]
    (found,) = gaps(given)
    assert (found.title, found.num_simulations) == ("a", (100, 10))
    assert found.shares["hybrid"].mean == pytest.approx(0.75)
    # d/dm is -1/2, d/dp is (m - o) / (p - o)^2 = 1/8
    error = math.hypot(0.4 / 2, 0.3 / 8)
    assert found.shares["hybrid"].standard_error == pytest.approx(error)
    assert found.shares["mf"].mean == pytest.approx(-0.5)
    assert set(found.shares) == {"hybrid", "mf"}


def test_the_oracle_and_low_fidelity_alone_hold_for_all_numbers_above():
    given = [
        *(cell("a", "high", 3.0, counts) for counts in ((100, 10), (100, 20))),
        *(cell("a", "hybrid", 2.0, counts) for counts in ((100, 10), (100, 20))),
        cell("a", "low", 2.5),
        cell("a", "oracle", 1.0),
    ]
    found = gaps(given)
    assert [each.num_simulations for each in found] == [(100, 10), (100, 20)]
    assert all(each.shares["low"].mean == pytest.approx(0.25) for each in found)


def test_rows_are_ordered_by_the_hybrid():
    given = [cell(task, "high", 3.0) for task in "abc"]
    given += [cell(task, "oracle", 1.0) for task in "abc"]
    given += [cell("a", "hybrid", 2.9), cell("b", "hybrid", 1.0), cell("c", "mf", 2.0)]
    assert [each.title for each in gaps(given)] == ["b", "c", "a"]


def test_the_excess_over_exact_posteriors_needs_no_oracle():
    given = [cell("a", "high", 4.0, metric="excess")]
    given += [cell("a", "hybrid", 1.0, metric="excess")]
    (found,) = gaps(given)
    assert found.shares["hybrid"].mean == pytest.approx(0.75)


@pytest.mark.parametrize("missing", ["high", "oracle", "hybrid"])
def test_tasks_without_a_comparison_are_left_out(missing):
    means = {"high": 3.0, "oracle": 1.0, "hybrid": 2.0, "low": 2.0}
    given = [cell("a", method, mean) for method, mean in means.items()]
    assert gaps([each for each in given if each.method != missing]) == []


@pytest.mark.parametrize("plain", [1.0, 0.5, math.nan])
def test_tasks_without_a_gap_are_left_out(plain):
    means = {"high": plain, "oracle": 1.0, "hybrid": 2.0}
    assert gaps([cell("a", method, mean) for method, mean in means.items()]) == []


def test_shares_outside_of_the_axis_are_written_at_its_ends():
    given = [cell("a", "high", 2.0), cell("a", "oracle", 1.0)]
    given += [cell("a", "mf", 9.0), cell("a", "hybrid", 0.0)]
    (axes,) = draw_gaps(gaps(given)).axes
    assert {text.get_text() for text in axes.texts} == {"◂ -7.0", "2.0 ▸"}


def test_the_command_draws_a_picture(tmp_path, capsys):
    record = {
        "task": "a",
        "num_simulations": [100, 10],
        "seed": 0,
        "metric": "kl",
        "seconds": 1.0,
        "command": "c",
        "python": "3",
        "versions": {},
    }
    lines = [
        {**record, "method": method, "metrics": {"kl": {"mean": mean, "median": mean}}}
        for method, mean in (("high", 3.0), ("hybrid", 1.5), ("oracle", 1.0))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    picture = tmp_path / "gaps.png"
    main([str(tmp_path / "a.jsonl"), "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        (tmp_path / "b.jsonl").write_text(json.dumps(lines[0]))
        main([str(tmp_path / "b.jsonl"), "--output", str(picture)])
    assert "no task" in capsys.readouterr().err
