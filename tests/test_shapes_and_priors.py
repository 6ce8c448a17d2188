"""Shapes that do not fit each other, and priors of several scalars."""

import math

import pytest
import torch
from sbi.utils import process_prior
from torch.distributions import Exponential, Independent, Uniform

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFSNLE,
    MLNPE,
    MLTSNPE,
    HybridConfig,
    HybridFMPE,
    HybridNLE,
    HybridNPE,
    HybridNRE,
    HybridTSNPE,
    LevelSimulations,
    MultilevelSimulations,
)
from sbi_multilevel.utils.seeds import seeded
from tests.rounds import COARSE, FINE, MCMC, OPTIONS, RUN, X_O
from tests.two_levels import PRIOR, simulate

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
SMALL = HybridConfig(num_members=2, level_maps=("shift",), distill=False)
NO_BARS = {"show_progress_bars": False}
MDN = {"density_estimator": "mdn", **NO_BARS}
BRIEF = {"max_num_epochs": 2}
SCALARS = Uniform(-torch.ones(2), torch.ones(2))  # a batch of two priors


@pytest.fixture(scope="module")
def simulations():
    return simulate(n=(100, 20))


@pytest.mark.parametrize(
    ("cls", "options"), ((MFNPE, {}), (MLNPE, {}), (HybridNPE, {"config": SMALL}))
)
def test_a_batch_of_scalar_priors_is_one_prior(cls, options, simulations):
    inference = cls(SCALARS, **options, **MDN)
    inference.append_multilevel_simulations(simulations).train(**BRIEF)
    posterior, x_o = inference.build_posterior(), torch.zeros(1, 2)
    assert posterior.sample((5,), x=x_o, **NO_BARS).shape == (5, 2)
    outside = torch.tensor([[0.0, 2.0]])
    assert posterior.log_prob(outside, x=x_o).tolist() == [float("-inf")]


@pytest.mark.parametrize(
    "cls", (HybridTSNPE, MLTSNPE, pytest.param(MFSNLE, marks=pytest.mark.slow))
)
@pytest.mark.filterwarnings("ignore:.*simulations of round")
def test_rounds_take_a_batch_of_scalar_priors_as_one_prior(cls):
    options = dict(OPTIONS)
    if cls is MFSNLE:  # which has no truncation
        options = {**options, "mcmc_options": MCMC}
        del options["truncation"]
    if cls is not MLTSNPE:
        options["config"] = SMALL
    samples = []
    for prior in (SCALARS, Independent(SCALARS, 1)):
        inference = cls(prior, X_O, seed=1, **options)
        posterior = inference.run((COARSE, FINE), (60, 16), num_rounds=2, **RUN)
        with seeded(0):
            samples.append(posterior.sample((3,), **NO_BARS))
    assert torch.equal(*samples)


def test_the_prior_stays_the_object_that_was_passed(simulations):
    inference = MFNPE(SCALARS, **MDN)
    for level in simulations:
        inference.append_multilevel_simulations(
            level.theta, level.x, level=level.level, proposal=SCALARS
        )
    assert inference.multilevel_simulations.num_simulations == (100, 20)
    plain = MFNPE(SCALARS, **MDN).append_simulations(
        simulations[0].theta, simulations[0].x, proposal=SCALARS
    )
    assert plain._data_round_index == [0]


def test_a_prior_of_one_parameter_works_as_sbi_wraps_it(simulations):
    prior, _, _ = process_prior(Exponential(torch.ones(1)))
    inference = HybridNPE(prior, config=SMALL, **MDN)
    for level in simulations:
        inference.append_multilevel_simulations(
            level.theta[:, :1].exp(), level.x, level=level.level
        )
    inference.train(**BRIEF)
    posterior = inference.build_posterior()
    assert posterior.sample((5,), x=torch.zeros(1, 2), **NO_BARS).shape == (5, 1)


def test_theta_outside_of_a_batch_of_scalar_priors_is_counted_by_simulation(
    simulations,
):
    low, high = simulations
    theta = low.theta.clone()
    theta[:7] += 3
    inference = MFNPE(SCALARS, **MDN).append_lowfidelity_simulations(theta, low.x)
    inference.append_simulations(high.theta, high.x)
    with pytest.raises(ValueError, match="theta of 7 of 100 simulations"):
        inference.train(**BRIEF)


@pytest.mark.parametrize("cls", (MFNPE, HybridNPE, MFNLE))
def test_theta_must_have_the_parameters_of_the_prior(cls, simulations):
    options = {"config": SMALL} if cls is HybridNPE else {}
    inference = cls(PRIOR, **options, **MDN)
    for level in simulations:
        inference.append_multilevel_simulations(
            level.theta[:, :1], level.x, level=level.level
        )
    with pytest.raises(ValueError, match="has 1 columns, but the prior has 2"):
        inference.train(**BRIEF)


@pytest.mark.parametrize(
    ("cls", "options"),
    (
        (MFNLE, MDN),
        (HybridNLE, {"config": SMALL, **MDN}),
        (HybridNRE, {"config": SMALL, **NO_BARS}),
    ),
)
def test_an_observation_of_another_shape_is_refused(cls, options, simulations):
    inference = cls(PRIOR, **options).append_multilevel_simulations(simulations)
    inference.train(**BRIEF)
    posterior, theta = inference.build_posterior(), torch.zeros(5, 2)
    assert posterior.potential(theta, x=torch.zeros(1, 2)).shape == (5,)
    for width in (1, 3):  # one feature would be broadcast
        with pytest.raises(ValueError, match="Shape of input|x has shape"):
            posterior.potential(theta, x=torch.zeros(1, width))


def test_names_of_parameters_need_one_level_at_a_time(simulations):
    unpaired = MultilevelSimulations(
        tuple(LevelSimulations(each.level, each.theta, each.x) for each in simulations)
    )
    names = {0: ("b", "a"), 1: ("a", "b")}
    inference = MFNPE(PRIOR, parameters=names, **MDN)
    with pytest.raises(ValueError, match="other columns of theta at level 0, but"):
        inference.append_multilevel_simulations(unpaired)
    same = MFNPE(PRIOR, parameters={0: ("a", "b"), 1: ("a", "b")}, **MDN)
    assert same.append_multilevel_simulations(unpaired).multilevel_simulations


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"theta": slice(0, 1)}, "theta of level 1 has shape"),
        ({"x": slice(0, 1)}, "x of level 1 has shape"),
        ({"level": 3}, "level=3 was passed to append_map_simulations, but"),
    ),
)
def test_pairs_for_level_maps_fit_the_simulations(change, message, simulations):
    high = simulations[1]
    theta = high.theta[:, change.get("theta", slice(None))]
    sides = (x[:, change.get("x", slice(None))] for x in (high.x, high.x_coarse))
    inference = HybridNPE(PRIOR, config=SMALL, **MDN)
    inference.append_multilevel_simulations(simulations)
    inference.append_map_simulations(theta, *sides, level=change.get("level", 1))
    with pytest.raises(ValueError, match=message):
        inference.train(**BRIEF)


def test_weighted_simulations_are_of_the_highest_level(simulations):
    low, high = simulations
    x = high.x.clone()
    x[0] = torch.nan
    inference = MFNPE(PRIOR, **MDN).append_lowfidelity_simulations(low.theta, low.x)
    with pytest.warns(UserWarning, match="Dropped 1 of 20 simulations of level 1"):
        inference.append_weighted_simulations(high.theta, x, torch.ones(20))


def test_a_start_must_be_an_estimator_or_weights():
    with pytest.raises(TypeError, match="source must be a `ConditionalEstimator`"):
        MFNPE(PRIOR, **MDN).warm_start(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prior", (None, SCALARS))
def test_hybrid_ratios_take_the_priors_that_densities_take(prior, simulations):
    inference = HybridNRE(prior, "mlp", config=SMALL, **NO_BARS)
    inference.append_multilevel_simulations(simulations).train(**BRIEF)
    posterior = inference.build_posterior(prior=PRIOR)
    assert posterior.log_prob(torch.zeros(3, 2), x=torch.zeros(1, 2)).shape == (3,)
    of_high = inference.hybrid_summary.log_scores["high fidelity alone"]
    assert torch.tensor(of_high).isfinite()


def test_draws_outside_of_the_support_have_no_density_of_the_prior():
    prior = Independent(Exponential(torch.ones(2), validate_args=True), 1)
    theta = prior.sample((120,))
    levels = [
        LevelSimulations(0, theta, theta + 0.3 * torch.randn(120, 2)),
        LevelSimulations(1, theta[:20], 1.1 * theta[:20] + 0.3 * torch.randn(20, 2)),
    ]
    config = HybridConfig(num_members=2, level_maps=("shift",), distill=True)
    inference = HybridFMPE(prior, "mlp", config=config, **NO_BARS)
    inference.append_multilevel_simulations(MultilevelSimulations(tuple(levels)))
    inference.train(**BRIEF)
    assert math.isfinite(inference.hybrid_summary.distillation.loss)


def test_the_gain_of_one_level_alone_is_an_error_that_says_so(simulations):
    inference = HybridNPE(PRIOR, **MDN)
    high = simulations[1]
    inference.append_simulations(high.theta, high.x).train(**BRIEF)
    with pytest.raises(ValueError, match="there is one level only"):
        inference.estimate_gain()
