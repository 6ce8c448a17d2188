"""Algorithms 3 and 4 of Krouglova et al. (2026), line by line, and their options."""

import pytest
import torch
from sbi.neural_nets import posterior_nn
from scipy.stats import kstest

from sbi_multilevel import Acquisition, TransferConfig
from sbi_multilevel.methods.sequential.coverage import coverage_levels
from tests import linear_gaussian as problem
from tests.test_mftsnpe import FINE, LOW, RUN, X_O, make, networks, simulate
from tests.test_truncation import PRIOR, ExactPosterior, direct

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
EVERYWHERE = lambda theta: torch.ones(len(theta), dtype=torch.bool)
THETA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def active(num_members=2, pool_size=50, correct=False, **options):
    """An inference with active points; options of `Acquisition` go by their names."""
    names = ("fixed_pool", "first_round")
    chosen = {name: options.pop(name) for name in names if name in options}
    acquisition = Acquisition(pool_size=pool_size, correct=correct, **chosen)
    return make(num_members=num_members, acquisition=acquisition, **options)


def step(inference, num=20):
    """One round by hand; returns the active points."""
    theta = inference.propose(num)
    torch.manual_seed(0)
    inference.append_simulations(theta, simulate(theta)).train()
    return theta[num - inference.summary["num_active"][-1] :]


def densities(inference):
    """Density of each member at the observation."""
    posteriors = inference.build_posterior().posteriors
    return [p.log_prob(THETA, norm_posterior=False).exp() for p in posteriors]


def as_set(theta):
    return {tuple(each) for each in theta.tolist()}


# ------------------------------------------- lines 3 to 9: one pre-trained network


@pytest.mark.parametrize("shared", (True, False))
def test_members_start_from_one_pretrained_network(shared):
    inference = active(num_members=3, shared_pretraining=shared)
    inference.propose(20)  # pre-trains, as active points are wanted
    first, *others = densities(inference)
    gaps = [float((first - other).abs().max()) for other in others]
    assert all(gap == 0 if shared else gap > 1e-3 for gap in gaps)
    torch.manual_seed(0)
    theta = inference.propose(20)
    inference.append_simulations(theta, simulate(theta)).train()
    first, *others = densities(inference)
    assert all((first - other).abs().max() > 1e-3 for other in others)


def test_low_fidelity_simulations_after_pretraining_are_refused():
    inference = active()
    inference.propose(20)
    with pytest.raises(ValueError, match="after pre-training"):
        inference.append_lowfidelity_simulations(LOW.theta, LOW.x)


# ------------------------------------------- lines 10 and 14: the pool


@pytest.mark.parametrize("fixed", (True, False))
def test_a_fixed_pool_is_drawn_once_for_all_rounds(fixed):
    # the 4 active points of a round are the whole pool
    inference = active(pool_size=4, fixed_pool=fixed)
    pools = [as_set(step(inference)) for _ in range(3)]
    assert all(len(pool) == 4 for pool in pools)
    assert (pools[0] == pools[1] == pools[2]) == fixed


def test_no_point_is_acquired_twice_in_a_round():
    inference = active(pool_size=4)
    asked, asked_again = inference.propose(20)[16:], inference.propose(20)[16:]
    assert not as_set(asked) & as_set(asked_again)


# ------------------------------------------- lines 12 to 15: active points


@pytest.mark.parametrize("first_round", (True, False))
def test_a_fifth_of_all_simulations_are_active_points(first_round):
    inference = active(first_round=first_round)
    inference.run(FINE, 60, 3, simulation_batch_size=20, **RUN)
    expected = [4, 4, 4] if first_round else [0, 4, 4]
    assert inference.summary["num_active"] == expected


def test_the_first_active_points_are_those_of_the_pool_where_networks_disagree():
    # a fifth of 250 is the whole pool
    inference, pool = (active(shared_pretraining=False) for _ in range(2))
    pool = pool.propose(250)[200:]
    theta = inference.propose(20)[16:]
    assert as_set(theta) < as_set(pool)
    posteriors = inference.build_posterior().posteriors
    each = [p.log_prob(pool, norm_posterior=False).exp() for p in posteriors]
    variances = torch.stack(each).var(0)
    is_active = torch.tensor([tuple(each) in as_set(theta) for each in pool.tolist()])
    # the fourth and the fifth may be close
    assert variances[is_active].min() > 0.99 * variances[~is_active].max()


def test_without_networks_the_first_round_is_the_prior():
    inference = active(low=False)
    assert len(step(inference)) == 0
    assert len(step(inference)) == 4


def test_with_equal_networks_the_first_round_has_equal_weights():
    """Equal networks have no disagreement, so active points are prior draws."""
    inference = active(correct=True)
    step(inference)
    (simulations,) = inference._state.parts
    assert torch.allclose(simulations.weights, torch.ones(20), atol=1e-5)


# ------------------------------------------- lines 13 and 19: simulations of a round


@pytest.mark.parametrize("all_rounds", (True, False))
def test_all_rounds_decides_whether_earlier_rounds_are_trained_on(all_rounds):
    options = {"learning_rate": 5e-3, "max_num_epochs": 200}
    inference = make(low=False, all_rounds=all_rounds, train_options=options)
    theta = problem.prior().sample((900,))
    inference.append_simulations(theta[:800], simulate(-theta[:800])).train()
    inference.append_simulations(theta[800:], simulate(theta[800:])).train()
    test = problem.prior().sample((500,))
    (network,) = inference._state.networks
    with torch.no_grad():
        loss = network.loss(test, simulate(test)).mean()
        gain = -problem.prior().log_prob(test).mean() - loss
    # the exact posterior gains 1.6 nats on the prior; eight of nine simulations with
    # the wrong sign cost log(9) = 2.2 nats
    assert gain < -0.2 if all_rounds else gain > 0.6


# ------------------------------------------- line 16 (22): expected coverage


def simulations_in_disc(noise, radius, num=400):
    """Draws from the prior inside a disc, with x = theta + noise."""
    torch.manual_seed(0)
    theta = PRIOR.sample((20 * num,))
    theta = theta[theta.norm(dim=1) < radius][:num]
    return theta, theta + noise * torch.randn(num, 2)


def distance(levels):
    """Kolmogorov-Smirnov distance from uniform levels, times the root of n."""
    return kstest(levels.numpy(), "uniform").statistic * len(levels) ** 0.5


@pytest.mark.parametrize("noise", (0.3, 3.0))
def test_levels_of_the_exact_posterior_are_uniform(noise):
    theta, x = simulations_in_disc(noise, 0.8)
    posterior, disc = direct(ExactPosterior(noise)), lambda at: at.norm(dim=1) < 0.8
    levels = coverage_levels(posterior, theta, x, disc)
    assert distance(levels) < 1.95  # exceeded with probability 0.001
    if noise == 3.0:  # the posterior has mass outside the disc
        levels = coverage_levels(posterior, theta, x, EVERYWHERE)
        assert distance(levels) > 3 * 1.95


def test_a_posterior_that_is_too_narrow_covers_too_little():
    theta, x = simulations_in_disc(0.3, torch.inf)
    narrow = direct(ExactPosterior(noise=0.15))
    levels = coverage_levels(narrow, theta, x, EVERYWHERE)
    assert distance(levels) > 3 * 1.95
    # means are within 0.07 of x, and P(chi2 < 4.605 / 4) is 0.44
    assert (levels < 0.9).float().mean().item() == pytest.approx(0.44, abs=0.1)


def test_posteriors_without_mass_in_the_region_have_level_one():
    theta = torch.full((3, 2), 30.0)
    inside = lambda at: at[:, 0] > 29
    levels = coverage_levels(direct(ExactPosterior()), theta, -theta, inside)
    assert torch.equal(levels, torch.ones(3))


def test_coverage_is_computed_at_simulations_before_they_are_trained_on():
    inference, plain = active(), active(num_coverage_simulations=0)
    for each in (inference, plain):
        for _ in range(2):
            step(each)
    assert torch.equal(networks(inference), networks(plain))  # it changes nothing
    assert plain.summary["coverage"] == [[], []]
    first, second = map(torch.tensor, inference.summary["coverage"])
    assert len(first) == 16 and 14 <= len(second) <= 16  # not at active points
    assert (second >= 0).all() and (second <= 1).all()
    theta = inference.propose(20)
    x = simulate(theta)
    levels = inference.expected_coverage(theta, x)
    inference.append_simulations(theta, x).train()
    assert inference.summary["coverage"][2] == levels.tolist()


def test_coverage_needs_networks_and_proposals():
    inference = make(low=False)
    theta = inference.propose(20)
    with pytest.raises(RuntimeError, match="Nothing was trained"):
        inference.expected_coverage(theta, simulate(theta))
    inference.append_simulations(theta, simulate(theta)).train()
    assert inference.summary["coverage"] == [[]]
    with pytest.raises(RuntimeError, match="Nothing was proposed"):
        inference.expected_coverage(theta, simulate(theta))
    # the distribution of simulations that were not proposed is unknown
    inference.append_simulations(theta, simulate(theta)).train()
    assert inference.summary["coverage"] == [[], []]
    with pytest.raises(ValueError, match="num_coverage_simulations must be >= 0"):
        make(num_coverage_simulations=-1)


def test_coverage_works_with_images_and_has_a_maximum_number():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    build = posterior_nn("mdn", embedding_net=net)
    inference = make(
        low=False,
        x_o=X_O[None, :, None],
        density_estimator=build,
        num_coverage_simulations=5,
    )
    inference.append_lowfidelity_simulations(LOW.theta, LOW.x[:, None, :, None])
    inference.run(lambda t, u: FINE(t, u)[:, None, :, None], 20, 2, **RUN)
    assert [len(levels) for levels in inference.summary["coverage"]] == [5, 5]


# ------------------------------------------- files of earlier versions


def earlier(path):
    """Rewrite a file as versions without these settings wrote it."""
    state = torch.load(path, weights_only=True)
    names = "shared_pretraining", "all_rounds", "num_coverage_simulations", "has_cost"
    for name in names:
        del state["settings"][name]
    settings = state["settings"]["acquisition"]
    if settings != "None":
        state["settings"]["acquisition"] = settings.partition(", fixed_pool")[0] + ")"
    del state["summary"]["coverage"]
    torch.save(state, path)
    return path


def with_recipe(path):
    """Rewrite a file as versions with recipes wrote it."""
    state = torch.load(path, weights_only=True)
    settings = state["settings"]
    del settings["has_cost"]
    settings["num_coverage_rows"] = settings.pop("num_coverage_simulations")
    assert "alignment='standardize'" in settings.pop("config")
    settings["recipe"] = (
        "Transfer(early_stopping=True, betas=(0.9, 0.999), weight_decay=0.0, "
        "alignment='own', unconstrained=None, joint_pretraining=False, rehearsal=0.0, "
        "fine_tuning_rate=1.0, freeze=())"
    )
    torch.save(state, path)
    return path


def test_an_earlier_file_is_refused_under_other_settings(tmp_path):
    path = tmp_path / "run.pt"
    active().run(FINE, 20, 1, checkpoint=path, **RUN)
    with pytest.raises(ValueError, match="acquisition was .*; shared_pretraining was"):
        active().load(earlier(path))
    with pytest.raises(ValueError, match="shared_pretraining was True, is False"):
        active().run(FINE, 20, 1, checkpoint=tmp_path / "new.pt", **RUN)
        active(shared_pretraining=False).load(tmp_path / "new.pt")


def test_an_earlier_file_is_resumed_under_its_settings(tmp_path):
    path, options = tmp_path / "run.pt", {"shared_pretraining": False}
    options["num_coverage_simulations"] = 0
    unbroken = make(**options)
    unbroken.run(FINE, 40, 2, **RUN)
    make(**options).run(FINE, 20, 1, checkpoint=path, **RUN)
    again = make(**options)
    again.load(earlier(path))
    again.run(FINE, 40, 2, **RUN)
    assert torch.equal(networks(again), networks(unbroken))
    assert again.summary["coverage"] == [[], []]


def test_a_file_with_a_recipe_is_resumed(tmp_path):
    path = tmp_path / "run.pt"
    unbroken = make()
    unbroken.run(FINE, 40, 2, **RUN)
    make().run(FINE, 20, 1, checkpoint=path, **RUN)
    plain = make(config=TransferConfig(alignment=None))
    with pytest.raises(ValueError, match="config was .*'standardize'.*alignment=None"):
        plain.load(with_recipe(path))
    again = make().load(path)
    again.run(FINE, 40, 2, **RUN)
    assert torch.equal(networks(again), networks(unbroken))
