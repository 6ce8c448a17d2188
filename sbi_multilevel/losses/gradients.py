r"""The multilevel loss, the gradients of its terms, and how they are combined.

With :math:`f_l` the loss of a simulation of level l, e.g. :math:`-\log q(\theta \mid
x)`, the multilevel loss (Hikida et al. 2025, equation 2) is a signed sum of means, its
*terms*,

.. math::

    \ell(\phi) = \underbrace{\tfrac1{n_0}\textstyle\sum f_0}_{\text{base}}
    + \sum_{l=1}^{L} \Big( \underbrace{\tfrac1{n_l}\textstyle\sum f_l}_{\text{fine}}
    \underbrace{- \tfrac1{n_l}\textstyle\sum f_{l-1}}_{\text{coarse}} \Big),

fine and coarse on the same pairs. Its expectation is :math:`\mathbb{E} f_L`.

Its gradient is unbiased for that of :math:`\mathbb{E} f_L`, but the two large, opposite
gradients of a pair need not cancel in a small batch, and the correction may work
against the base. Algorithm 1 adjusts the gradients :math:`g_0, g^+_l, g^-_l` of the
terms (the sign of the coarse term is part of :math:`g^-_l`):

- *rescale*: :math:`g^-_l \leftarrow g^-_l\, \|g^+_l\| / \|g^-_l\|`;
- *project*: with :math:`g_c = \sum_l (g^+_l + g^-_l)`, if
  :math:`\langle g_0, g_c \rangle < 0` each of the two loses its component along the
  other, both computed from the unprojected pair;
- step along :math:`g_0 + g_c`.

Both rules gain stability and give up unbiasedness. With *project* a step is zero
wherever :math:`g_c = -c\, g_0` for any :math:`c > 0`, not only at the minimum of the
loss (:math:`c = 1`): where the minima of the base and of the loss are far apart,
training can stay near the former. With one level there is nothing to adjust. All
functions are pure.

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, Algorithm 1; an ablation of the two rules is
in their Appendix B.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

Adjustment = Literal["rescale_project", "rescale", "project", "none"]
ADJUSTMENTS: tuple[str, ...] = get_args(Adjustment)
GradientsOf = Callable[[Sequence[Tensor], Sequence[Parameter]], Tensor]


def multilevel_loss(
    losses: Tensor, term: Tensor, weights: Mapping[int, float]
) -> Tensor:
    r"""The loss of a batch, from the losses of its simulations.

    Args:
        losses: Loss of each simulation, shape `(n,)`; of a pair each side has its own.
        term: Index of the term that each belongs to, shape `(n,)`.
        weights: Weight of each term by its index: 1 for base and fine terms, -1 for
            coarse terms.

    Returns:
        The loss, shape `()`.

    Example:
    --------

    Two simulations of level 0 and one pair, :math:`(1 + 3) / 2 + 5 - 4`:

    ::

        >>> losses, term = torch.tensor([1.0, 3, 5, 4]), torch.tensor([0, 0, 1, 2])
        >>> multilevel_loss(losses, term, {0: 1.0, 1: 1.0, 2: -1.0})
        tensor(3.)
    """
    return torch.stack(multilevel_terms(losses, term, weights)).sum()


def multilevel_terms(
    losses: Tensor, term: Tensor, weights: Mapping[int, float]
) -> list[Tensor]:
    """The signed means of the terms, whose sum is `multilevel_loss`.

    Args:
        losses: As for `multilevel_loss`.
        term: As for `multilevel_loss`.
        weights: As for `multilevel_loss`.

    Returns:
        One scalar for each of `weights`; NaN for a term without simulations.
    """
    means = term_means(losses, term, max(weights) + 1)
    return list(losses.new_tensor(list(weights.values())) * means[list(weights)])


def term_means(losses: Tensor, term: Tensor, num_terms: int) -> Tensor:
    """Mean loss of each term.

    Args:
        losses: Loss of each simulation, shape `(n,)`.
        term: Index of the term that each belongs to, shape `(n,)`.
        num_terms: Number of terms T.

    Returns:
        Means, shape `(T,)`; NaN for a term without simulations.
    """
    sums = losses.new_zeros(num_terms).index_add(0, term, losses)
    return sums / torch.bincount(term, minlength=num_terms)


def flat_gradients(values: Sequence[Tensor], parameters: Sequence[Parameter]) -> Tensor:
    """Gradient of each of T scalars, flattened.

    Args:
        values: T scalars; they may share one graph, which is freed after the last.
        parameters: Parameters with P entries in all.

    Returns:
        Gradients, shape `(T, P)`; zero where a parameter has no influence.
    """
    options = {"allow_unused": True, "materialize_grads": True}
    gradients = []
    for i, value in enumerate(values, 1):
        keep = i < len(values)
        parts = torch.autograd.grad(value, parameters, retain_graph=keep, **options)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(gradients)


def assign_gradient(gradient: Tensor, parameters: Sequence[Parameter]) -> None:
    """Write a flat gradient, shape `(P,)`, to the `.grad` of the parameters."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)


def rescale(fine: Tensor, coarse: Tensor) -> Tensor:
    r"""The coarse gradient at the length of the fine one.

    .. math:: g^- \leftarrow g^-\, \|g^+\| / \|g^-\|

    Example:
    --------

    ::

        >>> rescale(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
        tensor([0., 5.])
    """
    length = coarse.norm(dim=-1, keepdim=True)
    ratio = fine.norm(dim=-1, keepdim=True) / length
    return coarse * ratio.where(length > 0, torch.ones_like(ratio))


def project(base: Tensor, correction: Tensor) -> tuple[Tensor, Tensor]:
    r"""Base and correction, each without its component against the other.

    .. math::

        g_0 \leftarrow g_0 - \frac{\langle g_0, g_c\rangle}{\|g_c\|^2} g_c, \qquad
        g_c \leftarrow g_c - \frac{\langle g_0, g_c\rangle}{\|g_0\|^2} g_0
        \qquad \text{if } \langle g_0, g_c\rangle < 0.

    Example:
    --------

    ::

        >>> project(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
        (tensor([0.5000, 0.5000]), tensor([0., 1.]))
    """
    inner = torch.dot(base, correction)
    if inner >= 0:
        return base, correction
    on_correction = inner / torch.dot(correction, correction)
    on_base = inner / torch.dot(base, base)
    return (
        torch.sub(base, correction, alpha=on_correction.item()),
        torch.sub(correction, base, alpha=on_base.item()),
    )


@dataclass(frozen=True, eq=False)
class GradientStep:
    r"""The direction of a step, and the gradients of the levels.

    Args:
        direction: The combined gradient, shape `(P,)`.
        levels: Gradients of the base and of the correction of each level,
            :math:`g_0, g^+_1 + g^-_1, \dots`, rescaled but not yet projected, shape
            `(1 + L, P)`; `None` where only the gradient of their sum was computed.
    """

    direction: Tensor
    levels: Tensor | None = None


def adjusted_step(
    values: Sequence[Tensor],
    parameters: Sequence[Parameter],
    adjustment: Adjustment,
    gradients_of: GradientsOf = flat_gradients,
) -> GradientStep:
    """A step from the signed means of the terms.

    Args:
        values: Signed means whose sum is the loss, in the order that `combine` expects.
        parameters: Parameters to differentiate with respect to.
        adjustment: As in `combine`.
        gradients_of: How the gradients of the terms are computed.

    Example:
    --------

    ::

        >>> weight = Parameter(torch.tensor([1.0, 2.0]))
        >>> values = [weight.sum(), (weight**2).sum(), -2 * weight[1]]
        >>> step = adjusted_step(values, [weight], "project")
        >>> step.direction, step.levels
        (tensor([3., 3.]), tensor([[1., 1.],
                                   [2., 2.]]))
    """
    if adjustment == "none":  # the gradient of the sum, in one backward pass
        total = torch.stack(list(values)).sum()
        return GradientStep(flat_gradients([total], parameters)[0])
    return combine(gradients_of(values, parameters), adjustment)


def combine(
    gradients: Tensor, adjustment: Adjustment = "rescale_project"
) -> GradientStep:
    r"""A step from the gradients of the terms (Algorithm 1).

    Args:
        gradients: Signed term gradients in the order
            :math:`g_0, g^+_1, g^-_1, g^+_2, g^-_2, \dots`, shape `(1 + 2 L, P)`.
        adjustment: `"rescale_project"` (both rules), `"rescale"`, `"project"`, or
            `"none"` (the plain, unbiased sum).
    """
    base, fine, coarse = gradients[0], gradients[1::2], gradients[2::2]
    if "rescale" in adjustment:
        coarse = rescale(fine, coarse)
    levels = torch.cat([base[None], fine + coarse])
    correction = levels[1:].sum(dim=0)
    if "project" in adjustment:
        base, correction = project(base, correction)
    return GradientStep(base + correction, levels)


def level_norms(gram: Tensor) -> Tensor:
    r"""Norm of the gradient of each level's part of the loss, shape `(..., 1 + L)`.

    Args:
        gram: Inner products :math:`\langle g_l, g_m \rangle` of
            `GradientStep.levels`, shape `(..., 1 + L, 1 + L)`.
    """
    return torch.diagonal(gram, dim1=-2, dim2=-1).sqrt()


def base_cosine(gram: Tensor) -> Tensor:
    r"""Cosine between the gradient of the base and that of all corrections.

    .. math:: \frac{\langle g_0, g_c \rangle}{\|g_0\| \|g_c\|},
        \qquad g_c = \sum_{l \ge 1} g_l

    `project` changes gradients where it is below 0.

    Args:
        gram: As in `level_norms`.

    Returns:
        Cosines, shape `(...)`; NaN where a gradient is zero.
    """
    inner = gram[..., 0, 1:].sum(dim=-1)
    squares = gram[..., 0, 0] * gram[..., 1:, 1:].sum(dim=(-2, -1))
    return inner / squares.sqrt()
