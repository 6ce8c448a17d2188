"""Short trainings at a fixed seed give the densities that they gave before.

The densities were recorded before the package was arranged in layers. They hold on any
processor up to rounding; no choice between level maps or components is involved.
"""

import pytest
import torch

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    HybridConfig,
    HybridNPE,
    MultilevelConfig,
    TransferConfig,
)
from tests.linear_gaussian import SilentTracker, prior, simulations

ONE_MAP = HybridConfig(
    num_members=2, level_maps=("shift",), mix=False, schedule=None, distill=False
)
CASES = {
    "MLNPE": (MLNPE, None),
    "MLNLE": (MLNLE, MultilevelConfig(adjustment="project", alignment="affine")),
    "MFNPE": (MFNPE, None),
    "MFNLE": (MFNLE, TransferConfig(rehearsal=0.3)),
    "HybridNPE": (HybridNPE, ONE_MAP),
}
# of three simulations
LOG_DENSITIES = {
    "MLNPE": [-4.640, -4.606, -4.606],
    "MLNLE": [-4.809, -4.870, -4.921],
    "MFNPE": [-3.901, -4.020, -4.030],
    "MFNLE": [-2.272, -2.508, -2.380],
    "HybridNPE": [-2.901, -3.011, -2.904],
}


def log_densities(cls, config):
    torch.manual_seed(0)
    trainer = cls(
        prior(),
        density_estimator="maf",
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    sims = simulations((200, 40, 40))
    trainer.append_multilevel_simulations(sims)
    network = trainer.train(max_num_epochs=2, training_batch_size=100).eval()
    theta, x = sims[2].theta[:3], sims[2].x[:3]
    with torch.no_grad():
        if cls in (MLNLE, MFNLE):
            return network.log_prob(x[None], condition=theta)[0].tolist()
        return network.log_prob(theta[None], condition=x)[0].tolist()


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("name", CASES)
def test_densities_are_those_of_before(name):
    expected = pytest.approx(LOG_DENSITIES[name], abs=0.02)
    assert log_densities(*CASES[name]) == expected
