r"""The data: rows of every level, validated once, here.

A multilevel data set holds, for each level :math:`l = 0, \dots, L` (0 the cheapest, L
the one to infer with), :math:`n_l` rows. A row of level 0 is :math:`(\theta, x)` with
:math:`x = G_0(\theta, u)`. A row of level :math:`l \ge 1` is *paired* (seed-matched):

.. math::  (\theta,\; x = G_l(\theta, u),\; x_\mathrm{coarse} = G_{l-1}(\theta, u)),

the same :math:`\theta` and the same noise :math:`u` on both sides. Nothing else in the
package checks shapes, devices or invalid values again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor


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

    Raises:
        ValueError: If the arguments do not fit each other, or if fewer than two valid
            rows are left.

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

    def __post_init__(self) -> None:
        _check_level(self.level)
        if self.level == 0 and self.x_coarse is not None:
            raise ValueError(
                "x_coarse was passed with level=0, but there is no level below 0. "
                "Pass the rows without x_coarse, or name the level that made x."
            )
        columns = {"theta": self.theta, "x": self.x, "x_coarse": self.x_coarse}
        columns = {name: value for name, value in columns.items() if value is not None}
        for name, value in columns.items():
            _check_tensor(name, value, self.level)
        _check_shapes(columns, self.level)
        for name, value in _drop_invalid(columns, self.level).items():
            object.__setattr__(self, name, value)
        if self.x_coarse is not None:
            _warn_if_pairing_looks_broken(self.x, self.x_coarse, self.level)

    def __len__(self) -> int:
        return self.theta.shape[0]

    @property
    def is_paired(self) -> bool:
        """Whether each row carries the output of the level below."""
        return self.x_coarse is not None

    def __getitem__(self, index: Tensor) -> LevelSimulations:
        """Rows at `index`, without validating them a second time."""
        x_coarse = None if self.x_coarse is None else self.x_coarse[index]
        return self.trusted(self.level, self.theta[index], self.x[index], x_coarse)

    @classmethod
    def trusted(
        cls, level: int, theta: Tensor, x: Tensor, x_coarse: Tensor | None = None
    ) -> LevelSimulations:
        """Rows that were validated before; nothing is checked or dropped."""
        rows = object.__new__(cls)
        vars(rows).update(level=level, theta=theta, x=x, x_coarse=x_coarse)
        return rows


@dataclass(frozen=True, eq=False)
class MultilevelSimulations:
    r"""Rows of the levels 0 to L, one entry a level.

    Args:
        levels: Rows of level 0, 1, ..., L in this order; all above level 0 are paired.
        costs: Cost :math:`C_l` of one run of each simulator (seconds unless the user
            says otherwise), or `None` where unknown.

    Raises:
        ValueError: If a level is missing, out of order, not paired, or has parameters
            or outputs of another shape or device than level 0.

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
        object.__setattr__(self, "levels", tuple(self.levels))
        check_levels_are_consecutive([rows.level for rows in self.levels])
        for rows in self.levels[1:]:
            if not rows.is_paired:
                raise ValueError(
                    f"The rows of level {rows.level} have no x_coarse. Rows above "
                    f"level 0 must be paired: pass x_coarse, the output of level "
                    f"{rows.level - 1} at the same theta and noise."
                )
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
        r""":math:`n_0 C_0 + \sum_{l \ge 1} n_l (C_l + C_{l-1})`; `None` if unknown."""
        if self.costs is None:
            return None
        below = (0.0, *self.costs[:-1])
        per_row = [cost + coarse for cost, coarse in zip(self.costs, below)]
        return sum(n * c for n, c in zip(self.num_simulations, per_row))

    def select(self, indices: Sequence[Tensor]) -> MultilevelSimulations:
        """The rows at `indices[l]` of each level `l`."""
        parts = tuple(rows[i] for rows, i in zip(self.levels, indices, strict=True))
        return replace(self, levels=parts)

    def save(self, path: str | os.PathLike) -> None:
        """Write all rows to `path` as a plain `.npz` archive, without pickle."""
        arrays: dict[str, np.ndarray] = {"num_levels": np.array(len(self))}
        if self.costs is not None:
            arrays["costs"] = np.array(self.costs)
        for rows in self.levels:
            for name in ("theta", "x", "x_coarse"):
                value = getattr(rows, name)
                if value is not None:
                    arrays[f"{name}_{rows.level}"] = value.cpu().numpy()
        with Path(path).open("wb") as file:  # keeps np from renaming the file
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> MultilevelSimulations:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file holds no multilevel simulations, or pickled data.
        """
        with np.load(path, allow_pickle=False) as file:
            if "num_levels" not in file:
                raise ValueError(
                    f"path={str(path)!r} holds no multilevel simulations (it has "
                    f"{sorted(file.files)}). Pass a file written by "
                    "`MultilevelSimulations.save`."
                )
            levels = [
                LevelSimulations(
                    level,
                    *(
                        torch.from_numpy(file[f"{name}_{level}"])
                        for name in ("theta", "x", "x_coarse")
                        if f"{name}_{level}" in file
                    ),
                )
                for level in range(int(file["num_levels"]))
            ]
            costs = tuple(file["costs"].tolist()) if "costs" in file else None
        return cls(tuple(levels), costs)


def merge_rows(parts: Iterable[LevelSimulations]) -> LevelSimulations:
    """Rows of one level in one piece; `parts` are validated already."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    coarse = [part.x_coarse for part in parts if part.x_coarse is not None]
    return LevelSimulations.trusted(
        parts[0].level,
        torch.cat([part.theta for part in parts]),
        torch.cat([part.x for part in parts]),
        torch.cat(coarse) if coarse else None,
    )


def check_levels_are_consecutive(levels: Sequence[int]) -> None:
    """Raise unless `levels` is 0, 1, ..., L."""
    if list(levels) != list(range(len(levels))) or not levels:
        raise ValueError(
            f"levels must be 0 (the cheapest), 1, ..., L without a gap and in this "
            f"order, but are {list(levels)}. Add the missing levels, or renumber them."
        )


def check_rows_fit(rows: LevelSimulations, reference: LevelSimulations) -> None:
    """Raise if theta or x of a row have another shape than in `reference`."""
    for name in ("theta", "x"):
        new, old = getattr(rows, name), getattr(reference, name)
        if new.shape[1:] != old.shape[1:]:
            raise ValueError(
                f"{name} of level {rows.level} has shape {tuple(new.shape[1:])} a row, "
                f"but that of level {reference.level} has {tuple(old.shape[1:])}. All "
                "levels must share one shape: summarise the outputs to common features."
            )


def check_same_device(new: Tensor, old: Tensor, level: int) -> None:
    """Raise if rows of `level` lie on another device than those before."""
    if new.device != old.device:
        raise ValueError(
            f"The rows of level {level} are on device '{new.device}', those before on "
            f"'{old.device}'. Move all of them to one device."
        )


def _check_level(level: int) -> None:
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(
            f"level must be an integer >= 0 (0 is the cheapest), but is {level!r}."
        )


def _check_tensor(name: str, value: Tensor, level: int) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} of level {level} must be a float32 `torch.Tensor`, but is {found}."
            f" Pass `torch.as_tensor({name}, dtype=torch.float32)`."
        )
    if value.ndim < 2:
        raise ValueError(
            f"{name} of level {level} must have shape (n, ...) with at least two "
            f"dimensions, but has {tuple(value.shape)}. A scalar per row is (n, 1)."
        )


def _check_shapes(columns: dict[str, Tensor], level: int) -> None:
    lengths = {name: value.shape[0] for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The rows of level {level} differ in length: {lengths}. Each theta needs "
            "its own x (and x_coarse), in the same order."
        )
    devices = {name: str(value.device) for name, value in columns.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(
            f"The rows of level {level} lie on several devices: {devices}. Move all of "
            "them to one, e.g. with `.to('cpu')`."
        )
    if "x_coarse" in columns and columns["x"].shape != columns["x_coarse"].shape:
        raise ValueError(
            f"x of level {level} has shape {tuple(columns['x'].shape)}, x_coarse "
            f"{tuple(columns['x_coarse'].shape)}. Both levels must return the same "
            "features: summarise the outputs to a common shape."
        )


def _drop_invalid(columns: dict[str, Tensor], level: int) -> dict[str, Tensor]:
    invalid = {
        name: ~torch.isfinite(value).flatten(1).all(dim=1)
        for name, value in columns.items()
    }
    dropped = torch.stack(list(invalid.values())).any(dim=0)
    num_dropped, num_rows = int(dropped.sum()), dropped.numel()
    if num_rows - num_dropped < 2:
        raise ValueError(
            f"Level {level} has {num_rows - num_dropped} valid rows of {num_rows}, but "
            "needs at least 2. Simulate more rows, or mend those with NaN or inf."
        )
    if num_dropped == 0:
        return columns
    why = ", ".join(f"{int(bad.sum())} in {name}" for name, bad in invalid.items())
    together = " The two sides of a pair are dropped together." * (len(columns) == 3)
    warnings.warn(
        f"Dropped {num_dropped} of {num_rows} rows of level {level}: NaN or inf "
        f"({why}).{together} Likelihoods learned from the remaining rows are those of "
        "valid outputs only: if failing depends on theta, they are biased.",
        stacklevel=5,
    )
    return {name: value[~dropped] for name, value in columns.items()}


def _warn_if_pairing_looks_broken(x: Tensor, x_coarse: Tensor, level: int) -> None:
    """Warn if the two sides of the pairs are the same, or have nothing in common."""
    if torch.equal(x, x_coarse):
        what = "is identical to x: was the same simulator run twice?"
    elif len(x) >= 10 and not _are_associated(x, x_coarse):
        what = "is uncorrelated with x: were both run at the same theta and noise?"
    else:
        return
    warnings.warn(
        f"The pairing of level {level} looks broken: x_coarse {what}", stacklevel=5
    )


def _are_associated(x: Tensor, x_coarse: Tensor, num_permutations: int = 99) -> bool:
    """Permutation test (level 5 %) on the mean absolute rank correlation."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(x))[:500]
    a, b = (
        rankdata(value.flatten(1).cpu().numpy()[rows], axis=0)
        for value in (x, x_coarse)
    )
    a, b = (value - value.mean(axis=0) for value in (a, b))
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = norm > 0
    if not varies.any():
        return True  # constant features say nothing about the pairing
    a, b, norm = a[:, varies], b[:, varies], norm[varies]

    def statistic(order: np.ndarray) -> float:
        return float(np.mean(np.abs((a * b[order]).sum(axis=0)) / norm))

    observed = statistic(np.arange(len(a)))
    shuffled = [statistic(rng.permutation(len(a))) for _ in range(num_permutations)]
    return observed > np.quantile(shuffled, 0.95)
