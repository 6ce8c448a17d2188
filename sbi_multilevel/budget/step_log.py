"""What a run that spends a budget has decided, in a file beside its store."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """What was known when rows were asked for.

    Args:
        num_simulations: Rows of each level, those of earlier steps included.
        costs: Cost of a run of each simulator.
        variances: Variance of each level.
    """

    num_simulations: tuple[int, ...]
    costs: tuple[float, ...]
    variances: tuple[float, ...]


class StepLog:
    """Steps of a run with a store, in a file beside it; without a store, nothing.

    Args:
        path: The file; `None` without a store.
        key: What the steps depend on. Those of another key are not used.
    """

    def __init__(self, path: Path | None, key: dict[str, Any]):
        self._path, self._key = path, key
        self._steps: list[dict[str, Any]] = []
        if path is not None and path.exists():
            content = json.loads(path.read_text())
            if content["key"] == key:
                self._steps = content["steps"]

    def step(self, index: int) -> Step | None:
        """The step of an earlier run, if it came so far."""
        if index >= len(self._steps):
            return None
        return Step(**{k: tuple(v) for k, v in self._steps[index].items()})

    def write(self, index: int, step: Step) -> None:
        """Keep a step, before its rows are simulated."""
        if index < len(self._steps):
            return  # read from the file
        self._steps.append(asdict(step))
        if self._path is None:
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": self._key, "steps": self._steps}))
        os.replace(temporary, self._path)
