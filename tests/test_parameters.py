"""Parameters that only some levels have."""

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import MFNPE
from sbi_multilevel.data.parameters import LevelParameters
from tests.linear_gaussian import SilentTracker
from tests.test_trainers import FEW
from tests.test_transfer import BOX, both, box_rows

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


def test_missing_columns_come_from_the_prior_and_extra_ones_are_dropped():
    columns = LevelParameters({0: ("b", "psi"), 1: ("a", "b")})
    theta = torch.rand(1_000, 2)
    full = columns.complete(theta, 0, BOX)
    assert torch.equal(full[:, 1], theta[:, 0])
    assert full[:, 0].min() > -2 and full[:, 0].max() < 1
    assert full[:, 0].mean() == pytest.approx(-0.5, abs=4 * 3 / 12**0.5 / 1_000**0.5)
    assert columns.complete(theta, 1, BOX) is theta


@both
def test_levels_with_other_parameters_train(cls):
    names = {0: ("b", "psi"), 1: ("a", "b")}
    trainer = cls(
        BOX, "mdn", parameters=names, tracker=SilentTracker(), show_progress_bars=False
    )
    theta, x = box_rows(200)
    with pytest.raises(ValueError, match=r"theta of level 0 has shape \(200, 3\)"):
        trainer.append_lowfidelity_simulations(torch.randn(200, 3), x)
    low = torch.stack([theta[:, 1], torch.rand(200)], dim=1)
    trainer.append_lowfidelity_simulations(low, x).append_simulations(*box_rows(50))
    network = trainer.train(**FEW)
    shape = network.input_shape if cls is MFNPE else network.condition_shape
    assert shape == (2,)


@pytest.mark.parametrize(
    "names",
    [{0: ("a", "a"), 1: ("a",)}, {0: ("c",), 1: ("a", "b")}, {0: "ab", 1: "ab"}],
)
def test_bad_names_are_refused(names):
    with pytest.raises(ValueError, match="parameters of level"):
        MFNPE(BOX, parameters=names, tracker=SilentTracker())


def test_dummies_learn_their_prior():
    """Exact truth: the coarse simulator knows theta_1 only."""
    the_prior = BoxUniform(torch.zeros(2), torch.ones(2))
    names = {0: ("b",), 1: ("a", "b")}
    trainer = MFNPE(
        the_prior,
        "mdn",
        parameters=names,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    theta = the_prior.sample((3_000,))[:, 1:]
    x = theta + 0.1 * torch.randn(3_000, 1)
    trainer.append_lowfidelity_simulations(theta, x)
    network = trainer.train(learning_rate=5e-3)
    samples = network.sample((4_000,), torch.full((1, 1), 0.5))[:, 0].detach()
    assert samples[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert samples[:, 0].std() == pytest.approx(12**-0.5, abs=0.04)
    assert samples[:, 1].std() == pytest.approx(0.1, abs=0.03)
