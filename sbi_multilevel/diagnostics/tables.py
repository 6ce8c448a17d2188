"""Numbers and tables in the text of reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_LISTED = 12


def plus_minus(value: float, error: float) -> str:
    """A number with its standard error; "-" if the number is NaN."""
    if np.isnan(value):
        return "-"
    return f"{value:.2f} ± {'?' if np.isnan(error) else f'{error:.2f}'}"


def abridged(rows: Sequence[str], ranks: np.ndarray, others: str) -> list[str]:
    """Rows of a table; of many, those of lowest rank and the number of the others."""
    if len(rows) <= MAX_LISTED:
        return list(rows)
    first = np.argsort(ranks, kind="stable")[:MAX_LISTED]
    count = len(rows) - MAX_LISTED
    return [*(rows[row] for row in first), f"  and {count} {others}"]
