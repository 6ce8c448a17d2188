"""From records to means and standard errors over seeds, and tables; pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]

MIN_SEEDS = 5  # with fewer, a standard error says little, and cells are marked
FEW_SEEDS = "†"
_STATISTICS = ("mean", "median")
_NUMBER = (int, float)


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over seeds.

    Args:
        mean: Mean.
        standard_error: Standard error of the mean, NaN for one seed.
        num_seeds: Number of seeds.
    """

    mean: float
    standard_error: float
    num_seeds: int

    def __str__(self) -> str:
        if self.num_seeds == 0:
            return "-"
        if not math.isfinite(self.standard_error):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True)
class Cell:
    """A method at one number of rows, over its seeds.

    Args:
        task: Name of the task.
        observations: Observations that posteriors are evaluated at; `None` for all.
        method: Name of the method.
        num_simulations: Rows of each level.
        metric: The main metric.
        runs: Runs of the simulator of each level; `None` if unknown.
        cost: Cost of these runs; `None` if unknown.
        seconds: Mean seconds of training.
        num_seeds: Number of seeds.
        metrics: By metric, the mean and the median over test points, over seeds.
    """

    task: str
    observations: int | None
    method: str
    num_simulations: tuple[int, ...]
    metric: str
    runs: tuple[int, ...] | None
    cost: float | None
    seconds: float
    num_seeds: int
    metrics: dict[str, dict[str, Summary]]

    @property
    def title(self) -> str:
        """The task, and at how many observations."""
        if self.observations is None:
            return self.task
        return f"{self.task}, first {self.observations} observations"


@dataclass(frozen=True)
class Table:
    """Header and rows, all text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """As Markdown."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def key(record: Record) -> tuple:
    """What a run is told apart by."""
    return (
        record["task"],
        record["method"],
        tuple(record["num_simulations"]),
        record["seed"],
        record.get("observations"),
    )


def fault_of(record: Record) -> str | None:
    """What a record of this benchmark lacks, or has of a wrong kind; `None` if nothing.

    Objects that are records of no run pass.
    """
    if "method" not in record and "scheme" not in record:
        return None
    for name, kind in _kinds(record).items():
        if not isinstance(record.get(name), kind):
            return f"its {name} is {record.get(name)!r:.40}"
    if not all(type(count) is int for count in record.get("num_simulations", ())):
        return f"its num_simulations are {record['num_simulations']!r:.40}"
    if "error" in record:
        return None
    metrics = record["metrics"]
    if "scheme" in record and record["metric"] not in metrics:
        return f"its metrics lack {record['metric']!r:.40}"
    for name, values in metrics.items():
        parts = [values.get(s) for s in _STATISTICS] if type(values) is dict else [None]
        if not all(isinstance(part, _NUMBER) for part in parts):
            return f"its {name} is {values!r:.40}, without a mean and a median"
    return None


def _kinds(record: Record) -> dict[str, Any]:
    """Types of what a record of a run must have, and of what it may have."""
    kinds: dict[str, Any] = {"task": str, "seed": int}
    if "method" in record:
        kinds.update(method=str, num_simulations=list)
    else:
        kinds.update(scheme=str)
    if "error" in record:
        kinds.update(error=str)
    else:
        kinds.update(num_simulations=list, metric=str, metrics=dict, seconds=_NUMBER)
        kinds.update(command=str, python=str, versions=dict)
        kinds.update({} if "method" in record else {"budget": _NUMBER})
    may = {"observations": int, "runs": list, "cost": _NUMBER, "num_simulations": list}
    kinds.update({k: v for k, v in may.items() if record.get(k) is not None})
    return kinds


def finished(records: Iterable[Record]) -> list[Record]:
    """Records of benchmark runs that ended well, the last one of each."""
    runs = (r for r in records if "method" in r and "error" not in r)
    return list({key(record): record for record in runs}.values())


def failed(records: Sequence[Record]) -> list[Record]:
    """Records of benchmark runs that failed and never ended well, the last of each."""
    done = {key(record) for record in finished(records)}
    runs = (r for r in records if "method" in r and "error" in r)
    last = {key(record): record for record in runs}
    return [record for name, record in last.items() if name not in done]


def over_seeds(values: Sequence[float]) -> Summary:
    """Mean and standard error, with n - 1 in the variance."""
    if len(values) == 0:
        return Summary(math.nan, math.nan, 0)
    if len(values) == 1:
        return Summary(float(values[0]), math.nan, 1)
    with np.errstate(invalid="ignore"):  # of an infinite value
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Summary(float(np.mean(values)), error, len(values))


def cells(records: Iterable[Record]) -> list[Cell]:
    """Records by task, rows and method, sorted so.

    Args:
        records: Those of any number of files; failures, and all but the last of the
            same run, do not count.
    """
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in finished(records):
        task, method, rows, _, observations = key(record)
        groups[task, observations or 0, rows, method].append(record)
    return [_cell(group) for _, group in sorted(groups.items(), key=lambda g: g[0])]


def _cell(group: Sequence[Record]) -> Cell:
    first = group[0]
    names = dict.fromkeys(name for record in group for name in record["metrics"])
    metrics = {
        name: {
            statistic: over_seeds([
                record["metrics"][name][statistic]
                for record in group
                if name in record["metrics"]
            ])
            for statistic in _STATISTICS
        }
        for name in names
    }
    runs = first.get("runs")
    return Cell(
        first["task"],
        first.get("observations"),
        first["method"],
        tuple(first["num_simulations"]),
        first["metric"],
        None if runs is None else tuple(runs),
        first.get("cost"),
        float(np.mean([record["seconds"] for record in group])),
        len(group),
        metrics,
    )


def by_title(given: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells that are evaluated alike: one figure, one table."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in given:
        groups[cell.title].append(cell)
    return dict(groups)


def table(given: Sequence[Cell]) -> Table:
    """Mean over test points, its mean ± standard error over seeds; medians beside.

    Args:
        given: Cells. Metrics that none of them have are left out, and what comes of
            fewer than `MIN_SEEDS` seeds is marked.
    """
    # not all methods have all metrics; the main one first
    names = dict.fromkeys([
        *(cell.metric for cell in given),
        *(name for cell in given for name in cell.metrics),
    ])
    columns = [(name, statistic) for name in names for statistic in _STATISTICS]
    rows = []
    for cell in given:
        values = [
            _marked(cell.metrics[name][statistic]) if name in cell.metrics else "-"
            for name, statistic in columns
        ]
        numbers = " + ".join(map(str, cell.num_simulations))
        cost = "-" if cell.cost is None else f"{cell.cost:g}"
        about = (cell.title, numbers, cell.method, str(cell.num_seeds))
        rows.append((*about, *values, cost, f"{cell.seconds:.0f}"))
    header = [f"{name} ({statistic})" for name, statistic in columns]
    return Table(
        ("task", "rows", "method", "seeds", *header, "cost", "seconds"), tuple(rows)
    )


def _marked(summary: Summary) -> str:
    return str(summary) + FEW_SEEDS * (summary.num_seeds < MIN_SEEDS)
