"""The report: one HTML page with all tables and plots."""

from __future__ import annotations

import argparse
import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas

from sbi_multilevel_benchmarks.allocation import allocation_table
from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.leaderboard import BEST, EQUAL, boards
from sbi_multilevel_benchmarks.plots import draw, png
from sbi_multilevel_benchmarks.records import (
    FEW_SEEDS,
    MIN_SEEDS,
    Cell,
    Record,
    Table,
    by_title,
    cells,
    failed,
    finished,
    table,
)

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmark of sbi_multilevel</title>
<style>
body { font-family: sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; line-height: 1.45; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #444; }
td { border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
code { overflow-wrap: anywhere; }
th button { font: inherit; font-weight: bold; border: 0; background: none; padding: 0;
  cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
</style>
</head>
<body>
<h1>Benchmark of sbi_multilevel</h1>
<p>Lower is better, except for <em>atc</em>, which is 0 at best, and
<em>coverage_50</em> and <em>coverage_90</em>, 0.5 and 0.9 at best. A value is the mean
over test points, as mean ± standard error over seeds; <em>median</em> is the median
over test points. $few marks fewer than $seeds seeds. All methods of a task have the
same simulations, noise, network and test points. <em>Cost</em> is the cost of the
simulations of a method, in the unit of the task; where each observation has simulations
of its own, of those for one observation. An oracle is NPE or NLE on a large number of
high-fidelity simulations; a dotted line is a method that needs none. In tables of all
tasks, $best marks the lowest value of a row and $equal those within the standard error
of the difference, oracles apart. A click on the head of a column sorts a table.</p>
<ul>$contents</ul>
$sections
<script>
const number = cell => parseFloat(cell.textContent.replace("\u2212", "-"));
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("thead th").forEach((head, index) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, two) => {
        const [a, b] = [one.cells[index], two.cells[index]];
        const [x, y] = [number(a), number(b)];
        if (isNaN(x) && isNaN(y))
          return sign * a.textContent.localeCompare(b.textContent);
        if (isNaN(x) || isNaN(y)) return isNaN(x) ? 1 : -1;  // missing values are last
        return sign * (x - y);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
</script>
</body>
</html>
""")

SECTION = Template("""<section id="$anchor">
<h2>$title</h2>
$body
</section>
""")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m sbi_multilevel_benchmarks report FILE [FILE ...] --out FOLDER`."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_multilevel_benchmarks report", description=__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, help="files of JSON lines")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder")
    options = parser.parse_args(arguments)
    records = [record for path in options.files for record in read_records(path)]
    print(write_report(records, options.out))


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `index.html` and a PNG file per task.

    Args:
        records: Records of tasks and of `allocation`, in any order; the last of each
            run is used.
        folder: Folder to write to; created if missing.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = cells(records)
    sections = {title: _html(board) for title, board in boards(given).items()}
    for title, group in by_title(given).items():
        picture = png(draw(group))
        (folder / f"{_anchor(title)}.png").write_bytes(picture)
        sections[title] = _task_body(title, group, picture, finished(records))
    allocations = allocation_table(records)
    if allocations.rows:
        sections["Simulations at equal budget"] = _html(allocations)
    failures = failed(records)
    if failures:
        items = [
            f"{r['task']} {r['method']} {r['num_simulations']} seed {r['seed']}: "
            f"{r['error']}"
            for r in failures
        ]
        sections["Failed runs"] = _list(items)
    page = folder / "index.html"
    page.write_text(_page(sections), encoding="utf-8")
    return page


def _page(sections: dict[str, str]) -> str:
    links = (f'<li><a href="#{_anchor(t)}">{escape(t)}</a></li>' for t in sections)
    bodies = (
        SECTION.substitute(anchor=_anchor(title), title=escape(title), body=body)
        for title, body in sections.items()
    )
    return PAGE.substitute(
        few=FEW_SEEDS,
        seeds=MIN_SEEDS,
        best=BEST,
        equal=EQUAL,
        contents="".join(links),
        sections="".join(bodies),
    )


def _task_body(
    title: str, group: Sequence[Cell], picture: bytes, records: Sequence[Record]
) -> str:
    code = base64.b64encode(picture).decode()
    name = escape(title, quote=True)
    image = f'<img alt="Errors on {name}" src="data:image/png;base64,{code}">'
    one = group[0]
    made = [
        record
        for record in records
        if (record["task"], record.get("observations")) == (one.task, one.observations)
    ]
    return image + _html(table(group)) + _provenance(made)


def _provenance(records: Sequence[Record]) -> str:
    """Commands and versions, each once."""
    lines = dict.fromkeys(record["command"] for record in records)
    versions = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        + f", Python {record['python']}"
        for record in records
    )
    return (
        "<details><summary>Commands and versions</summary>"
        f"{_list(lines, code=True)}{_list(versions)}</details>"
    )


def _html(given: Table) -> str:
    frame = pandas.DataFrame(given.rows, columns=list(given.header))
    return f'<div class="wide">{frame.to_html(index=False, border=0)}</div>'


def _list(items: Any, code: bool = False) -> str:
    texts = (escape(item) for item in items)
    if code:
        texts = (f"<code>{text}</code>" for text in texts)
    return "<ul>" + "".join(f"<li>{text}</li>" for text in texts) + "</ul>"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", title)
