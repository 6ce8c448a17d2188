r"""The multilevel loss of Hikida et al. (2025), equation 2; a pure function.

With :math:`f_l` the loss of a simulation of level l, e.g. :math:`-\log q(\theta \mid
x)`, the loss is a signed sum of means, its *terms*,

.. math::

    \ell(\phi) = \underbrace{\tfrac1{n_0}\textstyle\sum f_0}_{\text{base}}
    + \sum_{l=1}^{L} \Big( \underbrace{\tfrac1{n_l}\textstyle\sum f_l}_{\text{fine}}
    \underbrace{- \tfrac1{n_l}\textstyle\sum f_{l-1}}_{\text{coarse}} \Big),

fine and coarse on the same pairs. Its expectation is :math:`\mathbb{E} f_L`.

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
