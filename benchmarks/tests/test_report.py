"""Tables, plots and the page of records, against values computed by hand."""

import base64
import json
import math
from html.parser import HTMLParser

import pytest

from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks.plots import arrange, draw, png
from sbi_multilevel_benchmarks.records import (
    cells,
    failed,
    fault_of,
    finished,
    over_seeds,
    table,
)
from sbi_multilevel_benchmarks.report import write_report


def _record(method, seed, gap, counts=(100, 10), task="middle", **more):
    low, high = counts
    runs = {"high": [0, high], "low": [low, 0], "oracle": [0, 5_000]}.get(
        method, [low + high, high]
    )
    return {
        "task": task,
        "method": method,
        "num_simulations": list(counts),
        "seed": seed,
        "metric": "gap",
        "metrics": {"gap": {"mean": gap, "median": gap / 2}},
        "runs": runs,
        "cost": runs[0] + 10.0 * runs[1],
        "seconds": 1.0 + seed,
        "epochs": 7,
        "command": "python -m x <y>",
        "python": "3.10",
        "versions": {"sbi": "0.27"},
        **more,
    }


def _failure(seed):
    record = _record("high", seed, 0.0)
    del record["metrics"]
    return {**record, "error": "RuntimeError: <bad> value"}


@pytest.fixture
def records():
    return [
        _record(method, seed, gap + 0.1 * seed, counts, task)
        for task in ("middle", "other & more")
        for counts in ((100, 10), (100, 40))
        for method, gap in (("high", 3), ("low", 2.5), ("ml", 2), ("oracle", 1))
        for seed in range(5)
    ]


# ------------------------------------------------------------- aggregation


def test_means_standard_errors_and_medians_are_those_by_hand():
    given = [_record("ml", seed, gap) for seed, gap in enumerate((1.0, 2.0, 6.0))]
    (cell,) = cells(given)
    mean, median = cell.metrics["gap"]["mean"], cell.metrics["gap"]["median"]
    # deviations -2, -1, 3: variance 14 / 2, over 3 seeds
    assert mean.mean == 3.0 and mean.num_seeds == 3
    assert mean.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert median.mean == 1.5
    assert median.standard_error == pytest.approx(math.sqrt(7 / 12))
    assert (cell.seconds, cell.cost, cell.num_seeds) == (2.0, 210.0, 3)
    assert str(over_seeds([1.0, 2.0, 3.0])) == "2.000 ± 0.577"
    assert str(over_seeds([1.0])) == "1.000" and str(over_seeds([])) == "-"
    assert str(over_seeds([1.0, math.inf])) == "inf"


def test_the_last_record_of_a_run_is_used_and_failures_are_not():
    given = [_record("ml", 0, 1.0), _failure(0), _record("ml", 0, 5.0), _failure(1)]
    given.append(_record("high", 0, 9.0))  # of the first failure, tried again
    assert [r["metrics"]["gap"]["mean"] for r in finished(given)] == [5.0, 9.0]
    assert [record["seed"] for record in failed(given)] == [1]
    other = _record("ml", 0, 2.0, observations=3)
    assert len(cells([*given, other])) == 3


def test_a_table_is_sorted_and_marks_few_seeds(records):
    given = table(cells([*records, _record("new", 0, 1.0, counts=(100, 10))]))
    assert given.header[:4] == ("task", "simulations", "method", "seeds")
    assert given.header[4:] == ("gap (mean)", "gap (median)", "cost", "seconds")
    order = [row[:3] for row in given.rows if row[0] == "middle"]
    methods = ["high", "low", "ml", "oracle"]
    assert order == [
        *(("middle", "100 + 10", m) for m in (*methods[:3], "new", "oracle")),
        *(("middle", "100 + 40", m) for m in methods),
    ]
    rows = {row[1:3]: row for row in given.rows}
    assert rows["100 + 10", "new"][3:6] == ("1", "1.000†", "0.500†")
    assert rows["100 + 10", "ml"][3:] == (
        *("5", "2.200 ± 0.071", "1.100 ± 0.035"),
        *("210", "3"),
    )


def test_records_without_coverage_are_read_with_those_that_have_it(tmp_path):
    covered = {"coverage_50": {"mean": 0.4, "median": 0.4}}
    given = [_record("ml", seed, 1.0) for seed in range(3)]
    given[2]["metrics"] |= covered
    given.append(_record("high", 0, 2.0))
    assert [fault_of(record) for record in given] == [None] * 4
    (high, ml) = cells(given)
    assert list(high.metrics) == ["gap"]
    assert ml.metrics["gap"]["mean"].num_seeds == 3
    assert ml.metrics["coverage_50"]["mean"].num_seeds == 1
    assert "coverage_50 (mean)" in table([high, ml]).header
    assert "coverage_90" in write_report(given, tmp_path).read_text()


def test_missing_metrics_are_dashes_and_the_main_metric_is_first():
    few = {"only": {"mean": 1.0, "median": 2.0}}
    given = [_record("a", 0, 1.0, metrics=few), _record("b", 0, 3.0)]
    lines = str(table(cells(given))).splitlines()
    assert "gap (mean) | gap (median) | only (mean) | only (median)" in lines[0]
    assert "| a | 1 | - | - | 1.000† | 2.000† |" in lines[2]
    assert "| b | 1 | 3.000† | 1.500† | - | - |" in lines[3]


# ------------------------------------------------------------- curves


def _panels(records):
    return draw(cells(records)).axes


def _points(axes, label):
    (container,) = [c for c in axes.containers if c.get_label() == label]
    line, _, bars = container
    return line.get_xdata(), line.get_ydata(), bars[0].get_segments()


def _across(axes):
    lines = {line.get_label(): line for line in axes.lines}
    return {n: line.get_ydata()[0] for n, line in lines.items() if "_" not in n}


def test_curves_are_against_high_fidelity_simulations_and_against_cost(records):
    left, right = _panels([r for r in records if r["task"] == "middle"])
    assert left.get_xscale() == right.get_xscale() == "log"
    x, y, bars = _points(left, "ml")
    # error bars are moved apart
    assert x == pytest.approx([10, 40], rel=0.1)
    assert y == pytest.approx([2.2, 2.2])
    half = (bars[0][1][1] - bars[0][0][1]) / 2
    assert half == pytest.approx(math.sqrt(0.025 / 5))
    x, y, _ = _points(right, "high")
    assert x == pytest.approx([100, 400], rel=0.15) and y == pytest.approx([3.2, 3.2])
    assert _points(right, "low")[0] == pytest.approx([100, 100], rel=0.15)


def test_the_oracle_is_in_both_panels_and_low_fidelity_in_the_first_as_a_line(records):
    left, right = _panels([r for r in records if r["task"] == "middle"])
    assert _across(left) == pytest.approx({
        "oracle (5000 simulations)": 1.2,
        "low": 2.7,
    })
    assert _across(right) == pytest.approx({"oracle (5000 simulations)": 1.2})
    assert len(left.patches) == 2 and len(right.patches) == 1  # bands


def test_the_legend_has_a_missing_oracle_and_missing_seeds():
    figure = draw(cells([_record("ml", seed, 1.0) for seed in range(2)]))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["ml, 2 of 5 seeds", "(oracle not run)"]


def test_other_numbers_below_the_highest_level_are_other_lines(records):
    more = [_record("ml", seed, 1.0, counts=(500, 10)) for seed in range(5)]
    lines = arrange([c for c in cells([*records[:20], *more]) if c.method != "oracle"])
    labels = [line.label for line in lines]
    assert labels == ["high", "low (100 below)", "ml (100 below)", "ml (500 below)"]
    assert len({line.color for line in lines}) == 4


def test_figures_of_unknown_cost_and_infinite_errors_are_drawn(records):
    for record in records:
        del record["cost"], record["runs"]
    records[0]["metrics"]["gap"]["mean"] = math.inf
    figure = draw(cells(r for r in records if r["task"] == "middle"))
    assert [text.get_text() for text in figure.axes[1].texts] == ["unknown"]
    assert png(figure)[:4] == b"\x89PNG"


# ------------------------------------------------------------- the page


class _Reader(HTMLParser):
    """Tags with their attributes, and whether all that opens is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_has_every_task(records, tmp_path):
    page = write_report([*records, _failure(9)], tmp_path / "deep" / "report")
    text = page.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    images = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    kind = "data:image/png;base64,"
    assert all(src.startswith(kind) for src in images)
    pictures = {base64.b64decode(src.removeprefix(kind)) for src in images}
    assert pictures == {file.read_bytes() for file in page.parent.glob("*.png")}
    assert len(pictures) == 2
    # links are within the page
    assert not {"link", "iframe"} & {tag for tag, _ in reader.tags}
    assert [attributes for tag, attributes in reader.tags if tag == "script"] == [{}]
    links = [a["href"] for _, a in reader.tags if "href" in a]
    anchors = {a["id"] for _, a in reader.tags if "id" in a}
    assert {link[1:] for link in links} == anchors and len(links) == 6
    assert "http" not in text and "url(" not in text
    for task in ("middle", "other &amp; more"):
        assert f"<h2>{task}</h2>" in text and f">{task}</td>" in text
    assert "2.200 ± 0.071" in text and "python -m x &lt;y&gt;" in text
    assert "seed 9: RuntimeError: &lt;bad&gt; value" in text


def test_the_command_line_writes_the_report(records, tmp_path, capsys):
    for name, part in (("a", records[:20]), ("b", records[20:])):
        lines = "".join(json.dumps(record) + "\n" for record in part)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    files = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    command_line.main(["report", *files, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "middle.png").is_file()
