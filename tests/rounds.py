"""Rounds of all levels on the linear-Gaussian problem, for tests."""

import pytest
import torch

from sbi_multilevel import (
    MFSNLE,
    MLTSNPE,
    HybridConfig,
    HybridTSNPE,
    Truncation,
)
from sbi_multilevel.utils.seeds import seeded
from tests import linear_gaussian as problem

EXPECTED_WARNINGS = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:.*simulations of round"),
    pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken"),
]
COARSE, FINE = problem.SIMULATORS[0], problem.SIMULATORS[2]
X_O = torch.tensor([0.4, -0.3])
SMALL = HybridConfig(num_members=2, level_maps=("shift",), distill=False)
OPTIONS = {
    "density_estimator": "mdn",
    "truncation": Truncation(epsilon=1e-3, num_samples=2_000),
    "train_options": {"max_num_epochs": 5, "learning_rate": 5e-3},
}
RUN = {"noise": problem.noise, "show_progress_bars": False}
MCMC = {
    "num_chains": 10,
    "warmup_steps": 3,
    "thin": 1,
    "init_strategy_parameters": {"num_candidate_samples": 20},
}
BOTH = ((COARSE, FINE), (200, 20))


def hybrid(prior=None, x_o=X_O, seed=1, **options):
    options = {"config": SMALL, **OPTIONS, **options}
    return HybridTSNPE(prior or problem.prior(), x_o, seed=seed, **options)


def multilevel(x_o=X_O, seed=1, **options):
    return MLTSNPE(problem.prior(), x_o, seed=seed, **{**OPTIONS, **options})


def likelihood(x_o=X_O, seed=1, **options):
    options = {
        "density_estimator": "mdn",
        "config": SMALL,
        "mcmc_options": MCMC,
        "train_options": OPTIONS["train_options"],
        **options,
    }
    return MFSNLE(problem.prior(), x_o, seed=seed, **options)


methods = pytest.mark.parametrize("make", (hybrid, multilevel, likelihood))
with_slow = pytest.mark.parametrize(
    "make", (hybrid, multilevel, pytest.param(likelihood, marks=pytest.mark.slow))
)
truncating = pytest.mark.parametrize("make", (hybrid, multilevel))


def step(inference, num_simulations=(150, 12), seed=0):
    """A round by hand."""
    if isinstance(inference, MFSNLE):
        num_simulations = (50, 12)  # MCMC takes time
    low, high = inference.propose(num_simulations)
    torch.manual_seed(seed)
    noise, of_low = torch.randn(len(high), 2), torch.randn(len(low), 2)
    inference.append_lowfidelity_simulations(low, COARSE(low, of_low))
    inference.append_multilevel_simulations(
        high, FINE(high, noise), COARSE(high, noise), level=1
    )
    inference.train()
    return low, high


def samples(inference):
    with seeded(0):  # MCMC draws from NumPy
        posterior = inference.build_posterior()
        return posterior.sample((20,), show_progress_bars=False)
