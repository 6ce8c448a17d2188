"""Hybrid methods: the mixture, its posteriors, and what is refused."""

from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import process_prior

from sbi_multilevel import (
    HybridConfig,
    HybridNLE,
    HybridNPE,
    LevelSimulations,
    MultilevelSimulations,
    Truncation,
    train_ensemble,
)
from sbi_multilevel.data.preparation import fill_constant
from sbi_multilevel.estimators.mixture import MixtureEstimator
from tests import linear_gaussian
from tests.hybrids import ALL_MAPS, BRIEF, PRIOR, QUICK, make, simulated, trained


@pytest.mark.parametrize("cls", [HybridNPE, HybridNLE])
@pytest.mark.parametrize("paired", [True, False])
def test_training_returns_one_mixture(cls, paired):
    inference = trained(cls, simulated(paired=paired), ALL_MAPS)
    assert isinstance(inference._neural_net, MixtureEstimator)
    names = ["with lower levels", "high fidelity alone"]
    names += ["prior"] * (inference._target == "theta")
    assert set(inference.hybrid_summary.log_scores) == set(names)
    assert sum(inference.hybrid_summary.weights.values()) == pytest.approx(1)
    posterior = inference.build_posterior()
    log_prob = posterior.log_prob(torch.zeros(3, 1), x=torch.ones(1, 2))
    assert log_prob.shape == (3,) and log_prob.isfinite().all()


def test_three_levels_are_mapped_step_by_step():
    inference = HybridNPE(
        linear_gaussian.prior(), "mdn", config=ALL_MAPS, show_progress_bars=False
    ).append_multilevel_simulations(linear_gaussian.simulations())
    inference.train(**BRIEF)
    assert len(inference.hybrid_summary.level_maps) == 2
    printed = str(inference.estimate_gain())
    assert (
        "level 0 mapped to level 1 by" in printed
        and "40 high-fidelity simulations" in printed
    )


def with_feature(simulations, values):
    """One more feature: standard normal at level 1, given values at level 0."""
    low, high = simulations
    noise = torch.randn(len(high), 1, generator=torch.Generator().manual_seed(1))
    of_low = torch.cat((low.x, values[: len(low)]), dim=1)
    of_pairs = torch.cat((high.x_coarse, values[len(low) :]), dim=1)
    x = torch.cat((high.x, noise), dim=1)
    return MultilevelSimulations((
        LevelSimulations(0, low.theta, of_low),
        LevelSimulations(1, high.theta, x, of_pairs),
    ))


@pytest.mark.parametrize("cls", (HybridNPE, HybridNLE))
@pytest.mark.slow
def test_a_feature_constant_at_level_0_is_as_good_as_noise(cls):
    simulations = simulated(n_low=500, n_high=60)
    noise = torch.randn(560, 1, generator=torch.Generator().manual_seed(2))
    options = {"config": ALL_MAPS, "options": {"learning_rate": 2e-3}}
    with pytest.warns(UserWarning, match="Features 2 of x are constant at level 0, "):
        constant = trained(
            cls, with_feature(simulations, torch.ones(560, 1)), **options
        )
    alive = trained(cls, with_feature(simulations, noise), **options)
    score, reference = (
        each.hybrid_summary.log_scores["with lower levels"]
        for each in (constant, alive)
    )
    assert score > reference - 0.6


def test_simulations_without_constant_features_are_unchanged():
    simulations = simulated()
    assert fill_constant(simulations, "theta", 0) is simulations
    # constant at both levels
    low, high = simulations
    same = MultilevelSimulations((
        LevelSimulations(0, low.theta, torch.cat((low.x, torch.ones(200, 1)), 1)),
        LevelSimulations(1, high.theta, torch.cat((high.x, torch.ones(20, 1)), 1)),
    ))
    assert fill_constant(same, "theta", 0) is same


def test_without_mixing_only_members_are_trained():
    inference = trained(config=replace(QUICK, mix=False))
    summary = inference.estimate_gain()
    assert list(summary.weights) == list(summary.log_scores) == ["with lower levels"]
    assert summary.effective_sample_size is None
    assert "with lower levels" in str(summary)


class UsersPrior:
    """A prior that sbi wraps, in a wrapper without `to`."""

    def sample(self, shape=torch.Size()):
        return PRIOR.sample(shape)

    def log_prob(self, theta):
        return PRIOR.log_prob(theta)


def test_a_prior_of_a_custom_class_works():
    prior, *_ = process_prior(
        UsersPrior(),
        {"lower_bound": -torch.ones(1), "upper_bound": torch.ones(1)},
    )
    inference = HybridNPE(prior, "mdn", config=QUICK, show_progress_bars=False)
    inference.append_multilevel_simulations(simulated()).train(**BRIEF)
    assert "prior" in inference.hybrid_summary.weights
    samples = inference.build_posterior().sample((20,), x=torch.ones(1, 2))
    assert samples.abs().max() <= 1


def test_without_lower_levels_there_is_no_effective_sample_size():
    alone = simulated()[1]
    alone = LevelSimulations(0, alone.theta, alone.x)
    inference = trained(simulations=MultilevelSimulations((alone,)))
    with pytest.raises(ValueError, match="one level only"):
        inference.estimate_gain()
    assert set(inference.hybrid_summary.weights) <= {"high fidelity alone", "prior"}


def test_truncation_leaves_out_the_prior():
    inference = trained()
    assert inference.hybrid_summary.weights["prior"] > 0
    truncation, theta = Truncation(num_samples=2_000), PRIOR.sample((500,))
    regions = []
    for estimator in (inference._neural_net, inference._neural_net.without_prior()):
        posterior = inference.build_posterior(estimator)
        posterior.set_default_x(torch.tensor([[1.5, 0.5]]))
        torch.manual_seed(0)
        region = truncation.truncate(posterior, PRIOR)
        regions.append(region._accept_reject_fn(theta))
    assert torch.equal(*regions)


def test_without_a_prior_the_prior_is_no_component():
    inference = HybridNPE(
        density_estimator="mdn", config=QUICK, show_progress_bars=False
    )
    inference.append_multilevel_simulations(simulated()).train(**BRIEF)
    assert "prior" not in inference.hybrid_summary.weights


def test_a_builder_with_unconstrained_theta_is_not_transformed_again():
    build = posterior_nn(
        "mdn", z_score_theta="transform_to_unconstrained", x_dist=PRIOR
    )
    inference = trained(density_estimator=build)
    grid = torch.linspace(-0.999, 0.999, 2_001)
    log_prob = inference._neural_net.log_prob(grid.reshape(-1, 1, 1), torch.ones(1, 2))
    mass = torch.trapezoid(log_prob[:, 0].exp(), grid)
    assert mass.item() == pytest.approx(1, abs=0.02)


def test_a_refused_training_leaves_no_network():
    inference = make(simulations=simulated(100, 3))
    with pytest.raises(ValueError, match="at least 4"):
        inference.train(**BRIEF)
    assert inference._neural_net is None
    more = simulated(100, 20)[1]
    inference.append_multilevel_simulations(
        more.theta, more.x, more.x_coarse, level=1
    ).train(**BRIEF)
    assert inference._neural_net is not None


def test_simulations_with_and_without_pairs_give_a_warning():
    inference = make()
    inference.append_simulations(torch.zeros(1, 1), torch.zeros(1, 2))
    with pytest.warns(UserWarning, match="Level 1 has simulations with and without"):
        inference.train(**BRIEF)


def test_map_scores_do_not_depend_on_the_order_of_simulations():
    """In sorted order without shuffling, maps would extrapolate to held-out folds."""
    low, high = simulated(400, 90, paired=False)
    bent = high.x + 3 * torch.sin(4 * high.theta)
    simulations = MultilevelSimulations((low, LevelSimulations(1, high.theta, bent)))
    in_order = MultilevelSimulations(
        tuple(level[level.theta[:, 0].argsort()] for level in simulations)
    )
    scores = [
        trained(simulations=each, config=ALL_MAPS).hybrid_summary.map_scores[0]
        for each in (simulations, in_order)
    ]
    for kind, score in scores[0].items():
        assert scores[1][kind] == pytest.approx(score, abs=2)


@pytest.mark.slow
def test_the_seed_determines_training_for_any_number_of_workers():
    one = trained(config=ALL_MAPS)
    with joblib.parallel_config(n_jobs=2):
        two = trained(config=ALL_MAPS)
    three = trained(config=ALL_MAPS, seed=1)
    first, second, other = (
        list(inference._neural_net.state_dict().values())
        for inference in (one, two, three)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert any(not torch.equal(a, b) for a, b in zip(first, other))


def test_posteriors_stay_inside_the_prior():
    posterior = trained().build_posterior()
    samples = posterior.sample((500,), x=torch.ones(1, 2), show_progress_bars=False)
    assert (samples.abs() <= 1).all()
    batch = posterior.sample_batched((5,), x=torch.ones(3, 2), show_progress_bars=False)
    assert batch.shape == (5, 3, 1) and (batch.abs() <= 1).all()
    outside = posterior.log_prob(torch.tensor([[1.5]]), x=torch.ones(1, 2))
    assert outside.item() == -torch.inf


def test_samples_of_a_batch_are_independent():
    posterior = trained().build_posterior()
    x = torch.ones(1, 2)
    wanted = posterior.sample((4_000,), x=x, show_progress_bars=False).std()
    drawn = posterior.sample_batched(
        (1,), x=x.repeat(1_000, 1), show_progress_bars=False
    )
    assert drawn.std().item() == pytest.approx(wanted.item(), rel=0.15)


def test_with_transformed_tails_the_density_of_x_is_normalized():
    simulations = MultilevelSimulations(
        tuple(
            LevelSimulations(r.level, r.theta, torch.sinh(3 * r.x[:, :1]))
            for r in simulated(400, 40, paired=False)
        )
    )
    estimator = trained(HybridNLE, simulations)._neural_net
    assert estimator.tails is not None
    grid = torch.sinh(torch.linspace(-40, 40, 40_001, dtype=torch.float64))
    log_prob = estimator.log_prob(grid.float().reshape(-1, 1, 1), torch.zeros(1, 1))
    mass = torch.trapezoid(log_prob[:, 0].double().exp(), grid)
    assert mass.item() == pytest.approx(1, abs=0.01)
    assert (
        trained(
            HybridNLE, simulations, replace(QUICK, transform_tails=False)
        )._neural_net.tails
        is None
    )


def test_images_work_with_an_embedding_net():
    simulations = MultilevelSimulations(
        tuple(
            LevelSimulations(r.level, r.theta, r.x.repeat(1, 50).reshape(-1, 10, 10))
            for r in simulated(100, 20, paired=False)
        )
    )
    net = CNNEmbedding(
        (10, 10),
        out_channels_per_layer=[2],
        num_conv_layers=1,
        num_linear_layers=1,
        output_dim=4,
    )
    inference = trained(
        simulations=simulations,
        config=ALL_MAPS,
        density_estimator=posterior_nn("mdn", embedding_net=net),
    )
    samples = inference.build_posterior().sample(
        (7,), x=torch.ones(1, 10, 10), show_progress_bars=False
    )
    assert samples.shape == (7, 1)


def test_training_with_more_simulations_is_from_scratch():
    inference = trained()
    inference.append_multilevel_simulations(
        torch.zeros(9, 1), torch.randn(9, 2), torch.randn(9, 2), level=1
    )
    inference.train(**BRIEF, force_first_round_loss=True)
    assert inference.estimate_gain().effective_sample_size.num_high == 29


def test_four_high_fidelity_simulations_are_enough():
    inference = trained(simulations=simulated(100, 4), config=HybridConfig())
    assert inference.estimate_gain().effective_sample_size.num_high == 4
    with pytest.raises(ValueError, match="at least 4"):
        trained(simulations=simulated(100, 3), config=HybridConfig())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda: make().warm_start({}),
        lambda: train_ensemble(make()),
        lambda: trained().train(resume_training=True, force_first_round_loss=True),
        lambda: HybridConfig(num_members=1),
        lambda: HybridConfig(level_maps=("paired", "magic")),
        lambda: HybridConfig(level_maps="paired"),
        lambda: HybridConfig(early_stopping=False),
    ],
)
def test_unsupported_calls_are_refused(break_it):
    with pytest.raises(ValueError, match="hybrid|num_members|level_maps|early"):
        break_it()


def test_the_summary_survives_pickling(tmp_path):
    inference = trained()
    path = tmp_path / "trainer.pkl"
    joblib.dump(inference, path)
    assert str(joblib.load(path).hybrid_summary) == str(inference.hybrid_summary)


@pytest.mark.slow
def test_good_low_fidelity_has_the_weight_and_the_gain():
    inference = trained(
        simulations=simulated(2_000, 20), config=HybridConfig(), options={}
    )
    assert inference.hybrid_summary.weights["with lower levels"] > 0.8
    assert inference.estimate_gain().effective_sample_size.estimate > 40


@pytest.mark.slow
def test_good_low_fidelity_helps_and_useless_low_fidelity_does_no_harm():
    # level maps are regressions of x on theta even where level 0 is useless, and few
    # simulations are enough for that if x is linear in theta
    wave = lambda theta: torch.sin(3 * theta)
    test = simulated(2, 2_000, seed=9, signal=wave)[1]
    scores = {}
    for name, simulations in (
        ("good", simulated(2_000, 20, signal=wave)),
        ("useless", simulated(2_000, 10, False, useless=True, signal=wave)),
    ):
        inference = trained(simulations=simulations, config=HybridConfig(), options={})
        with torch.no_grad():
            values = inference._neural_net.log_prob(test.theta.unsqueeze(0), test.x)[0]
        scores[name] = values.mean().item()
    assert scores["good"] > scores["useless"] + 0.1
    # log score of the prior, which is uniform on [-1, 1]
    assert scores["useless"] > -np.log(2)


def test_pairs_for_level_maps_are_kept_and_checked():
    theta = 4 * torch.ones(6, 1)  # outside of the prior
    pairs = (theta, torch.randn(6, 2), torch.randn(6, 2))
    trainer = make().append_map_simulations(*pairs, level=1)
    trainer.train(**BRIEF)
    with pytest.raises(ValueError, match="level=1 were appended to fit maps before"):
        trainer.append_map_simulations(*pairs, level=1)
    with pytest.raises(ValueError, match="level=0 was passed"):
        make().append_map_simulations(*pairs, level=0)
