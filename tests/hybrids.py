"""Simulations and trainers for tests of hybrids."""

from dataclasses import replace

import torch
from sbi.utils import BoxUniform

from sbi_multilevel import (
    HybridConfig,
    HybridNLE,
    HybridNPE,
    LevelSimulations,
    MultilevelSimulations,
)

PRIOR = BoxUniform(-torch.ones(1), torch.ones(1))
# one kind of map: to select one takes most of the time of a short training
QUICK = HybridConfig(num_members=2, level_maps=("shift",), distill=False)
ALL_MAPS = replace(QUICK, level_maps=HybridConfig().level_maps)
BRIEF = {"max_num_epochs": 2}


def simulated(n_low=200, n_high=20, paired=True, seed=0, useless=False, signal=None):
    """x of level 1 is affine in x of level 0 and theta."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n, *shape):
        return torch.rand(n, *shape, generator=generator)

    levels = []
    for level, n in enumerate((n_low, n_high)):
        theta = 2 * draw(n, 1) - 1
        noise = torch.randn(n, 2, generator=generator)
        mean = theta if signal is None else signal(theta)
        low = torch.cat((mean, -mean), dim=1) + 0.3 * noise
        high = 2 * low + torch.cat((theta, theta), dim=1) + 1
        if useless:
            low = 10 * torch.randn(n, 2, generator=generator)
        coarse = low if paired and level == 1 else None
        levels.append(LevelSimulations(level, theta, high if level else low, coarse))
    return MultilevelSimulations(tuple(levels))


def make(cls=HybridNPE, simulations=None, config=None, density_estimator="mdn"):
    if cls in (HybridNPE, HybridNLE):
        config = config or QUICK
    trainer = cls(
        PRIOR,
        density_estimator=density_estimator,
        config=config,
        show_progress_bars=False,
    )
    return trainer.append_multilevel_simulations(simulations or simulated())


def trained(*args, seed=0, options=BRIEF, **kwargs):
    trainer = make(*args, **kwargs)
    torch.manual_seed(seed)
    trainer.train(**options)
    return trainer
