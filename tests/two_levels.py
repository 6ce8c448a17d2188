"""Two similar simulators with their prior and noise."""

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
    """`simulate_multilevel` without progress bars."""
    options = {"noise": normal_noise, "show_progress_bars": False, **options}
    return simulate_multilevel(simulators, prior, n, **options)


def assert_same(a, b):
    """Two data sets are equal bit for bit."""
    for left, right in zip(a, b, strict=True):
        for name in ("theta", "x", "x_coarse"):
            x, y = getattr(left, name), getattr(right, name)
            assert (x is None and y is None) or torch.equal(x, y), name


def contents(path):
    """Contents of every file below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p): p.read_bytes() for p in files}
