"""Overlaid marginals of several posteriors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from sbi.analysis import FigOptions, pairplot
from torch import Tensor

from sbi_multilevel.plots.style import LINE_STYLES, color

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
    axes: np.ndarray | Axes | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
) -> tuple[Figure | SubFigure, np.ndarray]:
    r"""Overlay posteriors on sbi's `pairplot`.

    The diagonal shows kernel density estimates of the marginals, the upper triangle
    contours around 68 % and 95 % of the mass of each posterior. Posteriors differ in
    line style and in color, from a palette for color-blind readers.

    Args:
        posteriors: Posteriors of sbi, or samples of shape `(n, d_theta)`, by name.
        x_o: Observation at which posteriors are sampled, shape `(1, *x_shape)`; their
            default x by default.
        truth: True parameters, shape `(d_theta,)`.
        labels: Names of the parameters.
        limits: Lower and upper limit of each parameter, shape `(d_theta, 2)`; the range
            of all samples by default.
        num_samples: Number of samples drawn from each posterior.
        axes: Axes to plot into, shape `(d_theta, d_theta)`, e.g. of a subfigure; a new
            figure by default.
        figsize: Width and height of a new figure, in inches.
        title: Title of a new figure.

    Returns:
        The figure, and an array of its axes, shape `(d_theta, d_theta)`.

    Raises:
        ValueError: If `posteriors` is not a dict or is empty, or the number of
            parameters of samples, truth, labels, limits and axes differs.

    Example:
    --------

    ::

        >>> import torch
        >>> samples = {"high": torch.randn(500, 2), "low": 1.5 * torch.randn(500, 2)}
        >>> figure, axes = compare(samples, truth=torch.zeros(2), labels=["a", "b"])
        >>> axes.shape
        (2, 2)
    """
    if not isinstance(posteriors, Mapping):
        raise ValueError(
            f"posteriors is a {type(posteriors).__name__}. Pass a dict of names and "
            'posteriors, e.g. `compare({"NPE": posterior}, x_o)`.'
        )
    if not posteriors:
        raise ValueError("posteriors is empty. Pass at least one, by name.")
    samples = {
        name: _samples(name, posterior, x_o, num_samples)
        for name, posterior in posteriors.items()
    }
    first, reference = next(iter(samples.items()))
    dim = reference.shape[1]
    point = None if truth is None else np.asarray(truth, dtype=float).reshape(-1)
    others = {"labels": labels, "limits": limits, "truth": point}
    sizes = {f"posteriors[{name!r}]": each.shape[1] for name, each in samples.items()}
    sizes |= {name: len(each) for name, each in others.items() if each is not None}
    for name, size in sizes.items():
        if size != dim:
            raise ValueError(
                f"{name} has {size} parameters, but posteriors[{first!r}] has {dim}. "
                "Pass the same parameters in all arguments."
            )
    figure, grid = _grid(axes, dim, figsize)
    pairplot(
        list(samples.values()),
        points=None if point is None else [point[np.newaxis]],
        limits=None if limits is None else torch.as_tensor(limits),
        labels=None if labels is None else list(labels),
        diag="kde",
        upper="contour",
        **_plot_options(list(samples), title),
        # sbi sets title and margins of the figure, also of one that was passed
        fig=figure if axes is None else Figure(),
        axes=_Single(grid[0, 0]) if dim == 1 else grid,  # pyright: ignore
    )
    if dim > 1:  # the axes of the legend would hide the label of those above
        grid[-1, 0].set_xlabel("")
        grid[-1, 0].patch.set_visible(False)
    return figure, grid


def _plot_options(names: list[str], title: str | None) -> dict[str, Any]:
    """Arguments of `pairplot` for colors, lines and the legend."""
    lines = [
        {"color": color(i), "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "lw": 1.8}
        for i in range(len(names))
    ]
    contours = [
        {"colors": [line["color"]], "linestyles": line["linestyle"]} for line in lines
    ]
    return {
        "diag_kwargs": [{"bins": _RESOLUTION, "mpl_kwargs": line} for line in lines],
        "upper_kwargs": [
            {"bins": _RESOLUTION, "levels": list(_CONTOURS), "mpl_kwargs": contour}
            for contour in contours
        ],
        "fig_kwargs": FigOptions(
            legend=True,
            legend_kwargs={"fontsize": "medium"},
            samples_labels=names,
            points_labels=["truth"],
            points_colors=["black"],
            points_diag={"linestyle": "--", "linewidth": 1},
            points_offdiag={"marker": "+", "markersize": 12, "markeredgewidth": 1.5},
            title=title,
        ),
    }


@dataclass(frozen=True)
class _Single:
    """Axes with the attribute `shape`, which sbi requires for one parameter."""

    axes: Axes
    shape = (1, 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.axes, name)


def _grid(
    axes: np.ndarray | Axes | None, dim: int, figsize: tuple[float, float] | None
) -> tuple[Figure | SubFigure, np.ndarray]:
    """The figure and axes that were passed, or new ones."""
    if axes is None:
        size = figsize or (2.2 * max(dim, 2) + 0.6,) * 2
        return plt.subplots(dim, dim, squeeze=False, figsize=size)
    grid = np.atleast_2d(np.array(axes, dtype=object))
    if grid.shape != (dim, dim):
        raise ValueError(
            f"axes has shape {grid.shape}, but posteriors have {dim} parameters. Pass "
            f"axes of shape {(dim, dim)}, e.g. from `plt.subplots({dim}, {dim})`."
        )
    return grid[0, 0].figure, grid


def _samples(
    name: str, posterior: Any, x_o: Tensor | None, num_samples: int
) -> np.ndarray:
    """Samples of a posterior, shape `(n, d_theta)`."""
    if hasattr(posterior, "sample"):
        posterior = posterior.sample((num_samples,), x=x_o, show_progress_bars=False)
    if isinstance(posterior, Tensor):
        posterior = posterior.detach().cpu().numpy()
    samples = np.array(posterior, dtype=float)  # a copy, which pairplot may change
    if samples.ndim != 2:
        raise ValueError(
            f"posteriors[{name!r}] has shape {samples.shape}, but samples must have "
            "shape (n, d_theta). Pass a posterior of sbi, or `samples.flatten(0, -2)`."
        )
    return samples
