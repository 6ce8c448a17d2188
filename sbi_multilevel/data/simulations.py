r"""The data: rows of every level, validated once, here.

A multilevel data set holds, for each level :math:`l = 0, \dots, L` (0 the cheapest, L
the one to infer with), :math:`n_l` rows. A row of level 0 is :math:`(\theta, x)` with
:math:`x = G_0(\theta, u)`. A row of level :math:`l \ge 1` is *paired* (seed-matched):

.. math::  (\theta,\; x = G_l(\theta, u),\; x_\mathrm{coarse} = G_{l-1}(\theta, u)),

the same :math:`\theta` and the same noise :math:`u` on both sides. Rows are checked
when they are made (by `sbi_multilevel.data.validation`), and nowhere again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.data.validation import (
    check_enough,
    check_level,
    check_levels_are_consecutive,
    check_rows_fit,
    check_same_device,
    check_shapes,
    check_tensor,
    check_weights,
    valid_rows,
    warn_if_pairing_looks_broken,
)
from sbi_multilevel.utils.argument_types import check_field_types
from sbi_multilevel.utils.files import expect, read_arrays, tensor_of, understood

_COLUMNS = ("theta", "x", "x_coarse", "weights")


@dataclass(frozen=True, eq=False)
class LevelSimulations:
    r"""Rows of one level.

    Rows with a NaN or an infinity in `theta`, `x` or `x_coarse` are dropped, the two
    sides of a pair together, with a warning that says how many and why.

    Args:
        level: The level the rows belong to, 0 being the cheapest.
        theta: Parameters, shape `(n, d_theta)`.
        x: Outputs of the simulator of this level, shape `(n, *x_shape)`.
        x_coarse: Outputs of the simulator one level below at the same theta and the
            same noise, shape `(n, *x_shape)`; `None` where the rows are not paired.
        weights: Weight of each row in the loss, shape `(n,)`, e.g. for rows that are no
            draws from the prior; `None` where all weigh the same.

    Raises:
        ValueError: If the arguments do not fit each other, or if no valid row is left.

    Example:
    --------

    ::

        >>> import torch
        >>> rows = LevelSimulations(0, torch.zeros(3, 2), torch.ones(3, 5))
        >>> len(rows), rows.is_paired
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
                "Pass the rows without x_coarse, or name the level that made x."
            )
        columns = {"theta": self.theta, "x": self.x}
        if self.x_coarse is not None:
            columns["x_coarse"] = self.x_coarse
        for name, value in columns.items():
            check_tensor(name, value, self.level)
        check_shapes(columns, self.level)
        check_weights(self.weights, len(self.theta), self.level)
        valid = valid_rows(columns, self.level)
        if not valid.all():
            kept = {**columns, "weights": self.weights}
            for name, value in kept.items():
                if value is not None:
                    object.__setattr__(self, name, value[valid])
        if self.x_coarse is not None:
            warn_if_pairing_looks_broken(self.x, self.x_coarse, self.level)

    def __len__(self) -> int:
        return self.theta.shape[0]

    def __repr__(self) -> str:
        pairs = "paired" if self.is_paired else "not paired"
        weights = "" if self.weights is None else ", weighted"
        return (
            f"LevelSimulations(level {self.level}: {len(self)} rows, {pairs}{weights}, "
            f"theta {tuple(self.theta.shape[1:])}, x {tuple(self.x.shape[1:])} a row)"
        )

    @property
    def is_paired(self) -> bool:
        """Whether each row carries the output of the level below."""
        return self.x_coarse is not None

    def __getitem__(self, index: Tensor) -> LevelSimulations:
        """Rows at `index`, without validating them a second time."""
        x_coarse = None if self.x_coarse is None else self.x_coarse[index]
        weights = None if self.weights is None else self.weights[index]
        return self.trusted(
            self.level, self.theta[index], self.x[index], x_coarse, weights
        )

    @classmethod
    def trusted(
        cls,
        level: int,
        theta: Tensor,
        x: Tensor,
        x_coarse: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> LevelSimulations:
        """Rows that were validated before; nothing is checked or dropped.

        Args:
            level: As of the class.
            theta: As of the class.
            x: As of the class.
            x_coarse: As of the class.
            weights: As of the class.
        """
        rows = object.__new__(cls)
        columns = {"theta": theta, "x": x, "x_coarse": x_coarse, "weights": weights}
        vars(rows).update(level=level, **columns)
        return rows

    @property
    def loss_weights(self) -> Tensor:
        """Weights with mean 1, shape `(n,)`."""
        if self.weights is None:
            return torch.ones(len(self), device=self.theta.device)
        return self.weights / self.weights.mean()


@dataclass(frozen=True, eq=False)
class MultilevelSimulations:
    r"""Rows of the levels 0 to L, one entry a level.

    Args:
        levels: Rows of level 0, 1, ..., L in this order. Those above level 0 are paired
            or not; the multilevel recipe needs pairs, transfer does not.
        costs: Cost :math:`C_l` of one run of each simulator (seconds unless the user
            says otherwise), or `None` where unknown.

    Raises:
        ValueError: If a level is missing, out of order, has fewer than two rows, or
            parameters or outputs of another shape or device than level 0.

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
        check_levels_are_consecutive([rows.level for rows in self.levels])
        for rows in self.levels:
            check_enough(rows)
        for rows in self.levels[1:]:
            check_rows_fit(rows, self.levels[0])
            check_same_device(rows.theta, self.levels[0].theta, rows.level)
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
        levels = ",\n".join(f"  {rows!r}" for rows in self.levels)
        costs = (
            "unknown"
            if self.costs is None
            else ", ".join(f"{cost:.3g}" for cost in self.costs)
        )
        return f"MultilevelSimulations(costs a run: {costs},\n{levels})"

    def __getitem__(self, level: int) -> LevelSimulations:
        return self.levels[level]

    def __iter__(self) -> Iterator[LevelSimulations]:
        return iter(self.levels)

    @property
    def num_simulations(self) -> tuple[int, ...]:
        r"""Rows of each level, :math:`(n_0, \dots, n_L)`."""
        return tuple(len(rows) for rows in self.levels)

    @property
    def total_cost(self) -> float | None:
        r""":math:`n_0 C_0 + \sum_{l \ge 1} n_l (C_l + C_{l-1})`; `None` if unknown.

        An unpaired row of level l costs :math:`C_l` only.
        """
        if self.costs is None:
            return None
        below = (0.0, *self.costs[:-1])
        return sum(
            len(rows) * (cost + coarse * rows.is_paired)
            for rows, cost, coarse in zip(self.levels, self.costs, below)
        )

    def select(self, indices: Sequence[Tensor]) -> MultilevelSimulations:
        """Some of the rows of each level.

        Args:
            indices: Indices of the rows of each level, from level 0 up, each of shape
                `(m,)`.
        """
        parts = tuple(rows[i] for rows, i in zip(self.levels, indices, strict=True))
        return replace(self, levels=parts)

    def save(self, path: str | os.PathLike) -> None:
        """Write all rows as a plain `.npz` archive, without pickle.

        Args:
            path: The file, with whatever ending.
        """
        arrays: dict[str, np.ndarray] = {"num_levels": np.array(len(self))}
        if self.costs is not None:
            arrays["costs"] = np.array(self.costs)
        for rows in self.levels:
            for name in _COLUMNS:
                value = getattr(rows, name)
                if value is not None:
                    arrays[f"{name}_{rows.level}"] = value.cpu().numpy()
        with Path(path).open("wb") as file:  # keeps np from renaming the file
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
            levels = [
                LevelSimulations(
                    level,
                    tensor_of(arrays, f"theta_{level}"),
                    tensor_of(arrays, f"x_{level}"),
                    **{
                        name: tensor_of(arrays, f"{name}_{level}")
                        for name in ("x_coarse", "weights")
                        if f"{name}_{level}" in arrays
                    },
                )
                for level in range(int(count))
            ]
            costs = None
            if "costs" in arrays:
                costs = tuple(tensor_of(arrays, "costs").flatten().tolist())
            return cls(tuple(levels), costs)


def merge_rows(parts: Iterable[LevelSimulations]) -> LevelSimulations:
    """Rows of one level in one piece; `parts` are validated already.

    They stay paired only if all of them are.
    """
    parts = list(parts)
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


def merge_levels(parts: Iterable[LevelSimulations]) -> MultilevelSimulations:
    """All rows, one entry a level; `parts` are validated already."""
    by_level: dict[int, list[LevelSimulations]] = defaultdict(list)
    for part in parts:
        by_level[part.level].append(part)
    return MultilevelSimulations(
        tuple(merge_rows(by_level[level]) for level in sorted(by_level))
    )


def split_pairs(parts: Iterable[LevelSimulations]) -> list[LevelSimulations]:
    """The same rows without pairs: a coarse side becomes rows of the level below."""
    sides = []
    for part in parts:
        sides.append(_unpaired(part, part.level, part.x))
        if part.x_coarse is not None:
            sides.append(_unpaired(part, part.level - 1, part.x_coarse))
    return sides


def _unpaired(rows: LevelSimulations, level: int, x: Tensor) -> LevelSimulations:
    """The theta and weights of `rows` with x of a level, unpaired."""
    return LevelSimulations.trusted(level, rows.theta, x, weights=rows.weights)
