"""Numbers of rows, sizes of batches and costs, as users write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import SupportsIndex


def per_level(sizes: SupportsIndex | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Rows of a batch, a number a level.

    Raises:
        ValueError: If there is another number of them.
    """
    given = (sizes,) * num_levels if isinstance(sizes, SupportsIndex) else sizes
    numbers = tuple(map(int, given)) if isinstance(given, Iterable) else ()
    if len(numbers) != num_levels or min(numbers) < 1:
        raise ValueError(
            f"simulation_batch_size must be an integer >= 1, or one for each of the "
            f"{num_levels} levels, but is {numbers or sizes}."
        )
    return numbers


def rows_per_level(num_simulations: Sequence[int], least: int) -> tuple[int, ...]:
    """Numbers of rows as plain integers.

    Raises:
        ValueError: If there are none, or one is below `least`.
    """
    is_sequence = isinstance(num_simulations, Iterable)
    rows = tuple(map(int, num_simulations)) if is_sequence else ()
    if not rows or min(rows) < least:
        raise ValueError(
            f"num_simulations is {rows if is_sequence else num_simulations}, but must "
            f"hold a number for each level, at least {least}, e.g. (1_000, 100)."
        )
    return rows


def check_num_costs(costs: Sequence[float] | None, num_levels: int) -> None:
    """Check that there is a cost a level, if any.

    Raises:
        ValueError: If not.
    """
    if costs is not None and not (
        isinstance(costs, Sized) and len(costs) == num_levels
    ):
        raise ValueError(
            f"costs must hold one number for each of the {num_levels} levels, the cost "
            f"of one run of its simulator, but is {costs}."
        )
