"""What every multilevel trainer refuses, and that nothing is lost by it."""

import pytest
import torch
from sbi.utils import RestrictedPrior

from sbi_multilevel import (
    MLNLE,
    MLNPE,
    HybridNLE,
    HybridNPE,
    MultilevelConfig,
    TransferConfig,
)
from tests.linear_gaussian import SilentTracker, prior, simulations
from tests.test_trainers import FEW, make, single_level_simulations

pytestmark = [
    pytest.mark.parametrize("cls", (MLNPE, MLNLE)),
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
]


def pairs(level=1, n=20, d=2, k=2):
    theta, x = torch.randn(n, d), torch.randn(n, k)
    return dict(theta=theta, x=x, x_coarse=x + 0.1 * torch.randn(n, k), level=level)


@pytest.mark.parametrize(
    "bad, named",
    [
        (pairs(level=4), r"\[0, 1, 2, 4\]"),
        (pairs(level=0), "x_coarse was passed with level=0"),
        (pairs(k=3), r"x of level 1 has shape \(3,\)"),
        (pairs(d=3), r"theta of level 1 has shape \(3,\)"),
        ({**pairs(), "x_coarse": None}, "x_coarse is None with level=1"),
        ({**pairs(), "level": None}, "level is None"),
        ({**pairs(), "x": None}, "x is None"),
        ({**pairs(), "x": torch.randn(19, 2)}, "differ in length"),
        (
            {**pairs(), "theta": torch.full((20, 2), torch.nan)},
            "0 valid (rows|simulations)",
        ),
        ({**pairs(), "x": torch.randn(20, 2, device="meta")}, "several devices"),
        ({**pairs(), "data_device": "meta"}, "device 'meta', those before on 'cpu'"),
        (
            {**pairs(), "proposal": torch.distributions.Normal(0, 1)},
            "proposal is a Normal",
        ),
        ({"theta": simulations(), "level": 1}, "beside MultilevelSimulations"),
    ],
)
def test_bad_simulations_are_refused_and_nothing_is_lost(cls, bad, named):
    trainer = make(cls)
    before = trainer.multilevel_simulations
    with pytest.raises(ValueError, match=named):
        trainer.append_multilevel_simulations(**bad)
    after = trainer.multilevel_simulations
    assert after.num_simulations == before.num_simulations
    assert all(torch.equal(a.x, b.x) for a, b in zip(before, after))
    trainer.train(**FEW)


def test_levels_come_in_rising_order(cls):
    trainer = cls(prior(), tracker=SilentTracker())
    with pytest.raises(ValueError, match=r"levels must be 0.*\[1\]"):
        trainer.append_multilevel_simulations(**pairs())


def test_unpaired_simulations_enter_at_level_0_only(cls):
    with pytest.raises(ValueError, match="level=1.*telescoping"):
        make(cls).append_lowfidelity_simulations(*single_level_simulations(), level=1)


@pytest.mark.parametrize("is_hybrid", (False, True))
def test_level_0_alone_is_not_enough(cls, is_hybrid):
    cls = {MLNPE: HybridNPE, MLNLE: HybridNLE}[cls] if is_hybrid else cls
    trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_lowfidelity_simulations(*single_level_simulations())
    with pytest.raises(ValueError, match="Only (level 0 was|lower levels were)"):
        trainer.train(**FEW)


def test_simulations_without_a_level_do_not_mix_with_levels(cls):
    trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_simulations(*single_level_simulations())
    with pytest.raises(ValueError, match="`append_simulations` was called before"):
        trainer.append_multilevel_simulations(simulations())
    trainer.train(**FEW)
    trainer = make(cls).append_simulations(*single_level_simulations())
    with pytest.raises(ValueError, match="beside multilevel simulations"):
        trainer.train(**FEW)


def test_the_prior_and_its_restrictions_are_the_only_proposals(cls):
    trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_multilevel_simulations(simulations(), proposal=trainer._prior)
    restricted = RestrictedPrior(trainer._prior, lambda theta: theta[:, 0] > 0)
    trainer.append_multilevel_simulations(simulations(), proposal=restricted)
    other = RestrictedPrior(prior(), lambda theta: theta[:, 0] > 0)
    unknown = cls(tracker=SilentTracker(), show_progress_bars=False)
    with pytest.raises(ValueError, match="proposal is a MultivariateNormal"):
        unknown.append_multilevel_simulations(simulations(), proposal=prior())
    with pytest.raises(ValueError, match="proposal is a RestrictedPrior"):
        trainer.append_multilevel_simulations(simulations(), proposal=other)


def test_later_rounds_do_not_mix_with_levels(cls):
    trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    if cls is MLNLE:
        trainer.append_simulations(*single_level_simulations(), from_round=1)
    else:
        trainer.append_simulations(*single_level_simulations()).train(**FEW)
        proposal = trainer.build_posterior().set_default_x(torch.zeros(2))
        trainer.append_simulations(*single_level_simulations(), proposal=proposal)
    with pytest.raises(ValueError, match="later round"):
        trainer.append_multilevel_simulations(simulations())


def test_settings_of_another_method_are_refused(cls):
    for config in (TransferConfig(), "multilevel", MultilevelConfig):
        with pytest.raises(TypeError, match="config.*`MultilevelConfig`"):
            cls(prior(), config=config)
    for bad in (
        dict(adjustment="rescal"),
        dict(alignment="paired"),
        dict(betas=(0.9, 1.0)),
        dict(weight_decay=-1),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MultilevelConfig(**bad)


def test_the_argument_recipe_names_what_replaced_it(cls):
    with pytest.raises(TypeError, match="recipe was removed.*HybridNPE.*config="):
        cls(prior(), recipe="hybrid")
