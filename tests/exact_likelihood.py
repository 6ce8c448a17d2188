"""The exact likelihood of the linear-Gaussian problem, as a trained NLE of sbi."""

from __future__ import annotations

import torch
from sbi.inference import NLE
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from tests.linear_gaussian import DIM, MATRICES, SCALE, SHIFTS, SilentTracker, prior


class ExactLikelihood(ConditionalDensityEstimator):
    """The density of x of the highest level given theta."""

    def __init__(self):
        super().__init__(nn.Linear(1, 1), torch.Size([DIM]), torch.Size([DIM]))

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        mean = condition @ MATRICES[-1].T + SHIFTS[-1]
        return torch.distributions.Normal(mean, SCALE).log_prob(input).sum(dim=-1)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition: Tensor, **kwargs) -> Tensor:
        raise NotImplementedError


def trained() -> NLE:
    """A trainer with this network, as if it had been trained."""
    trainer = NLE(prior(), tracker=SilentTracker(), show_progress_bars=False)
    trainer._neural_net = ExactLikelihood()
    return trainer


def difference_variance(level: int, below: int | None = None) -> float:
    r"""Exact :math:`\mathrm{Var}[f_l - f_k]`, or :math:`\mathrm{Var} f_l`.

    With z = (theta, u) normal, the residual of level l is :math:`r = M z + m`, the loss
    :math:`\|r\|^2 / (2 s^2)`, and :math:`\mathrm{Var}[z^T S z + g^T z] = 2\,
    \mathrm{tr}\, S^2 + \|g\|^2`.
    """
    square, linear = torch.zeros(2 * DIM, 2 * DIM), torch.zeros(2 * DIM)
    for k, sign in ((level, 1.0), (below, -1.0)):
        if k is None:
            continue
        matrix = torch.cat([MATRICES[k] - MATRICES[-1], SCALE * torch.eye(DIM)], dim=1)
        square += sign * matrix.T @ matrix / (2 * SCALE**2)
        linear += sign * matrix.T @ (SHIFTS[k] - SHIFTS[-1]) / SCALE**2
    return float(2 * torch.trace(square @ square) + linear @ linear)
