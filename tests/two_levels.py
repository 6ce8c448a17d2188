"""Two simulators that differ a little, and everything to run them."""

import torch
from sbi.utils import BoxUniform

from sbi_multilevel import simulate_multilevel

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def coarse(theta, noise):
    return theta + noise[:, :2]


def fine(theta, noise):
    return theta + noise[:, :2] + 0.1 * noise[:, 2:]


def normal_noise(n, generator):
    return torch.randn(n, 4, generator=generator)


def simulate(simulators=(coarse, fine), prior=PRIOR, n=(40, 20), **options):
    """`simulate_multilevel` without bars."""
    options = {"noise": normal_noise, "show_progress_bars": False, **options}
    return simulate_multilevel(simulators, prior, n, **options)


def assert_same(a, b):
    """All rows of two data sets are equal bit for bit."""
    for left, right in zip(a, b, strict=True):
        for name in ("theta", "x", "x_coarse"):
            one, other = getattr(left, name), getattr(right, name)
            assert (one is None and other is None) or torch.equal(one, other), name


def contents(path):
    """Every file below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p): p.read_bytes() for p in files}
