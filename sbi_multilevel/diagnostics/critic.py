r"""Critic of a lower bound of the mutual information, and its training.

A critic :math:`T(x, y)` defines the Donsker-Varadhan bound

.. math::

    I(x; y) \ge \mathbb{E}_{p(x, y)}[T] - \log \mathbb{E}_{p(x) p(y)}[e^T],

with equality at :math:`T^* = \log p(x, y) / p(x) p(y)` up to a constant. MINE (Belghazi
et al. 2018) maximizes the bound over neural networks. The gradient of the logarithm of
a batch mean is biased; as in that paper, its denominator is an exponential moving
average over batches,

.. math::

    \nabla \Big( \mathbb{E}[T] - \frac{\mathbb{E}[e^T]}{\bar a} \Big), \qquad
    \bar a \leftarrow (1 - \gamma)\, \bar a + \gamma\, \mathbb{E}[e^T] .

The implementation differs from the paper in four ways.

1. The critic is separable, :math:`T(x, y) = T_0(x, y) + f(x) \cdot g(y) + a(x) + b(y)`,
   so that all :math:`n (n - 1)` unpaired combinations of a batch are evaluated by one
   matrix product.
2. :math:`T_0` is the log density ratio of a normal distribution with the Ledoit-Wolf
   covariance of the training data. The network is initialized at zero and learns the
   difference; a hundred pairs are too few for a network alone.
3. Training stops early on a held-out fifth of the pairs.
4. T is bounded by its maximum over the held-out pairs, beyond which it extrapolates,
   and by :math:`\log n^2` above the logarithm of the mean of :math:`e^T`, since density
   ratios above :math:`n^2` cannot be estimated from the combinations of n pairs. Any T
   gives a valid bound, which is then at most about :math:`2 \log n`.

Reference: Belghazi, Baratin, Rajeswar, Ozair, Bengio, Courville and Hjelm (2018),
*Mutual information neural estimation*, arXiv:1801.04062.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

_WIDTH, _EMBEDDING = 64, 16
_BATCH, _RATE, _DECAY = 256, 1e-3, 1e-4
_MAX_STEPS, _PATIENCE = 3_000, 150  # steps of the optimizer
_AVERAGING = 0.01
_HELD_OUT = 0.2


class Critic(nn.Module):
    """Bounded critic with a normal and a learned part, see the module.

    Args:
        x: Training data, shape `(n, d_x)`, of mean 0 and standard deviation 1.
        y: Paired training data, shape `(n, d_y)`, standardized likewise.
    """

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        self.scale, self.ceiling = torch.tensor(1.0), torch.tensor(math.inf)
        self.cross, self.square_x, self.square_y = _gaussian_ratio(x, y)
        self.of_x, self.of_y = (_network(side.shape[1]) for side in (x, y))
        with torch.no_grad():  # f stays random, else the gradient of f . g is 0
            last_x, last_y = self.of_x[-1], self.of_y[-1]
            last_x.weight[-1] = 0.0
            for parameter in (last_x.bias, last_y.weight, last_y.bias):
                parameter.zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """T of all combinations of x, shape `(n, d_x)`, and y, `(m, d_y)`: `(n, m)`."""
        f, g = self.of_x(x), self.of_y(y)
        alone_x = ((x @ self.square_x) * x).sum(dim=1) + f[:, -1]
        alone_y = ((y @ self.square_y) * y).sum(dim=1) + g[:, -1]
        together = x @ self.cross @ y.T + f[:, :-1] @ g[:, :-1].T
        values = self.scale * (together + alone_x[:, None] + alone_y)
        return values.clamp(max=self.ceiling)


def _network(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, _WIDTH),
        nn.ELU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ELU(),
        nn.Linear(_WIDTH, _EMBEDDING + 1),
    )


def _gaussian_ratio(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of the log density ratio of a normal distribution, up to a constant.

    For products of x and y, of x alone, and of y alone.
    """
    dim = x.shape[1]
    pairs = torch.cat((x, y), dim=1).double().numpy()
    covariance = torch.from_numpy(LedoitWolf().fit(pairs).covariance_)
    precision = torch.linalg.inv(covariance)
    alone_x = torch.linalg.inv(covariance[:dim, :dim])
    alone_y = torch.linalg.inv(covariance[dim:, dim:])
    cross = -precision[:dim, dim:]
    square_x = -(precision[:dim, :dim] - alone_x) / 2
    square_y = -(precision[dim:, dim:] - alone_y) / 2
    return cross.float(), square_x.float(), square_y.float()


def off_diagonal(table: Tensor) -> Tensor:
    """Values of unpaired combinations, shape `(n * (n - 1),)`."""
    return table[~torch.eye(len(table), dtype=torch.bool)]


def log_mean_unpaired(table: Tensor) -> Tensor:
    """Logarithm of the mean of :math:`e^T` over unpaired combinations."""
    values = off_diagonal(table)
    return torch.logsumexp(values, dim=0) - math.log(len(values))


def contributions(table: Tensor) -> Tensor:
    r"""Contribution of each pair to the bound, from T of all combinations.

    The influence function of the bound plus the bound, :math:`T_{ii} - \log Z - (w_{i
    \cdot} + w_{\cdot i} - 2)`, with w the mean of :math:`e^T / Z` over the combinations
    with pair i. Its mean is the bound, its standard deviation gives the error.
    """
    table = table.double()
    log_z = log_mean_unpaired(table)
    same = torch.eye(len(table), dtype=torch.bool)
    ratios = (table - log_z).exp().masked_fill(same, 0.0)
    shares = (ratios.sum(dim=0) + ratios.sum(dim=1)) / (len(table) - 1)
    return table.diagonal() - log_z - (shares - 2)


def train_critic(x: Tensor, y: Tensor) -> Critic:
    """Train a critic with early stopping on a held-out fifth of the pairs.

    The weights are those of the first epoch whose bound on the held-out pairs is within
    a standard error of the best. If the best bound is below 0, then T = 0. Pairs are in
    random order. Uses torch's global generator.
    """
    cut = max(2, round(_HELD_OUT * len(x)))
    held_out, kept = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    critic = Critic(*kept)
    optimizer = torch.optim.AdamW(critic.parameters(), _RATE, weight_decay=_DECAY)
    # epochs that improved on all previous ones
    records = [(_held_out(critic, held_out, len(x)), deepcopy(critic.state_dict()))]
    average, waited, steps = None, 0, math.ceil(len(kept[0]) / _BATCH)
    for _ in range(0, _MAX_STEPS, steps):
        average = _epoch(critic, kept, optimizer, average)
        value = _held_out(critic, held_out, len(x))
        waited += steps
        if value.mean() > records[-1][0].mean():
            records.append((value, deepcopy(critic.state_dict())))
            waited = 0
        if waited >= _PATIENCE:
            break
    critic.load_state_dict(_first_near_best(records))
    if records[-1][0].mean() < 0:
        critic.scale.zero_()
    with torch.no_grad():
        table = critic(*held_out)
        critic.ceiling = torch.minimum(table.diagonal().max(), _limit(table, len(x)))
    return critic


def _first_near_best(records: Sequence[tuple[Tensor, dict]]) -> dict:
    """The first state whose bound is within a standard error of the last, best one."""
    best, state = records[-1]
    for values, earlier in records[:-1]:
        gain = best - values
        if gain.mean() <= gain.std() / math.sqrt(len(gain)):
            return earlier
    return state


def _limit(table: Tensor, num_pairs: int) -> Tensor:
    """The largest T that can be estimated from so many pairs."""
    return log_mean_unpaired(table) + 2 * math.log(num_pairs)


@torch.no_grad()
def _held_out(critic: Critic, pairs: tuple[Tensor, Tensor], num_pairs: int) -> Tensor:
    """Contributions of held-out pairs, with T bounded."""
    table = critic(*pairs)
    return contributions(table.clamp(max=_limit(table, num_pairs)))


def _epoch(
    critic: Critic,
    pairs: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Tensor | None,
) -> Tensor | None:
    """Train for one epoch; returns the moving average of the denominator."""
    # batches of about equal size, none of a single pair
    num_pairs = len(pairs[0])
    batches = torch.randperm(num_pairs).tensor_split(math.ceil(num_pairs / _BATCH))
    for batch in batches:
        table = critic(pairs[0][batch], pairs[1][batch])
        mean = off_diagonal(table).exp().mean()
        now = mean.detach()
        average = now if average is None else torch.lerp(average, now, _AVERAGING)
        loss = mean / average - table.diagonal().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return average
