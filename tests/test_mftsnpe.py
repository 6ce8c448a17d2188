"""Sequential rounds: proposals, alignment, bad input, and a known posterior."""

import pytest
import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_multilevel import MFNPE, MFTSNPE, Acquisition, Truncation
from tests import linear_gaussian as problem
from tests.interrupted import Killed, killing
from tests.linear_gaussian import SilentTracker
from tests.test_trainers import weights

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
FINE, COARSE = problem.SIMULATORS[2], problem.SIMULATORS[0]
X_O = torch.tensor([0.4, -0.3])
LOW = problem.simulations((300, 2))[0]
RUN = {"noise": problem.noise, "show_progress_bars": False}


def make(seed=1, low=True, prior=None, x_o=X_O, **options):
    options = {
        "density_estimator": "mdn",
        "truncation": Truncation(epsilon=1e-3, num_samples=2_000),
        "train_options": {"max_num_epochs": 5, "learning_rate": 5e-3},
        **options,
    }
    inference = MFTSNPE(prior or problem.prior(), x_o, seed=seed, **options)
    if low:
        inference.append_lowfidelity_simulations(LOW.theta, LOW.x)
    return inference


def networks(inference):
    return torch.cat([weights(network) for network in inference._state.networks])


def simulate(theta):
    return FINE(theta, torch.randn(len(theta), 2))


ACTIVE = {"num_members": 2, "acquisition": Acquisition(pool_size=50)}
settings = pytest.mark.parametrize("options", ({}, ACTIVE), ids=("single", "active"))


# ------------------------------------------------------------- rounds


@settings
def test_rounds_can_be_done_step_by_step(options):
    inference = make(**options)
    for round_ in range(3):
        theta = inference.propose(20)
        assert theta.shape == (20, 2)
        inference.append_simulations(theta, simulate(theta))
        inference.train()
        kind = EnsemblePosterior if options else DirectPosterior
        posterior = inference.build_posterior()
        assert isinstance(posterior, kind)
        assert posterior.sample((5,), show_progress_bars=False).shape == (5, 2)
        assert len(inference.summary["num_simulations"]) == round_ + 1
    assert inference.summary["num_simulations"] == [20, 20, 20]
    assert inference.summary["num_active"] == ([4, 4, 4] if options else [0, 0, 0])
    first, *later = inference.summary["acceptance_rate"]
    assert first == 1.0 and all(0 < rate < 1 for rate in later)


def test_later_rounds_draw_from_the_truncated_prior():
    inference = make(train_options={"learning_rate": 5e-3})
    theta = inference.propose(100)
    inference.append_simulations(theta, simulate(theta)).train()
    proposed = inference.propose(300)
    posterior = inference.build_posterior()
    inside = posterior.sample((20_000,), show_progress_bars=False)
    lowest = posterior.log_prob(inside, norm_posterior=False).quantile(1e-3)
    found = posterior.log_prob(proposed, norm_posterior=False)
    assert (found > lowest - 2.0).all()
    assert proposed.std(0).max() < theta.std(0).min()
    # it is the prior, restricted: uniform weights give the prior's mean in the region
    draws = problem.prior().sample((20_000,))
    truncated = draws[posterior.log_prob(draws, norm_posterior=False) > lowest]
    error = truncated.std(0) * (1 / 300 + 1 / len(truncated)) ** 0.5
    assert ((proposed.mean(0) - truncated.mean(0)).abs() < 5 * error).all()


def test_active_points_are_those_of_largest_disagreement():
    inference = make(**ACTIVE)
    theta = inference.propose(20)
    inference.append_simulations(theta, simulate(theta)).train()
    proposed = inference.propose(20)
    posterior = inference.build_posterior()

    def variance(theta):
        each = [
            p.log_prob(theta, norm_posterior=False).exp() for p in posterior.posteriors
        ]
        return torch.stack(each).var(0)

    active, passive = variance(proposed[16:]), variance(proposed[:16])
    pool = variance(problem.prior().sample((5_000,)))
    assert (active > pool.quantile(0.8)).all()  # 4 of 50
    assert active.mean() > passive.mean()


def test_low_fidelity_simulations_are_optional():
    posterior = make(low=False).run(FINE, 40, 2, **RUN)
    assert posterior.sample((5,), show_progress_bars=False).shape == (5, 2)


def test_pairs_are_allowed_in_every_round():
    inference = make()
    inference.run((COARSE, FINE), 40, 2, **RUN)
    assert all(part.is_paired for part in inference._state.parts)
    theta = inference.propose(10)
    u = torch.randn(10, 2)
    inference.append_simulations(theta, FINE(theta, u), COARSE(theta, u)).train()
    assert inference.summary["num_simulations"] == [20, 20, 10]


@pytest.mark.parametrize("num", (1, 2))
def test_members_start_from_networks_trained_elsewhere(num):
    pretraining = MFNPE(
        problem.prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False
    )
    pretraining.append_lowfidelity_simulations(LOW.theta, LOW.x)
    network = pretraining.train(max_num_epochs=3)
    inference = make(low=False, num_members=2)
    inference.warm_start(network if num == 1 else [network] * num)
    inference.run(FINE, 20, 1, **RUN)
    with pytest.raises(ValueError, match="estimators are 3"):
        inference.warm_start([network] * 3)


def test_levels_can_have_fewer_parameters():
    prior = BoxUniform(-3 * torch.ones(2), 3 * torch.ones(2))
    names = {0: ("b",), 1: ("a", "b")}
    inference = make(low=False, prior=prior, parameters=names)
    theta = prior.sample((200,))
    inference.append_lowfidelity_simulations(theta[:, 1:], COARSE(theta, theta))
    posterior = inference.run(FINE, 20, 2, **RUN)
    assert posterior.sample((5,), show_progress_bars=False).shape == (5, 2)


def test_the_posterior_is_near_the_exact_one():
    inference = make(train_options={"learning_rate": 2e-3})
    posterior = inference.run(FINE, 600, 3, simulation_batch_size=600, **RUN)
    exact = problem.posterior(X_O)
    samples = posterior.sample((4_000,), show_progress_bars=False)
    assert ((samples.mean(0) - exact.mean).abs() / exact.stddev).max() < 0.35
    assert ((samples.std(0) / exact.stddev).log().abs() < 0.25).all()


# ------------------------------------------------------------- alignment


def test_levels_are_aligned_over_the_same_parameters(tmp_path):
    """A change of the scale of x at level 1 does not change the posterior."""
    scale, shift = 4.0, -3.0

    def rescaled(theta, noise):
        return scale * FINE(theta, noise) + shift

    options = {"train_options": {"learning_rate": 5e-3, "max_num_epochs": 60}}
    plain, moved = make(**options), make(x_o=scale * X_O + shift, **options)
    plain.run(FINE, 60, 2, **RUN)
    moved.run(rescaled, 60, 2, checkpoint=tmp_path / "run.pt", **RUN)
    theta = torch.randn(5, 2)
    a, b = (i.build_posterior().log_prob(theta) for i in (plain, moved))
    assert torch.allclose(a, b, atol=0.05)
    weights = plain._state.low_weights
    assert weights.sum() == pytest.approx(60, abs=1e-3)
    # the first round is the prior; the second one adds weight inside its region
    assert (weights > 0).all() and len(weights.unique()) == 2
    theta = LOW.theta
    inner = weights > weights.min()
    assert (theta[inner].std(0) < 0.9 * theta.std(0)).all()
    other = make(x_o=scale * X_O + shift, low=False, **options)
    other.append_lowfidelity_simulations(LOW.theta[:100], LOW.x[:100])
    other.load(tmp_path / "run.pt")
    theta = other.propose(10)
    other.append_simulations(theta, rescaled(theta, torch.randn(10, 2)))
    with pytest.raises(ValueError, match="not those that this run began with"):
        other.train()


def test_resuming_needs_the_same_low_fidelity_simulations(tmp_path):
    make().run(FINE, 20, 1, checkpoint=tmp_path / "run.pt", **RUN)
    with pytest.raises(ValueError, match="not those that this run began with"):
        make(low=False).run(FINE, 40, 2, checkpoint=tmp_path / "run.pt", **RUN)


def test_a_run_with_missing_parameters_is_resumed(tmp_path):
    prior = BoxUniform(-3 * torch.ones(2), 3 * torch.ones(2))
    theta = prior.sample((200,))

    def start():
        inference = make(low=False, prior=prior, parameters={0: ("b",), 1: ("a", "b")})
        return inference.append_lowfidelity_simulations(
            theta[:, 1:], COARSE(theta, 0 * theta)
        )

    unbroken, again = start(), start()
    unbroken.run(FINE, 40, 2, **RUN)
    with pytest.raises(Killed):
        start().run(killing(FINE, 30), 40, 2, checkpoint=tmp_path / "r.pt", **RUN)
    again.run(FINE, 40, 2, checkpoint=tmp_path / "r.pt", **RUN)
    assert torch.equal(networks(again), networks(unbroken))


def test_run_does_not_overwrite_newer_rounds_in_memory(tmp_path):
    path = tmp_path / "run.pt"
    inference = make()
    inference.run(FINE, 20, 1, checkpoint=path, **RUN)
    theta = inference.propose(10)
    inference.append_simulations(theta, simulate(theta))
    with pytest.raises(RuntimeError, match="appended by hand"):
        inference.run(FINE, 60, 3, checkpoint=path, **RUN)
    inference.train()
    with pytest.raises(ValueError, match="of another round"):
        inference.run(FINE, 60, 3, checkpoint=path, **RUN)
    inference.run(FINE, 60, 3, **RUN)
    assert inference.summary["num_simulations"] == [20, 10, 20]


def test_an_observation_gets_the_channel_of_the_outputs():
    images = LOW.x[:, None, :, None]  # (n, 1, 2, 1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    build = posterior_nn("mdn", embedding_net=net)
    inference = make(low=False, x_o=X_O[None, :, None], density_estimator=build)
    inference.append_lowfidelity_simulations(LOW.theta, images)
    assert inference.x_o.shape == (1, 1, 2, 1)
    inference.run(lambda t, u: FINE(t, u)[:, None, :, None], 20, 1, **RUN)


def test_simulations_can_be_appended_one_by_one():
    inference = make()
    for theta in inference.propose(5).split(1):
        inference.append_simulations(theta, simulate(theta))
    inference.train()
    assert inference.summary["num_simulations"] == [5]


def test_networks_trained_elsewhere_keep_their_scale_of_x():
    pretraining = MFNPE(
        problem.prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False
    )
    pretraining.append_lowfidelity_simulations(LOW.theta, LOW.x)
    pretraining.append_simulations(LOW.theta[:60], 5 * LOW.x[:60])
    network = pretraining.train(max_num_epochs=3)
    inference = make(low=False, x_o=5 * X_O).warm_start(network)
    inference.run(lambda t, u: 5 * FINE(t, u), 20, 1, **RUN)
    assert torch.equal(inference._state.networks[0].x_scale, network.x_scale)
    assert network.x_scale.max() < 0.5


def test_without_low_fidelity_simulations_x_is_not_rescaled():
    inference = make(low=False)
    inference.run(FINE, 20, 1, **RUN)
    assert torch.equal(inference._state.networks[0].x_scale, torch.ones(2))


# ------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(x_o=torch.tensor([0.0, torch.nan])), "x_o must be one observation"),
        (dict(x_o=torch.zeros(3, 2)), "x has shape"),
        (dict(config="transfer"), "config must be a `TransferConfig`"),
        (dict(num_members=0), "num_members is 0"),
        (dict(acquisition=Acquisition()), "num_members is 1"),
        (
            dict(
                num_members=2,
                acquisition=Acquisition(correct=True),
                truncation=Truncation(sample_with="sir"),
            ),
            "needs the acceptance rate",
        ),
    ],
)
def test_bad_settings_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        make(**options)


@pytest.mark.parametrize(
    "make_bad, named",
    [
        (lambda: Truncation(epsilon=1.0), "epsilon"),
        (lambda: Truncation(num_samples=0), "num_samples"),
        (lambda: Truncation(sample_with="mcmc"), "sample_with"),
        (lambda: Acquisition(share=0.0), "share"),
        (lambda: Acquisition(on="entropy"), "on must be"),
        (lambda: Acquisition(pool_size=0), "pool_size"),
        (lambda: Acquisition(pool_size=3).num_active(100), "pool_size=3 is smaller"),
    ],
)
def test_bad_options_are_refused(make_bad, named):
    with pytest.raises(ValueError, match=named):
        make_bad()


def test_bad_simulations_are_refused_and_nothing_is_lost():
    box = BoxUniform(-4 * torch.ones(2), 4 * torch.ones(2))
    inference = make(prior=box, low=False)
    theta = inference.propose(10)
    for bad, named in (
        ((theta, torch.randn(10, 3)), r"x has shape \(3,\).*x_o has \(2,\)"),
        ((theta[:5], torch.randn(10, 2)), "differ in length"),
        ((theta + 100, torch.randn(10, 2)), "outside the support"),
    ):
        with pytest.raises(ValueError, match=named):
            inference.append_simulations(*bad)
    with pytest.raises(RuntimeError, match="No high-fidelity simulations"):
        inference.train()
    with pytest.raises(RuntimeError, match="Nothing was trained"):
        inference.build_posterior()
    inference.append_simulations(theta, simulate(theta)).train()
    with pytest.raises(ValueError, match="after the first round"):
        inference.append_lowfidelity_simulations(LOW.theta, LOW.x)
    with pytest.raises(ValueError, match="needs at least 2"):
        make().run(FINE, 5, 5, **RUN)
