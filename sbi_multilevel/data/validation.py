"""Checks of simulations: errors name the argument, its value, and the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import LevelSimulations


def check_levels_are_consecutive(levels: Sequence[int]) -> None:
    """Raise unless `levels` is 0, 1, ..., L."""
    if list(levels) != list(range(len(levels))) or not levels:
        raise ValueError(
            "levels must be 0 (the lowest fidelity), 1, ..., L without a gap and in "
            f"this order, but are {list(levels)}. Add the missing levels, or renumber "
            "them."
        )


def check_enough(level: LevelSimulations) -> None:
    """Raise if there are fewer than two simulations: one is held out."""
    if len(level) < 2:
        raise ValueError(
            f"Level {level.level} has {len(level)} valid simulations, but needs at "
            "least 2. Simulate more, or fix those with NaN or inf."
        )


def check_paired(level: LevelSimulations) -> None:
    """Raise if simulations above level 0 are not paired."""
    if level.level > 0 and not level.is_paired:
        raise ValueError(
            f"x_coarse is None with level={level.level}, but simulations above level 0 "
            f"must be paired. Pass the output of level {level.level - 1} at the same "
            "theta and noise."
        )


def check_same_shapes(level: LevelSimulations, reference: LevelSimulations) -> None:
    """Raise if theta or x have another shape than in `reference`."""
    for name in ("theta", "x"):
        new, old = (getattr(each, name).shape[1:] for each in (level, reference))
        if new != old:
            raise ValueError(
                f"{name} of level {level.level} has shape {tuple(new)}, but that of "
                f"level {reference.level} has {tuple(old)}. All levels must share one "
                "shape: summarise the outputs to common features."
            )


def check_device(data_device: str | None) -> None:
    """Raise unless PyTorch knows the device."""
    try:
        torch.device(data_device or "cpu")
    except RuntimeError as error:
        raise ValueError(
            f"data_device={data_device!r} is no device of PyTorch. Pass e.g. 'cpu' or "
            "'cuda'."
        ) from error


def check_same_device(new: Tensor, old: Tensor, level: int) -> None:
    """Raise if simulations of `level` are on another device than those before."""
    if new.device != old.device:
        raise ValueError(
            f"The simulations of level {level} are on device '{new.device}', those "
            f"before on '{old.device}'. Move all of them to one device."
        )


def check_level(level: int) -> None:
    """Raise unless `level` is an integer >= 0."""
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(
            f"level must be an integer >= 0, 0 being the lowest fidelity, but is "
            f"{level!r}."
        )


def check_columns(columns: Mapping[str, Tensor], level: int) -> None:
    """Raise unless theta, x and x_coarse are float32 tensors that fit each other."""
    for name, value in columns.items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name} of level {level} must be a float32 `torch.Tensor`, but is "
                f"{found}. Pass `torch.as_tensor({name}, dtype=torch.float32)`."
            )
        if value.ndim < 2:
            raise ValueError(
                f"{name} of level {level} must have shape (n, ...) with at least two "
                f"dimensions, but has {tuple(value.shape)}. Pass one number a "
                "simulation as shape (n, 1)."
            )
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The columns of level {level} differ in length: {lengths}. Each theta "
            "needs its own x (and x_coarse), in the same order."
        )
    devices = {name: str(value.device) for name, value in columns.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(
            f"The simulations of level {level} are on several devices: {devices}. Move "
            "all of them to one, e.g. with `.to('cpu')`."
        )
    if "x_coarse" in columns and columns["x"].shape != columns["x_coarse"].shape:
        raise ValueError(
            f"x of level {level} has shape {tuple(columns['x'].shape)}, x_coarse "
            f"{tuple(columns['x_coarse'].shape)}. Both levels must return the same "
            "features: summarise the outputs to a common shape."
        )


def check_weights(weights: Tensor | None, num_simulations: int, level: int) -> None:
    """Raise unless the weights are positive and finite, one a simulation."""
    if weights is None:
        return
    values = weights if isinstance(weights, Tensor) else torch.empty(0)
    if (
        values.shape != (num_simulations,)
        or not (values.isfinite() & (values > 0)).all()
    ):
        raise ValueError(
            f"weights of level {level} must be a tensor of {num_simulations} finite "
            f"numbers > 0, one a simulation, but has shape {tuple(values.shape)}"
            + (f" and minimum {values.min()}." if values.numel() else ".")
        )


def check_plain(theta: Tensor, x: Tensor, level: int, drops_invalid: bool) -> None:
    """Raise unless sbi can append these simulations.

    Args:
        theta: Parameters, shape `(n, d_theta)`.
        x: Outputs, shape `(n, *x_shape)`.
        level: Their level.
        drops_invalid: Whether sbi leaves out simulations with NaN or inf in x.

    Raises:
        ValueError: If they differ in length, or too many of them have NaN or inf.
    """
    columns = {"theta": theta, "x": x}
    check_columns(columns, level)
    for name, invalid in _invalid(columns, level).items():
        if invalid.any() and not (name == "x" and drops_invalid):
            raise ValueError(
                f"{name} of level {level} has NaN or inf in {int(invalid.sum())} of "
                f"{len(x)} simulations. Leave these out, or fix the simulator; "
                "likelihoods learned from the others are those of valid outputs only."
            )


def check_observation(x_o: Tensor) -> Tensor:
    """The observation with a leading dimension of one; raise if it has NaN or inf."""
    x_o = torch.as_tensor(x_o, dtype=torch.float32)
    if x_o.ndim < 2 or x_o.shape[0] != 1:
        x_o = x_o.unsqueeze(0)
    if x_o.ndim < 2 or not x_o.isfinite().all():
        raise ValueError(
            f"x_o must be one observation of finite numbers, shape x_shape or "
            f"(1, *x_shape), but has shape {tuple(x_o.shape[1:])} and "
            f"{int((~x_o.isfinite()).sum())} NaN or inf. Impute or summarise them."
        )
    return x_o


def valid_mask(columns: Mapping[str, Tensor], level: int) -> Tensor:
    """Simulations without NaN or inf in any column; warn of the others.

    Args:
        columns: theta, x and, for pairs, x_coarse.
        level: Their level.

    Returns:
        Whether each simulation is valid, shape `(n,)`.
    """
    invalid = _invalid(columns, level)
    dropped = torch.stack(list(invalid.values())).any(dim=0)
    if dropped.any():
        why = ", ".join(f"{int(bad.sum())} in {name}" for name, bad in invalid.items())
        together = " The two sides of a pair are dropped together."
        warnings.warn(
            f"Dropped {int(dropped.sum())} of {len(dropped)} simulations of level "
            f"{level}: NaN or inf ({why}).{together * (len(columns) == 3)} Likelihoods "
            "learned from the others are those of valid outputs only: they are biased "
            f"if failures depend on theta.{_of_unbounded_loss(invalid)}",
            stacklevel=5,
        )
    return ~dropped


def _invalid(columns: Mapping[str, Tensor], level: int) -> dict[str, Tensor]:
    """Simulations with NaN or inf in each column; raise if none is left."""
    invalid = {
        name: ~value.isfinite().flatten(1).all(dim=1) for name, value in columns.items()
    }
    dropped = torch.stack(list(invalid.values())).any(dim=0)
    if dropped.all():
        raise ValueError(
            f"Level {level} has 0 valid simulations of {len(dropped)}. Simulate more, "
            "or fix those with NaN or inf."
        )
    return invalid


def _of_unbounded_loss(invalid: Mapping[str, Tensor]) -> str:
    """A remark on pairs of which the coarse side alone is invalid."""
    if "x_coarse" not in invalid:
        return ""
    number = int((invalid["x_coarse"] & ~invalid["x"]).sum())
    if number == 0:
        return ""
    return (
        f" In {number} of them x_coarse alone is invalid: with a level above this one, "
        "the minus terms there lack their counterpart and the multilevel loss has no "
        "lower bound. Let the lower-fidelity simulator return a finite value instead."
    )


def warn_if_pairing_looks_broken(x: Tensor, x_coarse: Tensor, level: int) -> None:
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
    chosen = rng.permutation(len(x))[:500]
    sides = [each.flatten(1).cpu().numpy()[chosen] for each in (x, x_coarse)]
    a, b = (rankdata(side, axis=0) for side in sides)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = norm > 0
    if not varies.any():
        return True  # constant features do not show whether pairs are sound
    a, b, norm = a[:, varies], b[:, varies], norm[varies]

    def statistic(order: np.ndarray) -> float:
        return float(np.mean(np.abs((a * b[order]).sum(axis=0)) / norm))

    observed = statistic(np.arange(len(a)))
    shuffled = [statistic(rng.permutation(len(a))) for _ in range(num_permutations)]
    return observed > np.quantile(shuffled, 0.95)
