"""Progress bars by simulations, and by cost if the cost of each level is known."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.auto import tqdm

from sbi_multilevel.simulation.tasks import Outcome, Status


class Progress:
    """One bar of simulations per level, and one of cost with the remaining time."""

    def __init__(
        self, remaining: Sequence[int], costs: Sequence[float] | None, show: bool
    ):
        self._bars = [
            tqdm(
                total=number,
                desc=f"Level {level}",
                unit="sim",
                disable=not show or not number,
            )
            for level, number in enumerate(remaining)
        ]
        costs = [0.0] * len(remaining) if costs is None else costs
        below = (0.0, *costs[:-1])
        self._simulation_costs = [cost + low for cost, low in zip(costs, below)]
        total = sum(n * cost for n, cost in zip(remaining, self._simulation_costs))
        self._cost_bar = tqdm(
            total=total,
            desc="Cost",
            disable=not show or total == 0,
            bar_format="{l_bar}{bar}| {n:.4g}/{total:.4g} [{elapsed}<{remaining}]",
        )
        self._bad = [0] * len(remaining)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (*self._bars, self._cost_bar):
            bar.close()

    def update(self, level: int, outcome: Outcome) -> None:
        """Count the simulations of an outcome."""
        number = len(outcome.status)
        bad = int((outcome.status != Status.OK).sum())
        bar = self._bars[level]
        if bad:
            self._bad[level] += bad
            bar.set_postfix(bad=self._bad[level], refresh=False)
        bar.update(number)
        self._cost_bar.update(number * self._simulation_costs[level])
