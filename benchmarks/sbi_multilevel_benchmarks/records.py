"""Means and standard errors over seeds from records, and tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]

MIN_SEEDS = 5  # cells of fewer seeds are marked
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
    """A method at given numbers of simulations, over its seeds.

    Args:
        task: Name of the task.
        observations: Number of observations that posteriors are evaluated at; `None`
            for all.
        method: Name of the method.
        num_simulations: Number of simulations of each level.
        metric: The main metric.
        runs: Runs of the simulator of each level; `None` if unknown.
        cost: Cost of the runs; `None` if unknown.
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
        """The task, with the number of observations if limited."""
        if self.observations is None:
            return self.task
        return f"{self.task}, first {self.observations} observations"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        header: Titles of the columns.
        rows: Rows, each as long as the header.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def joined(counts: Iterable[Any]) -> str:
    """Numbers of simulations as text, e.g. `10000 + 50`."""
    return " + ".join(map(str, counts))


def key(record: Record) -> tuple:
    """The identity of a run."""
    names = ("task", "method", "num_simulations", "seed")
    task, method, counts, seed = (record[name] for name in names)
    return task, method, tuple(counts), seed, record.get("observations")


def fault_of(record: Record) -> str | None:
    """What is missing or of the wrong type in the record of a run; `None` if nothing.

    Objects that are records of no run pass.
    """
    if "method" not in record and "scheme" not in record:
        return None
    for name, kind in _types(record).items():
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


def _types(record: Record) -> dict[str, Any]:
    """Types of the required keys, and of the optional ones that are present."""
    types: dict[str, Any] = {"task": str, "seed": int}
    if "method" in record:
        types.update(method=str, num_simulations=list)
    else:
        types.update(scheme=str)
    if "error" in record:
        types.update(error=str)
    else:
        types.update(num_simulations=list, metric=str, metrics=dict, seconds=_NUMBER)
        types.update(command=str, python=str, versions=dict)
        types.update({} if "method" in record else {"budget": _NUMBER})
    optional = dict(observations=int, runs=list, cost=_NUMBER, num_simulations=list)
    return types | {k: v for k, v in optional.items() if record.get(k) is not None}


def finished(records: Iterable[Record]) -> list[Record]:
    """The last record of each run that succeeded."""
    runs = (r for r in records if "method" in r and "error" not in r)
    return list({key(record): record for record in runs}.values())


def failed(records: Sequence[Record]) -> list[Record]:
    """The last record of each run that failed and never succeeded."""
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
    with np.errstate(invalid="ignore"):  # infinite values
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Summary(float(np.mean(values)), error, len(values))


def cells(records: Iterable[Record]) -> list[Cell]:
    """Records by task, numbers of simulations and method, in this order.

    Args:
        records: Records of any number of files; failures are ignored, as are all but
            the last record of a run.
    """
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in finished(records):
        task, method, counts, _, observations = key(record)
        groups[task, observations or 0, counts, method].append(record)
    return [_cell(groups[name]) for name in sorted(groups)]


def _cell(group: Sequence[Record]) -> Cell:
    first, runs = group[0], group[0].get("runs")
    values: dict[str, dict[str, list]] = {}
    for record in group:
        for name, of_run in record["metrics"].items():
            lists = values.setdefault(name, {s: [] for s in _STATISTICS})
            for statistic in _STATISTICS:
                lists[statistic].append(of_run[statistic])
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
        {
            name: {statistic: over_seeds(v) for statistic, v in lists.items()}
            for name, lists in values.items()
        },
    )


def by_title(given: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells by task and observations: one figure and one table each."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in given:
        groups[cell.title].append(cell)
    return dict(groups)


def table(given: Sequence[Cell]) -> Table:
    """Mean and median over test points, each as mean ± standard error over seeds.

    Args:
        given: Cells. Cells of fewer than `MIN_SEEDS` seeds are marked.
    """
    # the main metric first; methods need not have all metrics
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
        cost = "-" if cell.cost is None else f"{cell.cost:g}"
        counts = joined(cell.num_simulations)
        about = (cell.title, counts, cell.method, str(cell.num_seeds))
        rows.append((*about, *values, cost, f"{cell.seconds:.0f}"))
    titles = [f"{name} ({statistic})" for name, statistic in columns]
    header = ("task", "simulations", "method", "seeds", *titles, "cost", "seconds")
    return Table(header, tuple(rows))


def _marked(summary: Summary) -> str:
    return str(summary) + FEW_SEEDS * (summary.num_seeds < MIN_SEEDS)
