r"""Features of theta by networks, for simulators that are not quadratic in theta.

Means and log scales of x are regressed on features of theta, which are quadratic by
default. A quadratic cannot follow a simulator that switches, saturates or dies out, but
the form can be learned from the many low-fidelity simulations, and it is often similar
at high fidelity. A network with outputs :math:`m_j(\theta)` and :math:`u_j(\theta)`
predicts, for each feature of x, the residual :math:`r_j` of a quadratic, over its
standard deviation, and the logarithm of what is left of it,

.. math::

    \min \; \sum_j \bigl(r_j - m_j(\theta)\bigr)^2
    + \bigl(\log |r_j - m_j(\theta)| - u_j(\theta)\bigr)^2 ,

where the second term has no gradient in m. Its outputs are added to the features,

.. math::

    \phi(\theta) = \bigl(\theta,\ \theta \theta^\top,\
    m_1(\theta), \ldots, m_k(\theta),\ u_1(\theta), \ldots, u_k(\theta)\bigr).

Networks overfit the simulations that they are fitted to. The parameters are therefore
cut into three parts by a hash of their bits, and outputs at a theta are those of the
network that was fitted to the simulations (of the first 10 000) in the other two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from sbi_multilevel.level_maps.arrays import LevelArrays, bit_patterns
from sbi_multilevel.level_maps.regression import (
    Design,
    Regression,
    log_sizes,
    polynomials,
    spread,
)
from sbi_multilevel.utils.seeds import seeded

_NUM_PARTS = 3
_MAX_SIMULATIONS = 10_000  # that networks are fitted to
_HIDDEN, _NUM_LAYERS = 128, 3
_RATE, _BATCH, _EPOCHS, _MIN_STEPS = 5e-3, 200, 20, 200
_MAX_RESIDUAL, _MIN_SIZE = 10.0, 0.01  # in standard deviations
# whatever the defaults of the user
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_MIN_GAIN = 0.03  # nats a simulation, of the first network over quadratics


@dataclass(frozen=True, eq=False)
class ThetaFeatures:
    """Features of theta by networks that were not fitted to it.

    Args:
        quadratic: Quadratic features.
        networks: Networks fitted to all simulations but those of a part.
    """

    quadratic: Pipeline
    networks: Sequence[Network]

    @classmethod
    def fit(cls, simulations: LevelArrays) -> ThetaFeatures | None:
        """Fit to many simulations in random order.

        The network of the first part is compared with quadratics at the parameters of
        that part; the others are fitted only if it gains.

        Returns:
            The features; `None` if networks gain next to nothing.
        """
        rows = simulations.first(_MAX_SIMULATIONS)
        numbers = part_of(rows.theta)
        quadratic = polynomials(rows.theta, 2)
        with _one_thread(), seeded(0):
            first = Network.fit(quadratic, rows[numbers != 0])
            if not first.gain(rows[numbers == 0]) > _MIN_GAIN:
                return None
            others = [
                Network.fit(quadratic, rows[numbers != number])
                for number in range(1, _NUM_PARTS)
            ]
        return cls(quadratic, [first, *others])

    def joined(self, theta: np.ndarray) -> np.ndarray:
        """Quadratic features and those of networks, shape `(n, p)`."""
        return np.concatenate((self.quadratic.transform(theta), self(theta)), axis=1)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """Outputs of the networks, of means, then of log scales, shape `(n, 2 k)`."""
        numbers = part_of(theta)
        features = np.empty((len(theta), 2 * len(self.networks[0].scale)))
        with _one_thread():
            for number in np.unique(numbers):
                rows = numbers == number
                features[rows] = self.networks[number](theta[rows])
        return features


def part_of(theta: np.ndarray) -> np.ndarray:
    """Number of the part of each theta, the same for the same bits, shape `(n,)`."""
    generator = np.random.default_rng(0)
    factors = generator.integers(2**63, size=theta.shape[1], dtype=np.uint64)
    # the highest bits of a product with odd numbers depend on all bits
    hashes = (bit_patterns(theta) * (2 * factors + 1)).sum(axis=1, dtype=np.uint64)
    return ((hashes >> np.uint64(32)) % _NUM_PARTS).astype(int)


def _one_thread() -> threadpool_limits:
    """Many small steps are faster on one thread, above all on a busy machine."""
    return threadpool_limits(1, user_api="openmp")


@dataclass(frozen=True, eq=False)
class Network:
    """A quadratic of the mean, and a network for what it leaves.

    Args:
        mean: Quadratic regression of x.
        log_scale: Quadratic regression of the log sizes of what the network leaves.
        scale: Standard deviation of the residuals of `mean`, shape `(k,)`.
        network: From standardized theta to the outputs.
    """

    mean: Regression
    log_scale: Regression
    scale: np.ndarray
    network: nn.Module

    @classmethod
    def fit(cls, features: Pipeline, rows: LevelArrays) -> Network:
        """Fit to simulations, by draws of batches with replacement."""
        design = Design(features, rows.theta)
        mean = design.fit(rows.x)
        residuals = rows.x - design.predict(mean)
        scale = spread(residuals)
        inputs = _standardized(features, rows.theta)
        targets = torch.tensor(residuals / scale, **_PLAIN)
        network = _train(inputs, targets.clamp(-_MAX_RESIDUAL, _MAX_RESIDUAL))
        left = residuals - scale * _outputs(network, inputs)[:, : len(scale)]
        return cls(mean, design.fit(log_sizes(left)), scale, network)

    def gain(self, rows: LevelArrays) -> float:
        """Gain over quadratics in nats a simulation, of the features that gain.

        Args:
            rows: Simulations that it was not fitted to.
        """
        means, log_scales = np.split(self(rows.theta), 2, axis=1)
        by_quadratic = rows.x - self.mean(rows.theta)
        left = by_quadratic - self.scale * means
        sizes = log_sizes(left)
        of_mean = np.log(spread(by_quadratic) / spread(left))
        # a scale that is wrong by a factor exp(e) costs e^2 nats if e is small
        errors = [
            np.var(sizes - predicted, axis=0)
            for predicted in (self.log_scale(rows.theta), log_scales)
        ]
        gains = np.concatenate((of_mean, errors[0] - errors[1]))
        return float(np.maximum(gains, 0.0).sum())

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """Its outputs, shape `(n, 2 k)`."""
        return _outputs(self.network, _standardized(self.mean.features, theta))


def _standardized(features: Pipeline, theta: np.ndarray) -> Tensor:
    """Theta as the scaler of polynomials returns it."""
    return torch.tensor(features[0].transform(theta), **_PLAIN)


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Tensor) -> np.ndarray:
    return network(inputs).double().numpy()


def _train(inputs: Tensor, targets: Tensor) -> nn.Module:
    """A network that minimizes the loss of the module."""
    layers, width = [], inputs.shape[1]
    for _ in range(_NUM_LAYERS):
        layers += [nn.Linear(width, _HIDDEN, **_PLAIN), nn.ReLU()]
        width = _HIDDEN
    layers.append(nn.Linear(width, 2 * targets.shape[1], **_PLAIN))
    network = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), _RATE, fused=True)
    num_steps = max(_MIN_STEPS, _EPOCHS * len(inputs) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _RATE, total_steps=num_steps
    )
    for _ in range(num_steps):
        batch = torch.randint(len(inputs), (_BATCH,), device="cpu")
        mean, log_scale = network(inputs[batch]).chunk(2, dim=1)
        left = targets[batch] - mean
        sizes = (left.detach().abs() + _MIN_SIZE).log()
        loss = left.square().mean() + (log_scale - sizes).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network
