"""Tables of tasks by methods: error, calibration, and seconds of training.

The method with the lowest error of a row has a star. Others have an empty star if they
are not distinguishable from it: the difference of the means is within its standard
error, :math:`\\sqrt{s_1^2 + s_2^2}`. Oracles, which are trained on a large number of
high-fidelity simulations, take no part. Methods with few tasks are left out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from sbi_multilevel_benchmarks.records import Cell, Summary, Table, joined

BEST, EQUAL = "★", "☆"
CALIBRATION = "sbc"
MIN_TASKS = 3  # of a method
_TOLERANCE = 1e-9  # of differences that are rounding

Name = tuple[str, str]  # task, and numbers of simulations
Row = Mapping[str, Cell]
Values = Mapping[Name, Mapping[str, Summary]]


def boards(given: Sequence[Cell]) -> dict[str, Table]:
    """The tables by title; those without entries are left out.

    Args:
        given: Cells of all tasks.
    """
    rows = _rows(given)
    errors, calibration = _values(rows, _main), _values(rows, _calibration)
    seconds = _values(rows, _seconds)
    tables = {
        "Error, main metric of each task": _board(errors, _all_stars(errors)),
        "Rows in which a method is best, or equal": _wins(errors),
        "Calibration, SBC": _board(calibration, _all_stars(calibration)),
        "Seconds of training": _board(seconds, {}),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _rows(given: Sequence[Cell]) -> dict[Name, Row]:
    """Cells by task and numbers of simulations, then by method."""
    counts = Counter(cell.method for cell in given)
    rows: dict[Name, dict[str, Cell]] = defaultdict(dict)
    for cell in given:
        if counts[cell.method] >= MIN_TASKS or _is_oracle(cell.method):
            name = cell.title, joined(cell.num_simulations)
            rows[name][cell.method] = cell
    return {name: row for name, row in rows.items() if len(row) > 1}


def _values(
    rows: Mapping[Name, Row], value: Callable[[Cell], Summary | None]
) -> Values:
    """A value of each cell that has it."""
    found = {}
    for name, row in rows.items():
        values = {method: value(cell) for method, cell in row.items()}
        values = {m: each for m, each in values.items() if each is not None}
        if values:
            found[name] = values
    return found


def _board(values: Values, stars: Mapping[Name, Mapping[str, str]]) -> Table:
    """A row for each task and numbers of simulations, a column for each method."""
    methods = _order(values)
    lines = tuple(
        (*name, *(_text(row.get(m), stars.get(name, {}).get(m, "")) for m in methods))
        for name, row in values.items()
    )
    return Table(("task", "simulations", *methods), lines)


def _order(values: Values) -> list[str]:
    """Methods by the number of their tasks; oracles last."""
    counts = Counter(method for row in values.values() for method in row)
    return sorted(counts, key=lambda m: (_is_oracle(m), -counts[m], m))


def _all_stars(values: Values) -> dict[Name, dict[str, str]]:
    return {name: _stars(row) for name, row in values.items()}


def _stars(row: Mapping[str, Summary]) -> dict[str, str]:
    """The star of each method that has one."""
    known = {
        method: each
        for method, each in row.items()
        if not _is_oracle(method) and math.isfinite(each.mean)
    }
    if not known:
        return {}
    best = min(known, key=lambda method: known[method].mean)
    stars = {m: EQUAL for m, each in known.items() if _is_equal(known[best], each)}
    return {**stars, best: BEST}


def _is_equal(best: Summary, other: Summary) -> bool:
    errors = best.standard_error, other.standard_error
    if not all(map(math.isfinite, errors)):
        return False
    return other.mean - best.mean <= math.hypot(*errors) + _TOLERANCE


def _wins(values: Values) -> Table:
    """Of the rows that have a method, in how many it has a star."""
    stars, lines = _all_stars(values), []
    for method in _order(values):
        names = [name for name, row in values.items() if method in row]
        if not _is_oracle(method):
            wins = sum(method in stars[name] for name in names)
            lines.append((method, str(wins), str(len(names))))
    return Table(("method", "best or equal", "rows"), tuple(lines))


def _text(value: Summary | None, star: str) -> str:
    return "-" if value is None else f"{value} {star}".rstrip()


def _main(cell: Cell) -> Summary | None:
    return _metric(cell, cell.metric)


def _calibration(cell: Cell) -> Summary | None:
    return _metric(cell, CALIBRATION)


def _metric(cell: Cell, name: str) -> Summary | None:
    return cell.metrics[name]["mean"] if name in cell.metrics else None


def _seconds(cell: Cell) -> Summary | None:
    return Summary(cell.seconds, math.nan, cell.num_seeds)


def _is_oracle(method: str) -> bool:
    return method.startswith("oracle")
