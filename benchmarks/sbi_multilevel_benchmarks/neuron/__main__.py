"""Runs the simulations of the task `l5pc` into its stores, before they are used.

An interrupted run is continued by the same command, and larger numbers add simulations.
The folder is that of the variable `SBI_MULTILEVEL_SIMULATIONS`. The defaults take about
half an hour of one core: 0.01 s a simulation of level 0, and 0.1 s a pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.stored_task import STORE_VARIABLE


def _numbers(text: str) -> tuple[int, int]:
    low, high = (int(part) for part in text.split(","))
    return low, high


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, and simulate."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_multilevel_benchmarks.neuron",
        description=f"Simulate the task l5pc into the folder {STORE_VARIABLE}.",
    )
    parser.add_argument(
        "--num-simulations",
        type=_numbers,
        default=(10_000, 1_000),
        metavar="LOW,HIGH",
        help="simulations of each level for each seed; default 10000,1000",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds from 0; default 5")
    parser.add_argument(
        "--test",
        type=int,
        default=200,
        help="simulations for observations and calibration; default 200",
    )
    parser.add_argument("--data", metavar="FILE", help="morphology (SWC)")
    options = parser.parse_args(arguments)
    try:
        task: Any = get_task("l5pc", options.data)
    except ValueError as error:
        parser.error(str(error))
    if task.folder is None:
        parser.error(f"name a folder by the environment variable {STORE_VARIABLE}")
    print(f"simulations are in {task.folder}")
    task.simulate_test(options.test)
    for seed in range(options.seeds):
        task.simulate(options.num_simulations, seed, show_progress_bars=True)


if __name__ == "__main__":
    main()
