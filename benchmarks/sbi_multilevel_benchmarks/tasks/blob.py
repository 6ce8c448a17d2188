r"""Gaussian blobs: large images above small ones.

A dark blob on a bright ground. Each pixel, at distance r from the centre of the blob,
is a count of :math:`\mathrm{Binomial}(n, p) / n` with

.. math::  p = 0.9 - 0.8 \exp\left(-\tfrac12 (r^2 / s^2)^\gamma\right).

The centre is :math:`(\theta_1, \theta_2)` moved by a normal of standard deviation half
a pixel, and :math:`\gamma = \theta_3`. Level 1 has 256 x 256 pixels, :math:`s = 12`,
:math:`n = 255`; level 0 has 32 x 32, :math:`s = 2`, :math:`n = 20`. The prior is
uniform on :math:`[0, 256]^2 \times [0.2, 2]`. Constants as in the code of Krouglova et
al. (2026), arXiv:2502.08416.

Three things are not as in that code. Theta is in pixels of level 1 at both levels, and
level 0 rescales it: there, each level has pixels of its own and a prior of its own, so
the same theta means another image. Counts of level 0 are divided by 20, not 255; that
code standardises the pixels of each level by its own rows, so the two are the same to
it. Images of both levels are brought to one side length, 32 pixels by default, where
the code enlarges those of level 0 to 256; there, a little noise is added to them, which
smooth enlargement would otherwise leave without.

The movement of the centre is shared by the levels, in units of their own pixels. The
exact posterior is not known, so estimates are evaluated at 100 rows by the true theta.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.tasks.posterior import PosteriorTask, build_flow

HIGH_SIDE, LOW_SIDE = 256, 32
MOVEMENT = 0.5  # of the centre, in pixels of each level
ENLARGING_NOISE = 0.001 * 255 / 20  # of the reference code, in units of counts over 20
BLOCK = 64  # images held at once in full size

Noise = tuple[Tensor, Tensor]


def brightness(centre: Tensor, gamma: Tensor, side: int, spread: float) -> Tensor:
    """Probability p of each pixel, shape `(n, side, side)`, rows along y.

    Args:
        centre: Coordinates x and y, in pixels of the image, shape `(n, 2)`.
        gamma: Steepness, shape `(n,)`.
        side: Side length of the image.
        spread: Width s of the blob.
    """
    pixels = torch.arange(side, dtype=centre.dtype)
    x_squares, y_squares = (pixels - centre[:, :, None]).square().unbind(dim=1)
    squares = (y_squares[:, :, None] + x_squares[:, None, :]) / spread**2
    depth = torch.exp(-0.5 * squares ** gamma[:, None, None])
    return 0.9 - 0.8 * depth


class GaussianBlob(PosteriorTask):
    """Posterior of centre and steepness.

    Args:
        size: Side length that images of both levels are brought to.

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
        """Movement of the centre, shape `(n, 2)`, and a seed for the pixels, `(n,)`."""
        movement = torch.randn(n, 2, generator=generator)
        return movement, torch.randint(2**62, (n,), generator=generator)

    def build_network(self) -> Callable:
        """The flow, behind the small convolutional network of the reference code."""
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
        raise TypeError("The exact posterior of a blob is not known.")

    def small(self, theta: Tensor, noise: Noise) -> Tensor:
        """Level 0, images of shape `(n, size, size)`."""
        return self._in_blocks(theta, noise, self._small)

    def large(self, theta: Tensor, noise: Noise) -> Tensor:
        """Level 1, images of shape `(n, size, size)`."""
        return self._in_blocks(theta, noise, self._large)

    def _in_blocks(self, theta: Tensor, noise: Noise, draw: Callable) -> Tensor:
        starts = range(0, len(theta), BLOCK)
        parts = ((c[i : i + BLOCK] for c in (theta, *noise)) for i in starts)
        return torch.cat([draw(*part) for part in parts])

    def _large(self, theta: Tensor, movement: Tensor, seeds: Tensor) -> Tensor:
        centre = theta[:, :2] + MOVEMENT * movement
        p = brightness(centre, theta[:, 2], HIGH_SIDE, 12.0)
        images = torch.stack([_draw(255, row, _pixels(s)) for row, s in zip(p, seeds)])
        return adaptive_avg_pool2d(images, self._size)

    def _small(self, theta: Tensor, movement: Tensor, seeds: Tensor) -> Tensor:
        ratio = HIGH_SIDE / LOW_SIDE
        # pixels have their coordinate at the middle: 0 is half a pixel from the edge
        centre = (theta[:, :2] + 0.5) / ratio - 0.5 + MOVEMENT * movement
        p = brightness(centre, theta[:, 2], LOW_SIDE, 2.0)
        generators = [_pixels(seed) for seed in seeds]
        images = torch.stack([_draw(20, row, g) for row, g in zip(p, generators)])
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


register_task("blob", lambda data: GaussianBlob())
