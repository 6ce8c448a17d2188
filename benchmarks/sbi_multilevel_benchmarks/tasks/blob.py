r"""Gaussian blobs: images of 256 x 256 pixels, and of 32 x 32 at level 0.

A dark blob on a bright background. Each pixel, at distance r from the center of the
blob, is a draw of :math:`\mathrm{Binomial}(n, p) / n` with

.. math::  p = 0.9 - 0.8 \exp\left(-\tfrac12 (r^2 / s^2)^\gamma\right).

The center is :math:`(\theta_1, \theta_2)` plus normal noise with a standard deviation
of 0.5 pixels, and :math:`\gamma = \theta_3`. Level 1 has 256 x 256 pixels,
:math:`s = 12`, :math:`n = 255`; level 0 has 32 x 32, :math:`s = 2`, :math:`n = 20`. The
prior is uniform on :math:`[0, 256]^2 \times [0.2, 2]`. Constants are those of the code
of Krouglova et al. (2026), arXiv:2502.08416.

There are three differences to that code. Theta is in pixels of level 1 at both levels,
where the code has a prior per level. Counts of level 0 are divided by 20, not 255,
which is equivalent in the code, as it standardizes each level. Images of both levels
are resized to one side length, 32 pixels by default, where the code enlarges images of
level 0 to 256 pixels, and adds a small noise to them.

The noise of the center is shared by the levels, in units of their pixels. The exact
posterior is not known; estimates are evaluated by the true theta of 100 simulations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from sbi_multilevel_benchmarks.posterior_task import PosteriorTask, build_flow
from sbi_multilevel_benchmarks.registry import register_task

HIGH_SIDE, LOW_SIDE = 256, 32
MOVEMENT = 0.5  # scale of the noise of the center, in pixels of each level
ENLARGING_NOISE = 0.001 * 255 / 20  # of the reference code, as counts are over 20
_BATCH_SIZE = 64  # full-size images in memory

Noise = tuple[Tensor, Tensor]


def brightness(center: Tensor, gamma: Tensor, side: int, spread: float) -> Tensor:
    """Probability p of each pixel, shape `(n, side, side)`, y first.

    Args:
        center: Coordinates x and y, in pixels of the image, shape `(n, 2)`.
        gamma: Steepness, shape `(n,)`.
        side: Side length of the image.
        spread: Width s of the blob.
    """
    pixels = torch.arange(side, dtype=center.dtype)
    x_squares, y_squares = (pixels - center[:, :, None]).square().unbind(dim=1)
    squares = (y_squares[:, :, None] + x_squares[:, None, :]) / spread**2
    depth = torch.exp(-0.5 * squares ** gamma[:, None, None])
    return 0.9 - 0.8 * depth


class GaussianBlob(PosteriorTask):
    """Posterior of center and steepness.

    Args:
        size: Side length that images of both levels are resized to.

    Raises:
        ValueError: If the side length is not in 8 to 256.
    """

    name, metric = "blob", "nltp"
    num_simulations = (1_000, 50)
    costs = (1.0, 64.0)  # pixels, relative
    prior = BoxUniform(torch.tensor([0.0, 0.0, 0.2]), torch.tensor([256.0, 256.0, 2.0]))
    has_reference = False

    def __init__(self, size: int = LOW_SIDE):
        if not 8 <= size <= HIGH_SIDE:
            raise ValueError(
                f"size={size} must be in 8 to {HIGH_SIDE}, the side length of level 1."
            )
        self._size = size
        self.simulators = (self.small, self.large)
        self.true_theta, self.observations = self.simulate_high(100, seed=10_000)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Noise:
        """Noise of the center, shape `(n, 2)`, and a seed for the pixels, `(n,)`."""
        movement = torch.randn(n, 2, generator=generator)
        return movement, torch.randint(2**62, (n,), generator=generator)

    def build_network(self) -> Callable:
        """The flow, with the convolutional embedding net of the reference code."""
        embedding_net = CNNEmbedding(
            (self._size, self._size),
            out_channels_per_layer=[6],
            num_conv_layers=1,
            num_linear_layers=1,
            output_dim=32,
            # 8 of 256 pixels in the reference code
            pool_kernel_size=max(2, self._size // 32),
        )
        return build_flow(self.prior, embedding_net)

    def reference(self, index: int) -> Tensor:
        raise TypeError("The exact posterior of task='blob' is not known.")

    def small(self, theta: Tensor, noise: Noise) -> Tensor:
        """Level 0, images of shape `(n, size, size)`."""
        return self._in_blocks(theta, noise, self._small)

    def large(self, theta: Tensor, noise: Noise) -> Tensor:
        """Level 1, images of shape `(n, size, size)`."""
        return self._in_blocks(theta, noise, self._large)

    def _in_blocks(self, theta: Tensor, noise: Noise, draw: Callable) -> Tensor:
        starts = range(0, len(theta), _BATCH_SIZE)
        parts = ((c[i : i + _BATCH_SIZE] for c in (theta, *noise)) for i in starts)
        return torch.cat([draw(*part) for part in parts])

    def _large(self, theta: Tensor, movement: Tensor, seeds: Tensor) -> Tensor:
        center = theta[:, :2] + MOVEMENT * movement
        p = brightness(center, theta[:, 2], HIGH_SIDE, 12.0)
        drawn = [_draw(255, each, _pixels(seed)) for each, seed in zip(p, seeds)]
        return adaptive_avg_pool2d(torch.stack(drawn), self._size)

    def _small(self, theta: Tensor, movement: Tensor, seeds: Tensor) -> Tensor:
        ratio = HIGH_SIDE / LOW_SIDE
        # integer coordinates are at the middle of pixels
        center = (theta[:, :2] + 0.5) / ratio - 0.5 + MOVEMENT * movement
        p = brightness(center, theta[:, 2], LOW_SIDE, 2.0)
        generators = [_pixels(seed) for seed in seeds]
        images = torch.stack([_draw(20, each, g) for each, g in zip(p, generators)])
        if self._size <= LOW_SIDE:
            return adaptive_avg_pool2d(images, self._size)
        size = (self._size, self._size)
        images = interpolate(images.unsqueeze(1), size, mode="bilinear")[:, 0]
        extra = [torch.randn(size, generator=g) for g in generators]
        return (images + ENLARGING_NOISE * torch.stack(extra)).clamp(0, 1)


def _pixels(seed: Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed))


def _draw(trials: int, p: Tensor, generator: torch.Generator) -> Tensor:
    return torch.binomial(torch.full_like(p, trials), p, generator=generator) / trials


register_task("blob", lambda data, *, size=LOW_SIDE: GaussianBlob(size))
