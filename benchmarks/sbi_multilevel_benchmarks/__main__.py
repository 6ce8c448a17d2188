"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from sbi_multilevel_benchmarks import families, report, speed
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
    get_task,
    load_plugin,
)
from sbi_multilevel_benchmarks.run import Run, run_all

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
        f"Other commands: {', '.join(COMMANDS)}."
    )
    parser.add_argument("tasks", nargs="+", choices=TASKS, metavar="TASK")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
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
    done = {key(record) for record in finished(journal.records)}
    missing = [run for run in runs if key(run.identity) not in done]
    if len(missing) < len(runs):
        num_done = len(runs) - len(missing)
        print(f"{num_done} runs were done before.", file=sys.stderr, flush=True)
    # errors of arguments are raised before anything is run
    for run in {(r.task, r.method, r.num_simulations): r for r in missing}.values():
        run.build_task()
    failures = _write(journal, run_all(missing, options.workers, plugins))
    requested = {key(run.identity) for run in runs}
    done_now = cells(r for r in finished(journal.records) if key(r) in requested)
    for group in by_title(done_now).values():
        print(table(group))
    _exit_if_failed(failures)


def _available(methods: Sequence[str]) -> list[str]:
    """The methods that can run here; others are named with the reason."""
    available = []
    for name in methods:
        why_skipped = getattr(METHODS[name], "why_skipped", lambda: None)()
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
    failures = _write(journal, records)
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
    options = parser.parse_args(given)
    journal = Journal(options.out, _command(given))
    records = run_divergences(
        _seeds(options), options.workers, journal.records, options.stopping
    )
    failures = _write(journal, records)
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
    failures = _write(journal, records)
    print(families.family_table(journal.records))
    _exit_if_failed(failures)


def _write(journal: Journal, records: Iterable[Record]) -> list[Record]:
    """Add records to the journal as runs end, and return those of failures."""
    failures = []
    for record in records:
        record = journal.append(record)
        print(json.dumps(record), flush=True)
        if "error" in record:
            failures.append(record)
    return failures


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


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def _command(given: Sequence[str]) -> str:
    return command_of(PROGRAM, given)


if __name__ == "__main__":
    main()
