"""Figures and tables of the papers, as runs of the benchmark or as studies.

The size `"paper"` has the numbers of simulations and of seeds of the paper, `"half"` at
most 10 000 simulations of each level and 5 seeds, and `"smoke"` a few simulations and
one seed, to try a command out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.figure import Figure

from sbi_multilevel_benchmarks.records import Record, Table
from sbi_multilevel_benchmarks.run import Run
from sbi_multilevel_benchmarks.task import BenchmarkTask

Size = Literal["paper", "half", "smoke"]
SIZES: tuple[Size, ...] = ("paper", "half", "smoke")
Verdict = Literal["reproduced", "partly", "differs", "not run", "illustration"]

Counts = tuple[int, ...]

_MAX_HALF, _SEEDS_HALF = 10_000, 5
_SMOKE = (200, 20)  # simulations of level 0, and of the others
_OBSERVATIONS_SMOKE = 2
_EPOCHS_SMOKE, _ORACLE_SMOKE = 20, 200  # of the settings of a paper, and of an oracle


@dataclass(frozen=True)
class Sweep:
    """Runs of one task: methods at several numbers of simulations.

    Args:
        task: Name of the task.
        methods: Names of the methods.
        num_simulations: Numbers of simulations of each level.
        observations: Number of observations, the first ones; `None` for all.
        has_fixed_sizes: Whether the task reads simulations of these numbers only.
    """

    task: str
    methods: tuple[str, ...]
    num_simulations: tuple[Counts, ...]
    observations: int | None = None
    has_fixed_sizes: bool = False

    def runs(self, size: Size, num_seeds: int) -> list[Run]:
        """The runs of a size.

        Args:
            size: See the module.
            num_seeds: Seeds of the size `"paper"`.
        """
        counts, observations = self.num_simulations, self.observations
        if size == "half":
            counts = tuple(n for n in counts if max(n) <= _MAX_HALF)
            num_seeds = min(num_seeds, _SEEDS_HALF)
        elif size == "smoke":
            counts, num_seeds = counts[:1], 1
            if not self.has_fixed_sizes:
                counts = (_reduced(counts[0]),)
            if observations is not None:
                observations = _OBSERVATIONS_SMOKE
        return [
            Run(self.task, method, n, seed, None, observations)
            for n in counts
            for method in self.methods
            for seed in range(num_seeds)
        ]


@dataclass(frozen=True)
class Published:
    """A published value: mean over test points and initializations.

    Args:
        task: Name of the task.
        num_simulations: Numbers of simulations of each level.
        method: Name of the method.
        metric: Name of the metric in our records.
        mean: The mean.
        spread: The published standard deviation, if any.
    """

    task: str
    num_simulations: Counts
    method: str
    metric: str
    mean: float
    spread: float | None = None

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.mean:g}"
        return f"{self.mean:g} ± {self.spread:g} (sd)"


@dataclass(frozen=True)
class Result:
    """What a study found.

    Args:
        figures: Pictures by name.
        tables: Tables by title.
    """

    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)


Study = Callable[[Size, Sequence[Record]], Result]


@dataclass(frozen=True)
class Experiment:
    """A figure or a table of a paper.

    Args:
        name: Paper and number, e.g. `"transfer: fig 2"`.
        title: What it shows.
        verdict: Whether our results agree with the paper.
        remark: Why, in a sentence or two.
        sweeps: Runs of the benchmark.
        studies: Pictures and tables that are no runs of the benchmark; functions of the
            size and of the records of the runs.
        published: Published values.
        num_seeds: Seeds, or initializations of the network, in the paper.
    """

    name: str
    title: str
    verdict: Verdict
    remark: str = ""
    sweeps: tuple[Sweep, ...] = ()
    studies: tuple[Study, ...] = ()
    published: tuple[Published, ...] = ()
    num_seeds: int = 10

    def runs(self, size: Size) -> list[Run]:
        """The runs of the benchmark at a size."""
        return [
            run for sweep in self.sweeps for run in sweep.runs(size, self.num_seeds)
        ]


EXPERIMENTS: dict[str, Experiment] = {}


def register_experiments(*experiments: Experiment) -> None:
    """Add figures and tables to `reproduce`.

    Raises:
        ValueError: If a name is taken.
    """
    for each in experiments:
        if each.name in EXPERIMENTS:
            raise ValueError(
                f"name={each.name!r} is the name of another experiment. Choose one not "
                f"in {tuple(EXPERIMENTS)}."
            )
        EXPERIMENTS[each.name] = each


def for_study(task: BenchmarkTask, size: Size) -> BenchmarkTask:
    """The task of a study, with short trainings for the size `"smoke"`."""
    if size == "smoke":
        task.paper_epochs = min(task.paper_epochs, _EPOCHS_SMOKE)
        task.oracle_size = _ORACLE_SMOKE
    return task


def _reduced(counts: Counts) -> Counts:
    return tuple(
        min(n, _SMOKE[0] if level == 0 else _SMOKE[1]) for level, n in enumerate(counts)
    )
