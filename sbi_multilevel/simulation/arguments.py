"""Numbers of rows and sizes of batches, as users write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex


def per_level(sizes: SupportsIndex | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Rows of a batch, a number a level.

    Raises:
        ValueError: If there is another number of them.
    """
    given = (sizes,) * num_levels if isinstance(sizes, SupportsIndex) else sizes
    numbers = tuple(int(size) for size in given)
    if len(numbers) != num_levels or min(numbers) < 1:
        raise ValueError(
            f"simulation_batch_size must be an integer >= 1, or one for each of the "
            f"{num_levels} levels, but is {numbers}."
        )
    return numbers


def rows_per_level(num_simulations: Sequence[int], least: int) -> tuple[int, ...]:
    """Numbers of rows as plain integers.

    Raises:
        ValueError: If there are none, or one is below `least`.
    """
    rows = tuple(int(number) for number in num_simulations)
    if not rows or min(rows) < least:
        raise ValueError(
            f"num_simulations is {rows}, but must hold a number for each level, at "
            f"least {least}."
        )
    return rows
