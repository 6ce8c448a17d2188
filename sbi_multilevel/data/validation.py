"""Checks of simulations: errors name the argument, what came, and the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sbi.utils import mcmc_transform
from scipy.stats import rankdata
from torch import Tensor
from torch.distributions import Distribution

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import LevelSimulations


def check_levels_are_consecutive(levels: Sequence[int]) -> None:
    """Raise unless `levels` is 0, 1, ..., L."""
    if list(levels) != list(range(len(levels))) or not levels:
        raise ValueError(
            f"levels must be 0 (the cheapest), 1, ..., L without a gap and in this "
            f"order, but are {list(levels)}. Add the missing levels, or renumber them."
        )


def check_enough(rows: LevelSimulations) -> None:
    """Raise if there are fewer than two rows: one to train on, one to hold out."""
    if len(rows) < 2:
        raise ValueError(
            f"Level {rows.level} has {len(rows)} valid rows, but needs at least 2. "
            "Simulate more rows, or mend those with NaN or inf."
        )


def check_paired(rows: LevelSimulations) -> None:
    """Raise if rows above level 0 have no coarse side."""
    if rows.level > 0 and not rows.is_paired:
        raise ValueError(
            f"x_coarse is None with level={rows.level}: the rows of level {rows.level} "
            "have no x_coarse. Rows above level 0 must be paired: pass the output of "
            f"level {rows.level - 1} at the same theta and noise."
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
    """Raise if rows of `level` lie on another device than those before."""
    if new.device != old.device:
        raise ValueError(
            f"The rows of level {level} are on device '{new.device}', those before on "
            f"'{old.device}'. Move all of them to one device."
        )


def check_level(level: int) -> None:
    """Raise unless `level` is an integer >= 0."""
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(
            f"level must be an integer >= 0 (0 is the cheapest), but is {level!r}."
        )


def check_tensor(name: str, value: Tensor, level: int) -> None:
    """Raise unless a column is a float32 tensor with at least two dimensions."""
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


def check_shapes(columns: dict[str, Tensor], level: int) -> None:
    """Raise unless the columns share length and device, and both sides a shape."""
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


def check_weights(weights: Tensor | None, num_rows: int, level: int) -> None:
    """Raise unless the weights are positive and finite, one a row."""
    if weights is None:
        return
    check = weights if isinstance(weights, Tensor) else torch.empty(0)
    if check.shape != (num_rows,) or not (check.isfinite() & (check > 0)).all():
        raise ValueError(
            f"weights of level {level} must be a tensor of {num_rows} finite numbers "
            f"> 0, one a row, but has shape {tuple(check.shape)}"
            + (f" and minimum {check.min()}." if check.numel() else ".")
        )


def has_support(prior: Any) -> bool:
    """Whether a prior says where it has mass; distributions of users may not."""
    try:
        return prior.support is not None
    except (AttributeError, NotImplementedError):
        return False


def check_inside(prior: Any, rows: LevelSimulations) -> None:
    """Raise if theta of a row lies outside the support of the prior."""
    outside = ~prior.support.check(rows.theta)
    if outside.any():
        first = rows.theta[outside][0].tolist()
        raise ValueError(
            f"theta of {int(outside.sum())} of {len(rows)} rows of level {rows.level} "
            f"lies outside the support of the prior, e.g. {first}, but is modelled "
            "inside it. Leave these rows out, pass the prior they were drawn from, or "
            "set `unconstrained=False` in the recipe."
        )


def check_prior(prior: Any) -> None:
    """Raise unless trainers of sbi take the prior."""
    if prior is not None and not isinstance(prior, Distribution):
        raise TypeError(
            f"prior is a {type(prior).__name__}, but must be a distribution of PyTorch "
            "or sbi, e.g. `BoxUniform(low, high)`. For others see "
            "`sbi.utils.user_input_checks.process_prior`."
        )


def transform_of(prior: Any) -> Any:
    """sbi's transform from theta to unconstrained space.

    Raises:
        ValueError: If the prior has none.
    """
    try:
        return mcmc_transform(prior)
    except AssertionError as error:
        raise ValueError(
            f"prior={prior} has no finite mean and standard deviation, by which sbi "
            "scales parameters without bounds. Pass a prior that has both, e.g. a "
            "Student-t distribution of more than 2 degrees of freedom. To build a "
            "posterior by NPE without this scaling, pass "
            "`posterior_parameters=DirectPosteriorParameters(enable_transform=False)`."
        ) from error


def check_plain_rows(theta: Tensor, x: Tensor, level: int, drops_invalid: bool) -> None:
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
    for name, column in columns.items():
        check_tensor(name, column, level)
    check_shapes(columns, level)
    for name, column in columns.items():
        invalid = ~column.isfinite().flatten(1).all(dim=1)
        number, total = int(invalid.sum()), len(column)
        if number == total:
            raise ValueError(
                f"Level {level} has 0 valid simulations of {total}. Simulate more, or "
                "fix those with NaN or inf."
            )
        if number and not (name == "x" and drops_invalid):
            raise ValueError(
                f"{name} of level {level} has NaN or inf in {number} of {total} "
                "simulations. Leave these out, or fix the simulator; likelihoods "
                "learned from the others are those of valid outputs only."
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


def valid_rows(columns: dict[str, Tensor], level: int) -> Tensor:
    """Rows without NaN or inf in any column, with a warning that counts the others."""
    invalid = {
        name: ~torch.isfinite(value).flatten(1).all(dim=1)
        for name, value in columns.items()
    }
    dropped = torch.stack(list(invalid.values())).any(dim=0)
    num_dropped, num_rows = int(dropped.sum()), dropped.numel()
    if num_rows == num_dropped:
        raise ValueError(
            f"Level {level} has 0 valid rows of {num_rows}. Simulate more rows, or "
            "mend those with NaN or inf."
        )
    if num_dropped > 0:
        why = ", ".join(f"{int(bad.sum())} in {name}" for name, bad in invalid.items())
        together = " The two sides of a pair are dropped together."
        warnings.warn(
            f"Dropped {num_dropped} of {num_rows} rows of level {level}: NaN or inf "
            f"({why}).{together * (len(columns) == 3)} Likelihoods learned from the "
            "remaining rows are those of valid outputs only: if failing depends on "
            f"theta, they are biased.{_of_unbounded_loss(invalid)}",
            stacklevel=5,
        )
    return ~dropped


def _of_unbounded_loss(invalid: dict[str, Tensor]) -> str:
    """What to add where a cheap side fails and the dear side of the pair does not."""
    if "x_coarse" not in invalid:
        return ""
    number = int((invalid["x_coarse"] & ~invalid["x"]).sum())
    if number == 0:
        return ""
    return (
        f" In {number} of them x_coarse alone is invalid: with a level above this one, "
        "the minus terms there lack their counterpart and the multilevel loss has no "
        "lower bound. Let the cheaper simulator return something finite instead."
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
