"""Observations far outside of the training simulations."""

import pickle
import warnings

import pytest
import torch
from sbi.inference import DirectPosterior, EnsemblePosterior, MCMCPosterior
from sbi.inference.posteriors import MCMCPosteriorParameters

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFTSNPE,
    MLNLE,
    MLNPE,
    HybridConfig,
    HybridNLE,
    HybridNPE,
    Truncation,
    train_ensemble,
)
from sbi_multilevel.estimators.observations import TrainingRange
from tests.linear_gaussian import DIM, SIMULATORS, SilentTracker, prior, simulations

FEW = dict(max_num_epochs=2)
SMALL = HybridConfig(num_members=2, level_maps=("none",), mix=False)
FAR = torch.tensor([[0.0, 80.0]])  # the deviation is 1.15
NEAR = torch.zeros(1, DIM)
FAR_OUTSIDE = "far outside of the training simulations: its feature 1 is 80"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Data has"),
    pytest.mark.filterwarnings("ignore:When the inference object is pickled"),
]


def trainer(cls=MLNPE, config=None, density_estimator="mdn"):
    made = cls(
        prior(),
        density_estimator=density_estimator,
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    return made.append_multilevel_simulations(simulations((200, 40)))


def trained(*args, **options):
    made = trainer(*args, **options)
    made.train(**FEW)
    return made


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "training simulations" in str(w.message)]


NPE = {
    "multilevel": (MLNPE,),
    "transfer": (MFNPE,),
    "hybrid": (HybridNPE, SMALL),
}


@pytest.fixture(scope="module", params=NPE)
def posterior(request, tmp_path_factory):
    return trained(*NPE[request.param]).build_posterior()


NPE_CALLS = {
    "sample": lambda p, x: p.sample((3,), x=x, show_progress_bars=False),
    "log_prob": lambda p, x: p.log_prob(torch.zeros(1, DIM), x=x),
    "potential": lambda p, x: p.potential(torch.zeros(1, DIM), x=x),
    "sample_batched": lambda p, x: p.sample_batched(
        (3,), x=torch.cat([NEAR, x]), show_progress_bars=False
    ),
    "log_prob_batched": lambda p, x: p.log_prob_batched(
        torch.zeros(1, 1, DIM), x=x, norm_posterior=False
    ),
    "default x": lambda p, x: (
        pickle.loads(pickle.dumps(p)).set_default_x(x).sample((3,))
    ),
}


@pytest.mark.parametrize("name", NPE_CALLS)
def test_posteriors_warn(posterior, name):
    call = NPE_CALLS[name]
    fresh = pickle.loads(pickle.dumps(posterior))
    assert type(fresh) is DirectPosterior
    assert warnings_of(lambda: call(fresh, NEAR)) == []
    message = "its feature 1 is 80" if "batched" in name else FAR_OUTSIDE
    (found,) = warnings_of(lambda: call(fresh, FAR))
    assert message in found


@pytest.mark.parametrize("cls", (MLNLE, MFNLE))
def test_posteriors_by_likelihood_warn(cls):
    chains = MCMCPosteriorParameters(num_chains=2, warmup_steps=1, thin=1)
    posterior = trained(cls).build_posterior(posterior_parameters=chains)
    posterior = pickle.loads(pickle.dumps(posterior))
    assert type(posterior) is MCMCPosterior
    sample = lambda x: posterior.sample((4,), x=x, show_progress_bars=False)
    assert warnings_of(lambda: sample(NEAR)) == []
    # of two observations of one theta, the second
    (found,) = warnings_of(lambda: sample(torch.cat([NEAR, FAR])))
    assert "1 of 2 observations" in found and "feature 1 is 80" in found
    (found,) = warnings_of(lambda: posterior.potential(torch.zeros(1, DIM), x=FAR))
    assert FAR_OUTSIDE in found


def test_mixtures_of_likelihoods_warn():
    posterior = trained(HybridNLE, SMALL).build_posterior()
    potential = lambda x: posterior.potential(torch.zeros(1, DIM), x=x)
    assert warnings_of(lambda: potential(NEAR)) == []
    assert len(warnings_of(lambda: potential(FAR))) == 1


def test_ensembles_warn():
    ensemble = train_ensemble(trainer(MFNPE), 2, train_options=FEW)
    posterior = ensemble.build_posterior()
    assert type(posterior) is EnsemblePosterior
    call = lambda x: posterior.log_prob(torch.zeros(1, DIM), x=x)
    assert warnings_of(lambda: call(NEAR)) == []
    first, second = warnings_of(lambda: call(FAR))
    assert first == second  # so that Python shows one


@pytest.mark.parametrize("x_o, number", [(NEAR, 0), (FAR, 1)])
def test_rounds_warn(x_o, number):
    inference = MFTSNPE(
        prior(),
        x_o,
        density_estimator="mdn",
        truncation=Truncation(num_samples=100),
        train_options=FEW,
    )
    low, high = simulations((200, 40))
    inference.append_lowfidelity_simulations(low.theta, low.x)
    inference.append_simulations(high.theta, high.x)
    found = warnings_of(inference.train)
    assert len(found) == number and all(FAR_OUTSIDE in each for each in found)


def test_each_observation_is_warned_of_once():
    posterior = trained().build_posterior()

    def use():
        for _ in range(3):
            NPE_CALLS["sample"](posterior, FAR)
            NPE_CALLS["log_prob"](posterior, FAR)
        NPE_CALLS["sample"](posterior, -FAR)

    first, second = warnings_of(use)
    assert "is 80" in first and "is -80" in second
    # in units of the spread of the 40 simulations of level 1
    x = simulations((200, 40))[1].x[:, 1]
    spread = float(x.quantile(0.75) - x.quantile(0.25)) / 1.349
    assert f"{float(80 - x.max()) / spread:.3g} times their spread" in first


def test_the_warning_names_the_line_of_the_user():
    posterior = trained().build_posterior()
    with pytest.warns(UserWarning, match=FAR_OUTSIDE) as caught:
        posterior.sample((3,), x=FAR, show_progress_bars=False)
    assert caught[0].filename == __file__


def test_nothing_else_changes():
    made = trained()
    watched = made.build_posterior()
    plain = DirectPosterior(made._neural_net, made._prior)
    for call in ("sample", "log_prob", "potential"):
        torch.manual_seed(3)
        ours = NPE_CALLS[call](watched, NEAR)
        torch.manual_seed(3)
        assert torch.equal(ours, NPE_CALLS[call](plain, NEAR))


@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
def test_posteriors_of_plain_simulations_are_those_of_sbi(cls):
    made = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    high = simulations((200, 40))[1]
    made.append_simulations(high.theta, high.x).train(**FEW)
    posterior = made.build_posterior()
    assert warnings_of(lambda: NPE_CALLS["potential"](posterior, FAR)) == []
    assert type(posterior.potential_fn).__module__.startswith("sbi.")


def test_observations_from_the_simulator_are_not_warned_of():
    posterior = trained().build_posterior()
    theta = prior().sample((500,))
    x = SIMULATORS[1](theta, torch.randn(500, DIM))
    call = lambda: posterior.sample_batched((1,), x=x, show_progress_bars=False)
    assert warnings_of(call) == []


# --------------------------------------------------- when a distance is far


DRAWS = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "counts": lambda *shape: torch.poisson(torch.full(shape, 0.3)),
    "log-normal": lambda *shape: torch.randn(*shape).exp(),
    "Student-t": lambda *shape: torch.distributions.StudentT(3.0).sample(shape),
    "Cauchy": lambda *shape: torch.distributions.Cauchy(0.0, 1.0).sample(shape),
}


@pytest.mark.parametrize("num_features", (1, 20))
@pytest.mark.parametrize("num_simulations", (10, 50, 1_000))
@pytest.mark.parametrize("law", DRAWS)
def test_false_alarms_are_rare(law, num_simulations, num_features):
    draw, number = DRAWS[law], 0
    for _ in range(40):
        inside = TrainingRange.of(
            draw(num_simulations, num_features), [draw(500, num_features)]
        )
        number += int(inside.is_far(draw(100, num_features)).sum())
    assert number <= 0.03 * 4_000


@pytest.mark.parametrize("law", ("normal", "uniform", "counts", "Student-t"))
@pytest.mark.parametrize("num_simulations", (10, 50, 1_000))
def test_fifty_deviations_are_far(law, num_simulations):
    x = DRAWS[law](num_simulations, 5)
    x_o = x.mean(dim=0, keepdim=True)
    x_o[0, 2] += 50 * DRAWS[law](1_000, 1).std() + x[:, 2].max()
    assert TrainingRange.of(x).is_far(x_o).item()


def test_another_value_of_a_constant_feature_is_far():
    x = torch.cat([torch.randn(50, 1), torch.full((50, 1), 3.0)], dim=1)
    inside = TrainingRange.of(x)
    near, other = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 3.1]])
    assert inside.message(near) is None
    assert "its feature 1 is 3.1, but 3 in all of them" in inside.message(other)
    # it varies at a lower level
    lower = torch.randn(200, 2) + 3.0
    assert TrainingRange.of(x, [lower]).message(other) is None


def test_images_are_checked_entry_by_entry():
    inside = TrainingRange.of(torch.randn(50, 4, 3))
    x_o = torch.zeros(1, 12)
    assert inside.message(x_o) is None
    x_o[0, 7] = -99.0
    assert "its feature 7 is -99" in inside.message(x_o)
