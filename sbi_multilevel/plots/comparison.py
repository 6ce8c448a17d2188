"""Posteriors of several fidelities or recipes, one over the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import FigureBase
from sbi.analysis import FigOptions, pairplot
from torch import Tensor

from sbi_multilevel.plots.style import LINE_STYLES, colour

_CONTOURS = (0.68, 0.95)  # of the mass
_RESOLUTION = 80


def compare(
    posteriors: Mapping[str, Any],
    x_o: Tensor | None = None,
    *,
    truth: Tensor | np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    limits: Sequence[Sequence[float]] | Tensor | None = None,
    num_samples: int = 1_000,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
) -> tuple[FigureBase, np.ndarray]:
    r"""Overlay posteriors on sbi's `pairplot`.

    The diagonal has kernel density estimates of the marginals, the rest contours around
    68 % and 95 % of the mass of each posterior, in colours that the colour-blind tell
    apart and in different lines.

    Args:
        posteriors: By name, each a posterior of sbi or samples of one, shape
            `(n, d_theta)`.
        x_o: The observation that posteriors are sampled at, shape `(1, *x_shape)`;
            their default x if left out.
        truth: The true parameters, if known, shape `(d_theta,)`.
        labels: Names of the parameters.
        limits: Lower and upper end of the axis of each parameter, shape `(d_theta, 2)`;
            by default what holds all samples.
        num_samples: Samples drawn from each posterior.
        figsize: Width and height, in inches.
        title: Title.

    Returns:
        The figure, and an array of its axes, shape `(d_theta, d_theta)`.

    Raises:
        ValueError: If there is no posterior, or samples, truth, labels and limits are
            not of one number of parameters.

    Example:
    --------

    ::

        >>> import torch
        >>> exact, rough = torch.randn(500, 2), 1.5 * torch.randn(500, 2)
        >>> figure, axes = compare(
        ...     {"dear": exact, "cheap": rough}, truth=torch.zeros(2), labels=["a", "b"]
        ... )
        >>> axes.shape
        (2, 2)
    """
    if not posteriors:
        raise ValueError("posteriors is empty. Pass at least one, by name.")
    samples = {
        name: _samples(name, posterior, x_o, num_samples)
        for name, posterior in posteriors.items()
    }
    (first, reference), count = next(iter(samples.items())), len(samples)
    dim = reference.shape[1]
    for name, rows in samples.items():
        _check_size(f"posteriors[{name!r}]", rows.shape[1], dim, first)
    for name, value in (("labels", labels), ("limits", limits)):
        if value is not None:
            _check_size(name, len(value), dim, first)
    point = None if truth is None else np.asarray(truth, dtype=float).reshape(1, -1)
    if point is not None:
        _check_size("truth", point.shape[1], dim, first)
    lines = [LINE_STYLES[i % len(LINE_STYLES)] for i in range(count)]
    options = FigOptions(
        legend=True,
        legend_kwargs={"fontsize": "medium"},
        samples_labels=list(samples),
        points_labels=["truth"],
        points_colors=["black"],
        points_diag={"linestyle": "--", "linewidth": 1},
        points_offdiag={"marker": "+", "markersize": 12, "markeredgewidth": 1.5},
        title=title,
    )
    figure, axes = pairplot(
        list(samples.values()),
        points=None if point is None else [point],
        limits=None if limits is None else torch.as_tensor(limits),
        labels=None if labels is None else list(labels),
        diag="kde",
        upper="contour",
        diag_kwargs=[
            {
                "bins": _RESOLUTION,
                "mpl_kwargs": {"color": colour(i), "linestyle": line, "lw": 1.8},
            }
            for i, line in enumerate(lines)
        ],
        upper_kwargs=[
            {
                "bins": _RESOLUTION,
                "levels": list(_CONTOURS),
                "mpl_kwargs": {"colors": [colour(i)], "linestyles": line},
            }
            for i, line in enumerate(lines)
        ],
        figsize=figsize or (2.2 * max(dim, 2) + 0.6,) * 2,
        fig_kwargs=options,
    )
    grid = np.array(axes).reshape(dim, dim)
    if dim > 1:  # the cell of the legend would hide the label of the cell above
        grid[-1, 0].set_xlabel("")
        grid[-1, 0].patch.set_visible(False)
    return figure, grid


def _samples(
    name: str, posterior: Any, x_o: Tensor | None, num_samples: int
) -> np.ndarray:
    """Samples as they are, or drawn."""
    if hasattr(posterior, "sample"):
        posterior = posterior.sample((num_samples,), x=x_o, show_progress_bars=False)
    if isinstance(posterior, Tensor):
        posterior = posterior.detach().cpu().numpy()
    rows = np.array(posterior, dtype=float)  # a copy, which pairplot may change
    if rows.ndim != 2:
        raise ValueError(
            f"posteriors[{name!r}] has shape {rows.shape}, but samples must be of "
            "shape (n, d_theta). Pass a posterior of sbi, or `samples.flatten(0, -2)`."
        )
    return rows


def _check_size(name: str, found: int, dim: int, first: str) -> None:
    if found != dim:
        raise ValueError(
            f"{name} is of {found} parameters, but posteriors[{first!r}] of {dim}. "
            "Pass one entry a parameter, of the same parameters everywhere."
        )
