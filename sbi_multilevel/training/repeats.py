"""Simulations that are appended twice, and calls that lack an argument."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch

from sbi_multilevel.data.simulations import LevelSimulations

Append = TypeVar("Append", bound=Callable[..., Any])


def checks_repeats(append: Append) -> Append:
    """`append_simulations` of sbi that compares its simulations with those of levels.

    If simulations of levels were appended before, those of other shapes are refused,
    and repeated ones lead to a warning. All else is as in sbi.

    Args:
        append: The method of sbi, whose arguments and docstring stay.
    """

    signature = inspect.signature(append)

    @functools.wraps(append)
    def append_simulations(
        self: Any, theta: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        given = signature.bind(self, theta, x, *args, **kwargs)
        given.apply_defaults()
        # None (NPE): in the first round
        drops_invalid = given.arguments["exclude_invalid_x"] is not False
        self._check_unlabelled(theta, x, drops_invalid)
        return append(self, theta, x, *args, **kwargs)

    return cast(Append, append_simulations)


def count_repeats(rows: LevelSimulations, known: Sequence[LevelSimulations]) -> int:
    """How many rows are among the known ones, with exactly the same theta and x.

    Replicates of theta with another x are no repeats.

    Args:
        rows: Rows of one level.
        known: Other rows of this level, of the same shapes.

    Returns:
        Number of rows, at most `len(rows)`.

    Example:
    --------

    ::

        >>> import torch
        >>> theta = torch.zeros(3, 1)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> rows = LevelSimulations(0, theta, x)
        >>> count_repeats(rows, [LevelSimulations(0, theta, x + 1)])
        2
    """
    if not known:
        return 0
    thetas = {key for part in known for key in _keys(part.theta)}
    # x may be large: only that of rows with a known theta is looked at
    candidates = _with_theta(rows, thetas)
    if candidates is None:
        return 0
    own = set(_keys(candidates.theta))
    shared = [part for each in known if (part := _with_theta(each, own)) is not None]
    pairs = {pair for part in shared for pair in _pairs(part)}
    return sum(pair in pairs for pair in _pairs(candidates))


def warn_of_repeats(
    parts: Iterable[LevelSimulations], known: Sequence[LevelSimulations]
) -> None:
    """Warn if rows that are appended are there already.

    Args:
        parts: The rows appended, a part a level.
        known: The rows of all levels that were appended before.
    """
    found = []
    for rows in parts:
        same = [each for each in known if each.level == rows.level]
        number = count_repeats(rows, same)
        if number:
            found.append(f"{number} of {len(rows)} rows of level {rows.level}")
    if found:
        warnings.warn(
            f"{', '.join(found)} are there already, with the same theta and x. They "
            "would be trained on and held out at once, so that losses and gains look "
            "better than they are. `simulate_multilevel` returns the same rows again "
            "for the same seed: pass another `seed=`, append to a new trainer, and "
            "append every row once.",
            stacklevel=3,
        )


def incomplete(theta: Any, x: Any, level: Any) -> str:
    """The message where rows of one level came without x or level.

    Args:
        theta: What was passed.
        x: The same.
        level: The same.
    """
    if isinstance(theta, (list, tuple)):
        return (
            f"theta is a {type(theta).__name__} of {len(theta)} elements, without x "
            "and level. Pass `MultilevelSimulations`, as `simulate_multilevel` returns "
            "them, or call this once a level with theta, x, level=..., and for pairs "
            "x_coarse."
        )
    return (
        f"theta is a {type(theta).__name__}, x is {x if x is None else 'given'} and "
        f"level is {level}, but rows of one level need theta, x, level=..., and for "
        "pairs x_coarse."
    )


def _with_theta(rows: LevelSimulations, wanted: set[bytes]) -> LevelSimulations | None:
    """The rows whose theta is wanted; `None` if there are none."""
    index = [i for i, key in enumerate(_keys(rows.theta)) if key in wanted]
    if not index:
        return None
    chosen = torch.tensor(index, device=rows.theta.device)
    return LevelSimulations.trusted(
        rows.level, rows.theta[chosen], rows.x[chosen.to(rows.x.device)]
    )


def _pairs(rows: LevelSimulations) -> zip[tuple[bytes, bytes]]:
    return zip(_keys(rows.theta), _keys(rows.x))


def _keys(column: torch.Tensor) -> list[bytes]:
    """Bytes of each row."""
    values = column.detach().flatten(1).cpu().numpy()
    return [row.tobytes() for row in np.ascontiguousarray(values)]
