r"""The critic of a lower bound of the mutual information, and how it is trained.

A critic :math:`T(x, y)` gives the Donsker-Varadhan bound

.. math::

    I(x; y) \ge \mathbb{E}_{p(x, y)}[T] - \log \mathbb{E}_{p(x) p(y)}[e^T],

with equality at :math:`T^* = \log p(x, y) / p(x) p(y)` plus a constant. MINE (Belghazi
et al. 2018) takes a network for T and climbs the bound. The gradient of the logarithm
of a mean over a batch is biased; as there, its denominator is an exponential moving
average over batches,

.. math::

    \nabla \Big( \mathbb{E}[T] - \frac{\mathbb{E}[e^T]}{\bar a} \Big), \qquad
    \bar a \leftarrow (1 - \gamma)\, \bar a + \gamma\, \mathbb{E}[e^T] .

Four things differ from the original. The critic is separable,

.. math::

    T(x, y) = T_0(x, y) + f(x) \cdot g(y) + a(x) + b(y),

so that all :math:`n (n - 1)` pairs of different rows of a batch stand for :math:`p(x)
p(y)`, by one product of matrices; with more entries of f and g it approximates any
critic. :math:`T_0` is the log density ratio of a normal distribution with the
(Ledoit-Wolf) covariance of the training rows, and the network, zero at first, learns
what is left: with a hundred pairs there is not much that a network alone could learn.
Training stops when rows held out say so. And what comes out is cut off at the largest T
of these rows, beyond which it extrapolates, and at :math:`\log n^2` above the logarithm
of the mean of :math:`e^T`: no n rows can vouch for a ratio of more than :math:`n^2`,
the number of their pairs, and one such pair of strangers would spoil that mean. Any T
gives a bound, so that this is allowed; it hardly exceeds :math:`2 \log n` then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    """See the module.

    Args:
        x: Training rows, shape `(n, d_x)`, of mean 0 and deviation 1.
        y: Their partners, shape `(n, d_y)`, likewise.
    """

    scale: Tensor
    ceiling: Tensor
    cross: Tensor
    square_x: Tensor
    square_y: Tensor

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("ceiling", torch.tensor(math.inf))
        for name, value in _gaussian_ratio(x, y).items():
            self.register_buffer(name, value)
        self.of_x, self.of_y = (_network(side.shape[1]) for side in (x, y))
        with torch.no_grad():  # f stays random, or f . g would have no gradient
            last_x, last_y = self.of_x[-1], self.of_y[-1]
            last_x.weight[-1] = 0.0
            for parameter in (last_x.bias, last_y.weight, last_y.bias):
                parameter.zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """T of each x, shape `(n, d_x)`, with each y, `(m, d_y)`; shape `(n, m)`."""
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


def _gaussian_ratio(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Matrices of the log density ratio of a normal distribution, without constant."""
    dim = x.shape[1]
    rows = torch.cat((x, y), dim=1).double().numpy()
    covariance = torch.from_numpy(LedoitWolf().fit(rows).covariance_)
    precision = torch.linalg.inv(covariance)
    alone_x = torch.linalg.inv(covariance[:dim, :dim])
    alone_y = torch.linalg.inv(covariance[dim:, dim:])
    matrices = {
        "cross": -precision[:dim, dim:],
        "square_x": -(precision[:dim, :dim] - alone_x) / 2,
        "square_y": -(precision[dim:, dim:] - alone_y) / 2,
    }
    return {name: matrix.float() for name, matrix in matrices.items()}


def off_diagonal(table: Tensor) -> Tensor:
    """Entries of different rows, shape `(n * (n - 1),)`."""
    return table[~torch.eye(len(table), dtype=torch.bool)]


def log_mean_exp(values: Tensor) -> Tensor:
    """Logarithm of the mean of exponentials."""
    return torch.logsumexp(values, dim=0) - math.log(len(values))


def contributions(table: Tensor) -> Tensor:
    r"""What each row adds to the bound, shape `(n,)`; their mean is the bound.

    The first-order terms of the bound as a function of the empirical distribution:
    :math:`T_{ii} - \log Z - (w_{i \cdot} + w_{\cdot i} - 2)`, w the mean of
    :math:`e^T / Z` over the rows that i is paired with. Their spread gives the error.

    Args:
        table: T of all rows with all rows, shape `(n, n)`.
    """
    table = table.double()
    log_z = log_mean_exp(off_diagonal(table))
    same = torch.eye(len(table), dtype=torch.bool)
    ratios = (table - log_z).exp().masked_fill(same, 0.0)
    shares = (ratios.sum(dim=0) + ratios.sum(dim=1)) / (len(table) - 1)
    return table.diagonal() - log_z - (shares - 2)


def train_critic(x: Tensor, y: Tensor) -> Critic:
    """Train a critic; a fifth of the rows, held out, choose the epoch.

    It is the first one whose bound on them is within a standard error of the best; if
    the best is below 0, the bound of T = 0, then it is T = 0. Draws from torch's global
    generator.

    Args:
        x: Rows in random order, shape `(n, d_x)`.
        y: Their partners, shape `(n, d_y)`.
    """
    cut = max(2, round(_HELD_OUT * len(x)))
    held_out, kept = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    critic = Critic(*kept)
    optimizer = torch.optim.AdamW(critic.parameters(), _RATE, weight_decay=_DECAY)
    # those that were better than all before
    records = [(_judged(critic, held_out, len(x)), deepcopy(critic.state_dict()))]
    average, waited, steps = None, 0, math.ceil(len(kept[0]) / _BATCH)
    for _ in range(0, _MAX_STEPS, steps):
        average = _epoch(critic, kept, optimizer, average)
        value = _judged(critic, held_out, len(x))
        waited += steps
        if value.mean() > records[-1][0].mean():
            records.append((value, deepcopy(critic.state_dict())))
            waited = 0
        if waited >= _PATIENCE:
            break
    critic.load_state_dict(_first_near_the_best(records))
    if records[-1][0].mean() < 0:
        critic.scale.zero_()
    with torch.no_grad():
        table = critic(*held_out)
        critic.ceiling = torch.minimum(table.diagonal().max(), _limit(table, len(x)))
    return critic


def _first_near_the_best(records: Sequence[tuple[Tensor, dict]]) -> dict:
    """The first state within a standard error of the last, which is the best."""
    best = records[-1][0]
    for values, state in records:
        gain = best - values
        if gain.mean() <= gain.std() / math.sqrt(len(gain)):
            return state
    return records[-1][1]


def _limit(table: Tensor, num_rows: int) -> Tensor:
    """The largest T that so many rows can vouch for."""
    return log_mean_exp(off_diagonal(table)) + 2 * math.log(num_rows)


@torch.no_grad()
def _judged(critic: Critic, rows: tuple[Tensor, Tensor], num_rows: int) -> Tensor:
    """Contributions of rows held out, T cut off where it will be at the latest."""
    table = critic(*rows)
    return contributions(table.clamp(max=_limit(table, num_rows)))


def _epoch(
    critic: Critic,
    rows: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Tensor | None,
) -> Tensor | None:
    """One pass through the rows; returns the moving average of the denominator."""
    for batch in _batches(len(rows[0])):
        table = critic(rows[0][batch], rows[1][batch])
        mean = off_diagonal(table).exp().mean()
        now = mean.detach()
        average = now if average is None else torch.lerp(average, now, _AVERAGING)
        loss = mean / average - table.diagonal().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return average


def _batches(num_rows: int) -> Iterator[Tensor]:
    """All rows in batches of about equal size, none of a single row."""
    order = torch.randperm(num_rows)
    yield from order.tensor_split(math.ceil(num_rows / _BATCH))
