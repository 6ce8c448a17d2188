"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from sbi_multilevel_benchmarks import families, report, reproduce, speed
from sbi_multilevel_benchmarks.allocation import allocation_table, run_allocations
from sbi_multilevel_benchmarks.cost import step_costs
from sbi_multilevel_benchmarks.divergence import (
    RULES,
    divergence_table,
    run_divergences,
)
from sbi_multilevel_benchmarks.journal import Journal, command_of
from sbi_multilevel_benchmarks.overhead import overheads
from sbi_multilevel_benchmarks.records import (
    Record,
    by_title,
    cells,
    finished,
    key,
    table,
)
from sbi_multilevel_benchmarks.registry import (
    COMMANDS,
    METHODS,
    TASKS,
    get_method,
    get_task,
    load_plugin,
    split_name,
)
from sbi_multilevel_benchmarks.run import Run, missing, run_all

PROGRAM = "python -m sbi_multilevel_benchmarks"


def main(arguments: list[str] | None = None) -> None:
    """Run `python -m sbi_multilevel_benchmarks TASK --methods ... --out FILE`.

    Raises:
        SystemExit: With code 1 if a run failed; all other runs are completed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = given[0] if given else None
    if first == "report":
        report.main(given[1:])
    elif first == "cost":
        print(step_costs())
    elif first == "overhead":
        print(overheads())
    elif first == "families":
        _compare_families(given)
    elif first == "reproduce":
        _exit_if_failed(reproduce.main(given[1:]))
    elif first == "speed":
        speed.main(given[1:])
    elif first == "allocation":
        _allocate(given)
    elif first == "divergence":
        _count_divergences(given)
    else:
        _benchmark(given)


def _benchmark(given: Sequence[str]) -> None:
    plugins = _plugins(given)
    parser = _parser("Train methods, and evaluate them on tasks.")
    parser.epilog = (
        f"Tasks: {', '.join(TASKS)}. Methods: {', '.join(METHODS)}. "
        f"Other commands: {', '.join(COMMANDS)}. Options of a task or a method follow "
        "its name, as in blob:size=64 or mf-tsnpe:epsilon=1e-4."
    )
    parser.add_argument("tasks", nargs="+", type=_one_of(TASKS), metavar="TASK")
    parser.add_argument(
        "--methods",
        nargs="+",
        type=_one_of(METHODS),
        default=["high", "ml"],
        metavar="METHOD",
        help="high and ml by default",
    )
    parser.add_argument(
        "--num-simulations",
        "--rows",
        nargs="+",
        type=_counts,
        help="simulations of each level, e.g. 10000,50 10000,100; by default those of "
        "the task (--rows is a deprecated alias)",
    )
    parser.add_argument(
        "--observations",
        type=int,
        help="evaluate posteriors at this number of observations, the first ones",
    )
    parser.add_argument("--data", help="file that the task reads, if any")
    _add_plugin(parser)
    options = parser.parse_args(given)
    runs = [
        Run(task, method, n, seed, options.data, options.observations)
        for task in options.tasks
        for n in options.num_simulations
        or [get_task(task, options.data).num_simulations]
        for method in _available(options.methods)
        for seed in _seeds(options)
    ]
    journal = Journal(options.out, _command(given))
    failures = journal.extend(
        run_all(missing(runs, journal.records), options.workers, plugins)
    )
    requested = {key(run.identity) for run in runs}
    done_now = cells(r for r in finished(journal.records) if key(r) in requested)
    for group in by_title(done_now).values():
        print(table(group))
    _exit_if_failed(failures)


def _available(methods: Sequence[str]) -> list[str]:
    """The methods that can run here; others are named with the reason."""
    available = []
    for name in methods:
        why_skipped = getattr(get_method(name), "why_skipped", lambda: None)()
        if why_skipped is None:
            available.append(name)
        else:
            print(f"{name} is skipped: {why_skipped}", file=sys.stderr, flush=True)
    return available


def _allocate(given: Sequence[str]) -> None:
    parser = _parser("Compare a pilot and rules of thumb at equal budget.")
    parser.add_argument("command", choices=["allocation"])
    options = parser.parse_args(given)
    journal = Journal(options.out, _command(given))
    records = run_allocations(_seeds(options), options.workers, journal.records)
    failures = journal.extend(records)
    print(allocation_table(journal.records))
    _exit_if_failed(failures)


def _count_divergences(given: Sequence[str]) -> None:
    parser = _parser("Count multilevel trainings that diverge, on random tasks.")
    parser.add_argument("command", choices=["divergence"])
    parser.add_argument(
        "--stopping",
        nargs="+",
        choices=RULES,
        default=list(RULES),
        help="rules of early stopping, and single-level NPE or NLE; all by default",
    )
    parser.add_argument(
        "--learning-rate",
        nargs="+",
        type=float,
        default=[None],
        dest="rates",
        metavar="RATE",
        help="learning rates; by default drawn for each task",
    )
    options = parser.parse_args(given)
    journal = Journal(options.out, _command(given))
    records = run_divergences(
        _seeds(options),
        options.workers,
        journal.records,
        options.stopping,
        options.rates,
    )
    failures = journal.extend(records)
    print(divergence_table(journal.records))
    _exit_if_failed(failures)


def _compare_families(given: Sequence[str]) -> None:
    parser = _parser("Train all families on a linear-Gaussian task.")
    parser.add_argument("command", choices=["families"])
    parser.add_argument(
        "--only", nargs="+", choices=families.FAMILIES, default=families.FAMILIES
    )
    methods = tuple(families.METHODS)
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    options = parser.parse_args(given)
    journal = Journal(options.out, _command(given))
    records = families.run_families(
        _seeds(options),
        options.workers,
        journal.records,
        options.only,
        options.methods,
    )
    failures = journal.extend(records)
    print(families.family_table(journal.records))
    _exit_if_failed(failures)


def _exit_if_failed(failures: Sequence[Record]) -> None:
    if not failures:
        return
    print(f"{len(failures)} runs failed; the same command runs them again:")
    for record in failures:
        names = ("task", "family", "method", "approach", "scheme", "stopping")
        names += ("num_simulations",)
        run = " ".join(str(record[name]) for name in names if name in record)
        print(f"  {run} seed {record['seed']}: {record['error']}")
    raise SystemExit(1)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=description, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--out",
        type=Path,
        help="file of JSON lines, a record each; runs that it has are not repeated",
    )
    return parser


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        help="Python file that registers tasks or methods; may be repeated",
    )


def _plugins(given: Sequence[str]) -> list[str]:
    """Load the plugins, as their names are among the choices of other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_plugin(parser)
    plugins = [
        str(Path(path).resolve()) for path in parser.parse_known_args(given)[0].plugin
    ]
    for plugin in plugins:
        load_plugin(plugin)
    return plugins


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    """Type of an argument that is one of these names, with options if any."""

    def check(text: str) -> str:
        try:
            base, _ = split_name(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if base not in names:
            known = ", ".join(names)
            raise argparse.ArgumentTypeError(f"{text!r} is none of {known}")
        return text

    return check


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def _command(given: Sequence[str]) -> str:
    return command_of(PROGRAM, given)


if __name__ == "__main__":
    main()
