"""The benchmark methods that simulate all levels in rounds, on a small task."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from sbi_multilevel import (
    MLTSNPE,
    HybridConfig,
    HybridTSNPE,
    MultilevelSimulations,
    Truncation,
)
from sbi_multilevel_benchmarks.methods.rounds import MultilevelRoundsMethod
from sbi_multilevel_benchmarks.registry import METHODS
from sbi_multilevel_benchmarks.rounds import exact_posterior, observation
from tests import linear_gaussian as problem

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
OPTIONS = {
    "truncation": Truncation(epsilon=1e-3, num_samples=2_000),
    "train_options": {"max_num_epochs": 5, "learning_rate": 5e-3},
}
SMALL = HybridConfig(num_members=2, level_maps=("none", "shift"), distill=False)
TASK = SimpleNamespace(
    prior=problem.prior(),
    simulators=(problem.SIMULATORS[0], problem.SIMULATORS[2]),
    noise=problem.noise,
    observations=torch.tensor([[0.4, -0.3], [-0.5, 0.2]]),
    build_network=lambda: "mdn",
)


@pytest.mark.parametrize(
    "rounds_type",
    (partial(HybridTSNPE, config=SMALL, **OPTIONS), partial(MLTSNPE, **OPTIONS)),
)
def test_each_observation_has_rounds_of_its_own(rounds_type):
    simulations = problem.simulations((200, 24))
    fit = MultilevelRoundsMethod(rounds_type)(TASK, simulations, seed=1)
    low, high = fit.runs
    # no more than other methods have, and those of the first round at least
    assert high == 24 and 66 + 24 <= low <= 200 + 24
    first, second = (
        fit.evaluated.sample((200,), x=x_o.unsqueeze(0)) for x_o in TASK.observations
    )
    assert first.shape == (200, 2)
    assert first.mean(0)[0] > second.mean(0)[0]


def test_rounds_of_a_task_without_pairs_simulate_pairs():
    unpaired = problem.simulations((200, 24))
    levels = [replace(level, x_coarse=None) for level in unpaired]
    rounds_type = partial(MLTSNPE, **OPTIONS)
    task = SimpleNamespace(**{**vars(TASK), "observations": TASK.observations[:1]})
    fit = MultilevelRoundsMethod(rounds_type)(
        task, MultilevelSimulations(tuple(levels)), seed=1
    )
    assert fit.runs[1] == 24


def test_too_few_pairs_for_all_rounds_are_an_error():
    simulations = problem.simulations((200, 14))
    with pytest.raises(ValueError, match=r"\(200, 14\) in 3 rounds, .* least 5 pairs"):
        MultilevelRoundsMethod(partial(MLTSNPE, **OPTIONS))(TASK, simulations, seed=1)


def test_the_methods_are_registered():
    assert {"hybrid-tsnpe", "ml-tsnpe"} <= set(METHODS)
    for end, on in (("", "density"), ("-gain", "gain")):
        rounds_type = METHODS[f"hybrid-tsnpe-af{end}"].rounds_type
        inference = rounds_type(TASK.prior, TASK.observations[0], "mdn", seed=1)
        assert inference._settings.acquisition.on == on


def test_the_exact_posterior_of_the_drug_task_is_a_density():
    x_o = observation(0)
    samples, log_p = exact_posterior(x_o)
    assert samples.shape == (2_000, 3) and x_o.shape == (1, 8)
    # exp(-log p) estimates the volume that the posterior fills, a part of the prior
    assert 0.01 < (-log_p).exp().mean() < 1.0
