"""Figures and tables of the papers: names, sizes, published values, results."""

import json
import math

import pytest

from sbi_multilevel_benchmarks import reproduce
from sbi_multilevel_benchmarks.papers.experiment import (
    EXPERIMENTS,
    SIZES,
    Experiment,
    Published,
    Result,
    Sweep,
    register_experiments,
)
from sbi_multilevel_benchmarks.records import Table
from sbi_multilevel_benchmarks.registry import METHODS, TASKS
from sbi_multilevel_benchmarks.run import missing

NAMES = list(EXPERIMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_and_methods_are_registered(name):
    experiment = EXPERIMENTS[name]
    for run in experiment.runs("paper"):
        assert run.task in TASKS
        assert run.method in METHODS
    for each in experiment.published:
        assert each.task in TASKS
        assert each.method in METHODS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_runs_are_distinct_and_of_the_levels_of_their_task(name, size):
    runs = EXPERIMENTS[name].runs(size)
    assert len(set(runs)) == len(runs)
    assert len({len(run.num_simulations) for run in runs if run.task == "ou2"}) <= 1


def test_a_verdict_that_is_not_obvious_has_a_remark():
    for experiment in EXPERIMENTS.values():
        if experiment.verdict in ("partly", "differs", "not run"):
            assert experiment.remark, experiment.name


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_found_by_each_of_its_items(name):
    paper, _, items = name.partition(": ")
    kind = ""
    for item in items.split(", "):
        kind = item.split()[0] if " " in item else kind
        number = item.split()[-1]
        assert reproduce.find(f"{paper}: {kind} {number}").name == name
    assert reproduce.find(name).name == name


@pytest.mark.parametrize("name", ["transfer: fig 99", "fig 2", "", "transfer"])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match="multilevel: table 4"):
        reproduce.find(name)


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="another experiment"):
        register_experiments(EXPERIMENTS[NAMES[0]])


def test_sizes():
    sweep = Sweep("ou2", ("high", "mf"), ((10_000, 50), (100_000, 50)), 10)
    paper, half, smoke = (sweep.runs(size, 20) for size in SIZES)
    assert len(paper) == 2 * 2 * 20
    assert {run.num_simulations for run in half} == {(10_000, 50)}
    assert {run.seed for run in half} == set(range(5))
    assert [(r.method, r.num_simulations, r.observations) for r in smoke] == [
        ("high", (200, 20), 2),
        ("mf", (200, 20), 2),
    ]


def test_simulations_of_a_file_are_not_reduced():
    sweep = Sweep("camels", ("high",), ((980, 20),), None, True)
    assert [run.num_simulations for run in sweep.runs("smoke", 5)] == [(980, 20)]


def record(method, seed, nltp):
    return {
        "task": "ou2",
        "method": method,
        "num_simulations": [200, 20],
        "seed": seed,
        "metric": "nltp",
        "metrics": {"nltp": {"mean": nltp, "median": nltp}},
        "seconds": 1.0,
        "command": "",
        "python": "",
        "versions": {},
    }


def test_published_values_are_beside_ours():
    published = (
        Published("ou2", (200, 20), "high", "nltp", -1.5, 0.2),
        Published("ou2", (200, 20), "mf", "nltp", -2.5),
    )
    experiment = Experiment("a: fig 1", "", "reproduced", published=published)
    records = [record("high", 0, -1.0), record("high", 1, -2.0)]
    table = reproduce.published_table([experiment], records)
    # the standard error of -1 and -2 is 0.5
    assert [row[-2:] for row in table.rows] == [
        ("-1.5 ± 0.2 (sd)", "-1.500 ± 0.500"),
        ("-2.5", ""),
    ]


def test_results_hold_tables_and_pictures_of_studies(tmp_path):
    given = []

    def study(size, records):
        given.append((size, records))
        return Result(tables={"A table": Table(("a",), (("1",),))})

    experiment = Experiment("a: fig 1", "title", "reproduced", "Why.", studies=(study,))
    page = reproduce.write_results(experiment, "smoke", [], tmp_path / "new")
    text = page.read_text("utf-8")
    assert "# a: fig 1: title" in text and "Why." in text
    assert "## A table\n\n| a |\n| --- |\n| 1 |" in text
    assert given == [("smoke", [])]


def test_missing_runs_are_those_without_a_record_of_success():
    runs = Sweep("ou2", ("high",), ((200, 20),)).runs("paper", 3)
    failed = {**record("high", 1, 0.0), "error": "lost"}
    left = missing(runs, [record("high", 0, 0.0), failed])
    assert [run.seed for run in left] == [1, 2]


def test_the_list_has_all_names(capsys):
    assert reproduce.main([]) == []
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


@pytest.mark.slow
def test_a_figure_is_reproduced_and_resumed(tmp_path, capsys):
    arguments = ["transfer: fig 9", "--size", "smoke", "--out", str(tmp_path)]
    assert reproduce.main(arguments) == []
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["high", "mf"]
    values = [json.loads(line)["metrics"]["c2st"]["mean"] for line in lines]
    assert all(math.isfinite(value) for value in values)
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "results.md").is_file()
    assert reproduce.main(arguments) == []
    assert (tmp_path / "records.jsonl").read_text().splitlines() == lines
    assert "2 runs were done before" in capsys.readouterr().err
