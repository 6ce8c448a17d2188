"""Simulations that are appended twice, and calls that lack an argument."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def count_repeats(
    simulations: LevelSimulations, known: Sequence[LevelSimulations]
) -> int:
    """Number of simulations that are known already, with the same theta and x.

    Replicates of theta with another x are no repeats.

    Args:
        simulations: Simulations of one level.
        known: Other simulations of this level, of the same shapes.

    Returns:
        Their number, at most `len(simulations)`.

    Example:
    --------

    ::

        >>> import torch
        >>> theta = torch.zeros(3, 1)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> simulations = LevelSimulations(0, theta, x)
        >>> count_repeats(simulations, [LevelSimulations(0, theta, x + 1)])
        2
    """
    if not known:
        return 0
    own = set(_keys(simulations.theta))
    seen = {pair for part in known for pair in _pairs_at(own, part)}
    # x may be large: it is compared only where theta is known
    shared = {theta for theta, _ in seen}
    return sum(pair in seen for pair in _pairs_at(shared, simulations))


def warn_of_repeats(
    parts: Iterable[LevelSimulations], known: Sequence[LevelSimulations]
) -> None:
    """Warn if simulations are appended that were appended before.

    Args:
        parts: The simulations, one part for each level.
        known: The simulations of all levels that were appended before.
    """
    found = []
    for part in parts:
        same = [each for each in known if each.level == part.level]
        number = count_repeats(part, same)
        if number:
            found.append(f"{number} of {len(part)} simulations of level {part.level}")
    if found:
        warnings.warn(
            f"{', '.join(found)} were appended before, with the same theta and x. They "
            "would be both trained on and held out, which makes held-out losses too "
            "low. `simulate_multilevel` returns the same simulations for the same "
            "seed: pass another `seed=`, append to a new trainer, and append each "
            "simulation once.",
            stacklevel=3,
        )


def incomplete(theta: Any, x: Any, level: Any) -> str:
    """The message if simulations of one level lack x or level.

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
        f"level is {level}, but simulations of one level need theta, x, level=..., "
        "and for pairs x_coarse."
    )


def _pairs_at(
    thetas: set[bytes], simulations: LevelSimulations
) -> Iterator[tuple[bytes, bytes]]:
    """Theta and x, as bytes, of the simulations at some of all theta."""
    keys = _keys(simulations.theta)
    index = [i for i, key in enumerate(keys) if key in thetas]
    chosen = torch.tensor(index, dtype=torch.long, device=simulations.x.device)
    return zip((keys[i] for i in index), _keys(simulations.x[chosen]))


def _keys(column: torch.Tensor) -> list[bytes]:
    """Bytes of each entry."""
    values = column.detach().flatten(1).cpu().numpy()
    return [entry.tobytes() for entry in np.ascontiguousarray(values)]
