r"""Simulations of every level, validated once, here.

A multilevel data set holds :math:`n_l` simulations of each level :math:`l = 0, \dots,
L`, 0 being the lowest fidelity and L the one to infer with. A simulation of level 0 is
:math:`(\theta, x)` with :math:`x = G_0(\theta, u)`. A simulation of level :math:`l \ge
1` may be *paired*,

.. math::  (\theta,\; x = G_l(\theta, u),\; x_\mathrm{coarse} = G_{l-1}(\theta, u)),

with the same :math:`\theta` and the same noise :math:`u` on both sides. Simulations are
checked when they are made (`sbi_multilevel.data.validation`), and not again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.validation import (
    check_columns,
    check_enough,
    check_level,
    check_levels_are_consecutive,
    check_same_device,
    check_same_shapes,
    check_weights,
    valid_mask,
    warn_if_pairing_looks_broken,
)
from sbi_multilevel.utils.argument_types import check_field_types
from sbi_multilevel.utils.files import expect, read_arrays, tensor_of, understood

Target = Literal["theta", "x"]  # of a density estimator: NPE or NLE

_COLUMNS = ("theta", "x", "x_coarse", "weights")


@dataclass(frozen=True, eq=False)
class LevelSimulations:
    r"""Simulations of one level.

    Those with NaN or infinity in `theta`, `x` or `x_coarse` are dropped, both sides of
    a pair together, with a warning.

    Args:
        level: The level, 0 being the lowest fidelity.
        theta: Parameters, shape `(n, d_theta)`.
        x: Outputs of the simulator of this level, shape `(n, *x_shape)`.
        x_coarse: Outputs of the simulator one level below at the same theta and the
            same noise, shape `(n, *x_shape)`; `None` without pairs.
        weights: Weight of each simulation in the loss, shape `(n,)`, e.g. where theta
            is not drawn from the prior; `None` for equal weights.

    Raises:
        ValueError: If the arguments do not fit each other, or no simulation is valid.

    Example:
    --------

    ::

        >>> import torch
        >>> level = LevelSimulations(0, torch.zeros(3, 2), torch.ones(3, 5))
        >>> len(level), level.is_paired
        (3, False)
    """

    level: int
    theta: Tensor
    x: Tensor
    x_coarse: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.level == 0 and self.x_coarse is not None:
            raise ValueError(
                "x_coarse was passed with level=0, but there is no level below 0. "
                "Leave out x_coarse, or pass the level of the simulator that made x."
            )
        columns = {"theta": self.theta, "x": self.x}
        if self.x_coarse is not None:
            columns["x_coarse"] = self.x_coarse
        check_columns(columns, self.level)
        check_weights(self.weights, len(self.theta), self.level)
        valid = valid_mask(columns, self.level)
        if not valid.all():
            vars(self).update(vars(self[valid]))
        if self.x_coarse is not None:
            warn_if_pairing_looks_broken(self.x, self.x_coarse, self.level)

    def __len__(self) -> int:
        return self.theta.shape[0]

    def __repr__(self) -> str:
        pairs = "paired" if self.is_paired else "not paired"
        weights = "" if self.weights is None else ", weighted"
        shapes = f"theta {tuple(self.theta.shape[1:])}, x {tuple(self.x.shape[1:])}"
        return (
            f"LevelSimulations(level {self.level}: {len(self)} simulations, "
            f"{pairs}{weights}, {shapes})"
        )

    @property
    def is_paired(self) -> bool:
        """Whether each simulation has the output of the level below."""
        return self.x_coarse is not None

    def __getitem__(self, index: Tensor) -> LevelSimulations:
        """Simulations at `index`, which are not validated again."""
        columns = (getattr(self, name) for name in _COLUMNS)
        chosen = (None if column is None else column[index] for column in columns)
        return self.trusted(self.level, *chosen)  # pyright: ignore[reportArgumentType]

    @classmethod
    def trusted(
        cls,
        level: int,
        theta: Tensor,
        x: Tensor,
        x_coarse: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> LevelSimulations:
        """Simulations that were validated before; arguments as of the class."""
        made = object.__new__(cls)
        columns = {"theta": theta, "x": x, "x_coarse": x_coarse, "weights": weights}
        vars(made).update(level=level, **columns)
        return made

    @property
    def loss_weights(self) -> Tensor:
        """Weights with mean 1, shape `(n,)`."""
        if self.weights is None:
            return torch.ones(len(self), device=self.theta.device)
        return self.weights / self.weights.mean()


@dataclass(frozen=True, eq=False)
class MultilevelSimulations:
    r"""Simulations of the levels 0 to L.

    Args:
        levels: Simulations of level 0, 1, ..., L in this order. The multilevel loss
            needs pairs above level 0; transfer and the hybrid method do not.
        costs: Cost :math:`C_l` of one run of each simulator, in any unit; `None` if
            unknown.

    Raises:
        ValueError: If a level is missing, out of order, has fewer than two simulations,
            or parameters or outputs of another shape or device than level 0.

    Example:
    --------

    ::

        >>> import torch
        >>> theta = torch.rand(40, 2)
        >>> x = theta + 0.1 * torch.randn(40, 2)
        >>> sims = MultilevelSimulations(
        ...     levels=(
        ...         LevelSimulations(0, theta, x),
        ...         LevelSimulations(1, theta[:9], x[:9] + 0.01, x_coarse=x[:9]),
        ...     ),
        ...     costs=(1.0, 10.0),
        ... )
        >>> sims.num_simulations, sims.total_cost
        ((40, 9), 139.0)
    """

    levels: tuple[LevelSimulations, ...]
    costs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        object.__setattr__(self, "levels", tuple(self.levels))
        check_levels_are_consecutive([each.level for each in self.levels])
        for each in self.levels:
            check_enough(each)
            check_same_shapes(each, self.levels[0])
            check_same_device(each.theta, self.levels[0].theta, each.level)
        if self.costs is not None:
            costs = tuple(float(cost) for cost in self.costs)
            if len(costs) != len(self.levels) or not all(c >= 0 for c in costs):
                raise ValueError(
                    f"costs must hold one number >= 0 for each of the "
                    f"{len(self.levels)} levels, but is {self.costs}."
                )
            object.__setattr__(self, "costs", costs)

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        levels = ",\n".join(f"  {each!r}" for each in self.levels)
        costs = ", ".join(f"{cost:.3g}" for cost in self.costs or ()) or "unknown"
        return f"MultilevelSimulations(costs a run: {costs},\n{levels})"

    def __getitem__(self, level: int) -> LevelSimulations:
        return self.levels[level]

    def __iter__(self) -> Iterator[LevelSimulations]:
        return iter(self.levels)

    @property
    def num_simulations(self) -> tuple[int, ...]:
        r"""Number of simulations of each level, :math:`(n_0, \dots, n_L)`."""
        return tuple(len(each) for each in self.levels)

    @property
    def total_cost(self) -> float | None:
        r""":math:`n_0 C_0 + \sum_{l \ge 1} n_l (C_l + C_{l-1})`; `None` if unknown.

        A simulation of level l that is not paired costs :math:`C_l`.
        """
        if self.costs is None:
            return None
        below = (0.0, *self.costs[:-1])
        return sum(
            len(each) * (cost + coarse * each.is_paired)
            for each, cost, coarse in zip(self.levels, self.costs, below)
        )

    def select(self, indices: Sequence[Tensor]) -> MultilevelSimulations:
        """Some of the simulations of each level.

        Args:
            indices: Indices for each level, from level 0 up, each of shape `(m,)`.
        """
        parts = tuple(each[i] for each, i in zip(self.levels, indices, strict=True))
        return replace(self, levels=parts)

    def save(self, path: str | os.PathLike) -> None:
        """Write all simulations as an `.npz` archive, without pickle.

        Args:
            path: The file; its name is kept as it is.
        """
        arrays: dict[str, np.ndarray] = {"num_levels": np.array(len(self))}
        if self.costs is not None:
            arrays["costs"] = np.array(self.costs)
        for each in self.levels:
            for name in _COLUMNS:
                value = getattr(each, name)
                if value is not None:
                    arrays[f"{name}_{each.level}"] = value.cpu().numpy()
        with Path(path).open("wb") as file:  # NumPy would add .npz to a name
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> MultilevelSimulations:
        """Read what `save` wrote.

        Args:
            path: The file. It is read without unpickling.

        Raises:
            ValueError: If the file holds no multilevel simulations, or pickled data;
                names what is wrong with it.
            OSError: If the file cannot be read.
        """
        remedy = "Pass a file written by `MultilevelSimulations.save`."
        with understood("path", path, "multilevel simulations", remedy):
            arrays = read_arrays(path)
            count = tensor_of(arrays, "num_levels")
            is_number = count.ndim == 0 and not count.is_floating_point() and count > 0
            expect(bool(is_number), f"num_levels is {count.tolist()!r:.60}")
            levels = []
            for level in range(int(count)):
                columns = {
                    name: tensor_of(arrays, f"{name}_{level}")
                    for name in _COLUMNS
                    if name in ("theta", "x") or f"{name}_{level}" in arrays
                }
                levels.append(LevelSimulations(level, **columns))
            costs = None
            if "costs" in arrays:
                costs = tuple(tensor_of(arrays, "costs").flatten().tolist())
            return cls(tuple(levels), costs)


def merge_levels(parts: Iterable[LevelSimulations]) -> MultilevelSimulations:
    """All simulations by level; `parts` are validated already.

    A level stays paired only if all of its parts are.
    """
    level_of = attrgetter("level")
    by_level = groupby(sorted(parts, key=level_of), key=level_of)
    return MultilevelSimulations(tuple(merged(list(group)) for _, group in by_level))


def merged(parts: Sequence[LevelSimulations]) -> LevelSimulations:
    """All simulations of one level; paired only if all `parts` are."""
    if len(parts) == 1:
        return parts[0]
    coarse = [part.x_coarse for part in parts if part.x_coarse is not None]
    weighted = any(part.weights is not None for part in parts)
    return LevelSimulations.trusted(
        parts[0].level,
        torch.cat([part.theta for part in parts]),
        torch.cat([part.x for part in parts]),
        torch.cat(coarse) if len(coarse) == len(parts) else None,
        torch.cat([part.loss_weights for part in parts]) if weighted else None,
    )


def split_pairs(parts: Iterable[LevelSimulations]) -> list[LevelSimulations]:
    """The simulations without pairs: x_coarse becomes x of the level below."""
    make, sides = LevelSimulations.trusted, []
    for part in parts:
        sides.append(make(part.level, part.theta, part.x, weights=part.weights))
        if part.x_coarse is not None:
            below = part.level - 1, part.theta, part.x_coarse
            sides.append(make(*below, weights=part.weights))
    return sides
