r"""Drift-diffusion model: reaction time and choice, with an exact likelihood.

Evidence starts at :math:`w a` and follows

.. math::  dy = v\,dt + dW

until it reaches 0 or a, after which the choice, 0 or 1, is made with a delay
:math:`\tau`. Theta is :math:`(v, a, w, \tau)`, uniform on :math:`[-2, 2] \times [0.6,
1.5] \times [0.3, 0.7] \times [0.1, 0.5]`. x has the reaction time in s and the choice.
The likelihood is that of Navarro and Fuss (2009), *Fast and accurate calculations for
first-passage times in Wiener diffusion models*, doi:10.1016/j.jmp.2009.02.003. The task
is that of mixed neural likelihood estimation (Boelts, Lueckmann, Gao, Macke 2022,
doi:10.7554/eLife.77220), with a second level.

Level 1 has steps of 5 ms. The barriers are moved inwards by :math:`0.5826 \sqrt{dt}`,
which removes most of the error of discrete time (Broadie, Glasserman, Kou 1997,
*A continuity correction for discrete barrier options*).
Level 0 has steps of 50 ms, the sums of ten increments of level 1, and barriers where
they are: it crosses them too late, and reaction times are multiples of 50 ms, with a
delay. Fewer than 2 in 100 000 simulations have not ended after 5 s; they end there.

The metric is the mean of :math:`\log p(x \mid \theta) - \log q(x \mid \theta)` over
2 000 simulations of level 1, the divergence of the learned likelihood in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

STEP, DURATION = 0.005, 5.0  # s
NUM_STEPS, MERGED = round(DURATION / STEP), 10
_CORRECTION = 0.5826  # -zeta(1/2) / sqrt(2 pi)
_NUM_TERMS, _SMALL_TIME = 40, 0.1


def first_passage(theta: Tensor, increments: Tensor, step: float, gap: float) -> Tensor:
    """Reaction time and choice, shape `(n, 2)`.

    Args:
        theta: Parameters, shape `(n, 4)`.
        increments: Those of the Wiener process, shape `(n, num_steps)`.
        step: Time step, s.
        gap: By which barriers are moved inwards.
    """
    drift, width, start, delay = theta.double().unbind(dim=1)
    path = (increments.double() + drift[:, None] * step).cumsum(dim=1)
    path += (width * start)[:, None]
    low, high = path <= gap, path >= (width - gap)[:, None]
    outside = low | high
    outside[:, -1] = True
    first = outside.int().argmax(dim=1)
    at_first = path.gather(1, first[:, None])[:, 0]
    choice = (at_first > width / 2).double()
    return torch.stack((delay + (first + 1) * step, choice), dim=1).float()


def high_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1."""
    gap = _CORRECTION * math.sqrt(STEP)
    return first_passage(theta, noise, STEP, gap)


def low_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0."""
    merged = noise.reshape(len(noise), -1, MERGED).sum(dim=2)
    return first_passage(theta, merged, MERGED * STEP, 0.0)


def exact_log_prob(theta: Tensor, x: Tensor) -> Tensor:
    """Exact log density of reaction time and choice, shape `(n,)`.

    Args:
        theta: Parameters, shape `(n, 4)`.
        x: Reaction times and choices, shape `(n, 2)`.
    """
    drift, width, start, delay = theta.double().unbind(dim=1)
    time, choice = x.double().unbind(dim=1)
    # the density at the lower barrier; the upper one is its mirror image
    drift = torch.where(choice > 0.5, -drift, drift)
    start = torch.where(choice > 0.5, 1 - start, start)
    elapsed = (time - delay).clamp(min=1e-12)
    scaled = elapsed / width**2
    terms = torch.arange(-_NUM_TERMS, _NUM_TERMS + 1, dtype=torch.float64)[:, None]
    # an image at each distance
    far = start + 2 * terms
    small = (far * torch.exp(-(far**2) / (2 * scaled))).sum(dim=0)
    small = small / torch.sqrt(2 * math.pi * scaled**3)
    waves = terms[_NUM_TERMS + 1 :]
    decay = torch.exp(-(waves**2) * math.pi**2 * scaled / 2)
    large = math.pi * (waves * decay * torch.sin(waves * math.pi * start)).sum(dim=0)
    density = torch.where(scaled < _SMALL_TIME, small, large).clamp(min=1e-300)
    of_drift = -drift * width * start - drift**2 * elapsed / 2
    values = density.log() + of_drift - 2 * width.log()
    return torch.where(time > delay, values, -torch.inf)


class DriftDiffusion(BenchmarkTask):
    """Neural likelihood of a reaction time and a choice."""

    name, family, metric = "drift-diffusion", "nle", "kl"
    num_simulations = (5_000, 50)
    simulators = (low_fidelity, high_fidelity)
    costs = (1.0, float(MERGED))  # steps
    prior = BoxUniform(
        torch.tensor([-2.0, 0.6, 0.3, 0.1]), torch.tensor([2.0, 1.5, 0.7, 0.5])
    )
    num_test = 2_000

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Increments of the Wiener process in steps of level 1."""
        return math.sqrt(STEP) * torch.randn(n, NUM_STEPS, generator=generator)

    def build_network(self) -> Callable:
        """The mixed estimator of sbi, with the logarithm of the reaction time."""
        return likelihood_nn("mnle", log_transform_x=True)

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """Divergence from the exact likelihood, at simulations of level 1."""
        theta, x = self.simulate_high(self.num_test, seed=10_000)
        with torch.no_grad():
            estimate = -estimator.loss(x, theta).double()
        return {"kl": (exact_log_prob(theta, x) - estimate).tolist()}


register_task("drift-diffusion", lambda data: DriftDiffusion())
