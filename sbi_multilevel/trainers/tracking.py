"""A tracker of sbi that keeps nothing."""

from __future__ import annotations

from typing import Any


class SilentTracker:
    """Writes no log folder, e.g. for the members of an ensemble, or in benchmarks."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None: ...

    def log_metrics(
        self, metrics: dict[str, float], step: int | None = None
    ) -> None: ...

    def log_params(self, params: dict[str, Any]) -> None: ...

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None: ...

    def flush(self) -> None: ...
