"""The steps of a run that spends a budget, in a file next to its store."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbi_multilevel.utils.files import expect, read_json, replacing, understood


@dataclass(frozen=True)
class SpendingStep:
    """The numbers of simulations of a step, and the estimates they are based on."""

    num_simulations: tuple[int, ...]  # including those of earlier steps
    costs: tuple[float, ...]  # of one run of each simulator
    variances: tuple[float, ...]


class SpendingLog:
    """Steps of a run with a store, in a file next to it; in memory without a store.

    Args:
        path: The file; `None` without a store.
        key: The values that the steps depend on. Steps of another key are not used.
    """

    def __init__(self, path: Path | None, key: dict[str, Any]):
        self._path, self._key = path, key
        self._steps: list[SpendingStep] = []
        if path is not None and path.exists():
            remedy = "Delete the file: the budget is divided again."
            with understood("path", path, "steps of a budget", remedy):
                content = read_json(path)
                if content["key"] == key:
                    self._steps = [_step(values) for values in content["steps"]]

    def step(self, index: int) -> SpendingStep | None:
        """The step of an earlier run, if it reached this step."""
        return self._steps[index] if index < len(self._steps) else None

    def write(self, index: int, step: SpendingStep) -> None:
        """Write a step, before its simulations are run."""
        if index < len(self._steps):
            return  # read from the file
        self._steps.append(step)
        if self._path is None:
            return
        content = {"key": self._key, "steps": [asdict(each) for each in self._steps]}
        with replacing(self._path) as unfinished:
            unfinished.write_text(json.dumps(content))


def _step(values: dict[str, Any]) -> SpendingStep:
    """A step from JSON, which holds equally many numbers of each kind."""
    step = SpendingStep(**{name: tuple(numbers) for name, numbers in values.items()})
    columns = (step.num_simulations, step.costs, step.variances)
    is_sound = all(type(n) is int and n >= 0 for n in step.num_simulations) and all(
        type(number) in (int, float) for column in columns for number in column
    )
    expect(is_sound and len(set(map(len, columns))) == 1, f"a step is {values!r:.100}")
    return step
