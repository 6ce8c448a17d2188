"""What every multilevel trainer refuses, and that nothing is lost by it."""

import pytest
import torch
from sbi.utils import RestrictedPrior

from sbi_multilevel import MLNLE, MLNPE, MultilevelConfig
from tests.linear_gaussian import SilentTracker, prior, simulations
from tests.test_trainers import FEW, make, single_level_rows

pytestmark = [
    pytest.mark.parametrize("cls", (MLNPE, MLNLE)),
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
]


def rows(level=1, n=20, d=2, k=2):
    theta, x = torch.randn(n, d), torch.randn(n, k)
    return dict(theta=theta, x=x, x_coarse=x + 0.1 * torch.randn(n, k), level=level)


@pytest.mark.parametrize(
    "bad, named",
    [
        (rows(level=4), r"\[0, 1, 2, 4\]"),
        (rows(level=0), "x_coarse was passed with level=0"),
        (rows(k=3), r"x of level 1 has shape \(3,\)"),
        (rows(d=3), r"theta of level 1 has shape \(3,\)"),
        ({**rows(), "x_coarse": None}, "x_coarse is None with level=1"),
        ({**rows(), "level": None}, "level is None"),
        ({**rows(), "x": None}, "x is None"),
        ({**rows(), "x": torch.randn(19, 2)}, "differ in length"),
        ({**rows(), "theta": torch.full((20, 2), torch.nan)}, "0 valid rows"),
        ({**rows(), "x": torch.randn(20, 2, device="meta")}, "several devices"),
        ({**rows(), "data_device": "meta"}, "device 'meta', those before on 'cpu'"),
        (
            {**rows(), "proposal": torch.distributions.Normal(0, 1)},
            "proposal is a Normal",
        ),
        ({"theta": simulations(), "level": 1}, "beside MultilevelSimulations"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_lost(cls, bad, named):
    trainer = make(cls)
    before = trainer.multilevel_simulations
    with pytest.raises(ValueError, match=named):
        trainer.append_multilevel_simulations(**bad)
    after = trainer.multilevel_simulations
    assert after.num_simulations == before.num_simulations
    assert all(torch.equal(a.x, b.x) for a, b in zip(before, after))
    trainer.train(**FEW)


def test_levels_come_in_rising_order(cls):
    trainer = cls(prior(), config="multilevel", tracker=SilentTracker())
    with pytest.raises(ValueError, match=r"levels must be 0.*\[1\]"):
        trainer.append_multilevel_simulations(**rows())


def test_unpaired_rows_enter_at_level_0_only(cls):
    with pytest.raises(ValueError, match="level=1.*telescoping"):
        make(cls).append_lowfidelity_simulations(*single_level_rows(), level=1)


@pytest.mark.parametrize("config", ("multilevel", "hybrid"))
def test_level_0_alone_is_not_enough(cls, config):
    trainer = cls(
        prior(), config=config, tracker=SilentTracker(), show_progress_bars=False
    )
    trainer.append_lowfidelity_simulations(*single_level_rows())
    with pytest.raises(ValueError, match="Only (level 0 was|lower levels were)"):
        trainer.train(**FEW)


def test_rows_without_a_level_do_not_mix_with_levels(cls):
    trainer = cls(
        prior(), config="multilevel", tracker=SilentTracker(), show_progress_bars=False
    )
    trainer.append_simulations(*single_level_rows())
    with pytest.raises(ValueError, match="`append_simulations` was called before"):
        trainer.append_multilevel_simulations(simulations())
    trainer.train(**FEW)
    trainer = make(cls).append_simulations(*single_level_rows())
    with pytest.raises(ValueError, match="beside multilevel rows"):
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
        trainer.append_simulations(*single_level_rows(), from_round=1)
    else:
        trainer.append_simulations(*single_level_rows()).train(**FEW)
        proposal = trainer.build_posterior().set_default_x(torch.zeros(2))
        trainer.append_simulations(*single_level_rows(), proposal=proposal)
    with pytest.raises(ValueError, match="later round"):
        trainer.append_multilevel_simulations(simulations())


def test_unknown_recipes_are_refused(cls):
    with pytest.raises(ValueError, match="recipe.*'multilvl'"):
        cls(prior(), config="multilvl")
    for bad in (
        dict(adjustment="rescal"),
        dict(alignment="affine"),
        dict(betas=(0.9, 1.0)),
        dict(weight_decay=-1),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            cls(prior(), config=MultilevelConfig(**bad))
