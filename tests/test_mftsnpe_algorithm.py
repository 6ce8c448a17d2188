"""Algorithms 3 and 4 of the transfer paper, line by line, and their options."""

import pytest
import torch
from sbi.neural_nets import posterior_nn
from scipy.stats import kstest

from sbi_multilevel import Acquisition
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
    return {tuple(row) for row in theta.tolist()}


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


def test_rows_after_pretraining_are_refused():
    inference = active()
    inference.propose(20)
    with pytest.raises(ValueError, match="after pre-training"):
        inference.append_lowfidelity_simulations(LOW.theta, LOW.x)


# ------------------------------------------- lines 10 and 14: the pool


@pytest.mark.parametrize("fixed", (True, False))
def test_the_pool_is_drawn_once_for_all_rounds(fixed):
    # all of a pool of 4 is acquired, so that it shows in each round
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
def test_a_fifth_of_all_simulations_is_active(first_round):
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
    is_active = torch.tensor([tuple(row) in as_set(theta) for row in pool.tolist()])
    # the fourth and the fifth may be close
    assert variances[is_active].min() > 0.99 * variances[~is_active].max()


def test_without_networks_the_first_round_is_the_prior():
    inference = active(low=False)
    assert len(step(inference)) == 0
    assert len(step(inference)) == 4


def test_equal_networks_leave_the_first_round_as_draws_from_the_prior():
    """Networks that are the same disagree nowhere, so no row needs a weight."""
    inference = active(correct=True)
    step(inference)
    (rows,) = inference._rows
    assert torch.allclose(rows.weights, torch.ones(20), atol=1e-5)


# ------------------------------------------- lines 13 and 19: rows of a round


@pytest.mark.parametrize("all_rounds", (True, False))
def test_rows_of_earlier_rounds_are_trained_on_if_wanted(all_rounds):
    options = {"learning_rate": 5e-3, "max_num_epochs": 200}
    inference = make(low=False, all_rounds=all_rounds, train_options=options)
    theta = problem.prior().sample((900,))
    inference.append_simulations(theta[:800], simulate(-theta[:800])).train()
    inference.append_simulations(theta[800:], simulate(theta[800:])).train()
    test = problem.prior().sample((500,))
    (network,) = inference._members
    with torch.no_grad():
        loss = network.loss(test, simulate(test)).mean()
        gain = -problem.prior().log_prob(test).mean() - loss
    # the exact posterior gains 1.6 nats on the prior; with eight rows of nine turned
    # round there are log(9) = 2.2 less
    assert gain < -0.2 if all_rounds else gain > 0.6


# ------------------------------------------- line 16 (22): expected coverage


def rows_of_disc(noise, radius, num=400):
    """Draws from the prior inside of a disc, with x = theta + noise."""
    torch.manual_seed(0)
    theta = PRIOR.sample((20 * num,))
    theta = theta[theta.norm(dim=1) < radius][:num]
    return theta, theta + noise * torch.randn(num, 2)


def distance(levels):
    """Kolmogorov-Smirnov distance from uniform levels, in units that do not grow."""
    return kstest(levels.numpy(), "uniform").statistic * len(levels) ** 0.5


@pytest.mark.parametrize("noise", (0.3, 3.0))
def test_levels_of_the_exact_posterior_are_uniform(noise):
    theta, x = rows_of_disc(noise, 0.8)
    posterior, disc = direct(ExactPosterior(noise)), lambda at: at.norm(dim=1) < 0.8
    levels = coverage_levels(posterior, theta, x, disc)
    assert distance(levels) < 1.95  # exceeded with probability 0.001
    if noise == 3.0:  # x tells little, and samples outside of the disc would count
        levels = coverage_levels(posterior, theta, x, EVERYWHERE)
        assert distance(levels) > 3 * 1.95


def test_a_posterior_that_is_too_narrow_covers_too_little():
    theta, x = rows_of_disc(0.3, torch.inf)
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


def test_coverage_is_computed_at_rows_before_they_are_trained_on():
    inference, plain = active(), active(num_coverage_rows=0)
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
    # rows that were not proposed are of no known distribution
    inference.append_simulations(theta, simulate(theta)).train()
    assert inference.summary["coverage"] == [[], []]
    with pytest.raises(ValueError, match="num_coverage_rows must be >= 0, but is -1"):
        make(num_coverage_rows=-1)


def test_coverage_of_images_and_at_most_so_many_rows():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    build = posterior_nn("mdn", embedding_net=net)
    inference = make(
        low=False,
        x_o=X_O[None, :, None],
        density_estimator=build,
        num_coverage_rows=5,
    )
    inference.append_lowfidelity_simulations(LOW.theta, LOW.x[:, None, :, None])
    inference.run(lambda t, u: FINE(t, u)[:, None, :, None], 20, 2, **RUN)
    assert [len(levels) for levels in inference.summary["coverage"]] == [5, 5]


# ------------------------------------------- files of earlier versions


def earlier(path):
    """Rewrite a file as versions without these settings wrote it."""
    state = torch.load(path, weights_only=True)
    for name in ("shared_pretraining", "all_rounds", "num_coverage_rows"):
        del state["settings"][name]
    settings = state["settings"]["acquisition"]
    state["settings"]["acquisition"] = settings.partition(", fixed_pool")[0] + ")"
    if settings == "None":
        state["settings"]["acquisition"] = settings
    del state["summary"]["coverage"]
    torch.save(state, path)
    return path


def test_a_file_of_an_earlier_version_is_refused_by_its_settings(tmp_path):
    path = tmp_path / "run.pt"
    active().run(FINE, 20, 1, checkpoint=path, **RUN)
    with pytest.raises(ValueError, match="acquisition was .*; shared_pretraining was"):
        active().load(earlier(path))
    with pytest.raises(ValueError, match="shared_pretraining was True, is False"):
        active().run(FINE, 20, 1, checkpoint=tmp_path / "new.pt", **RUN)
        active(shared_pretraining=False).load(tmp_path / "new.pt")


def test_a_file_of_an_earlier_version_is_gone_on_with_under_its_settings(tmp_path):
    path, options = tmp_path / "run.pt", {"shared_pretraining": False}
    options["num_coverage_rows"] = 0
    unbroken = make(**options)
    unbroken.run(FINE, 40, 2, **RUN)
    make(**options).run(FINE, 20, 1, checkpoint=path, **RUN)
    again = make(**options)
    again.load(earlier(path))
    again.run(FINE, 40, 2, **RUN)
    assert torch.equal(networks(again), networks(unbroken))
    assert again.summary["coverage"] == [[], []]
