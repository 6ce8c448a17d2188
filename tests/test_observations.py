"""Observations far outside of the training simulations are warned of, and no others."""

import pickle
import warnings

import pytest
import torch
from sbi.inference.posteriors import MCMCPosteriorParameters

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFTSNPE,
    MLNLE,
    MLNPE,
    Hybrid,
    Truncation,
    train_ensemble,
)
from sbi_multilevel.observations import TrainingRange
from tests.linear_gaussian import SilentTracker, prior, simulations

FAR = "far outside of the training simulations: its feature 0"
NEAR_X, FAR_X = torch.tensor([[0.5, -0.5]]), torch.tensor([[60.0, 0.0]])
FEW = dict(max_num_epochs=1, training_batch_size=200)
CHAINS = MCMCPosteriorParameters(num_chains=2, warmup_steps=1, thin=1)
RECIPES = [
    (MLNPE, "multilevel"),
    (MLNPE, Hybrid(num_members=2, alignments=("none",), mix=False)),
    (MFNPE, "transfer"),
    (MLNLE, "multilevel"),
    (MFNLE, "transfer"),
]


def trainer(cls, recipe):
    torch.manual_seed(0)
    options = dict(tracker=SilentTracker(), show_progress_bars=False)
    inference = cls(prior(), density_estimator="mdn", recipe=recipe, **options)
    return inference.append_multilevel_simulations(simulations((100, 40)))


def posterior_of(cls, recipe):
    inference = trainer(cls, recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference.train(**FEW)
        options = {} if cls in (MLNPE, MFNPE) else {"posterior_parameters": CHAINS}
        return inference.build_posterior(**options)


def warnings_of(posterior, x):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior.sample((3,), x=x, show_progress_bars=False)
    return [str(each.message) for each in caught if "far outside" in str(each.message)]


@pytest.mark.parametrize("cls, recipe", RECIPES)
def test_a_far_observation_is_warned_of_once(cls, recipe):
    posterior = posterior_of(cls, recipe)
    assert not warnings_of(posterior, NEAR_X)
    (message,) = warnings_of(posterior, FAR_X)
    assert FAR in message and "is 60, " in message and "times their spread" in message
    assert not warnings_of(posterior, FAR_X)  # known
    again = pickle.loads(pickle.dumps(posterior))
    assert len(warnings_of(again, 2 * FAR_X)) == 1


def test_log_prob_and_batches_of_observations_are_looked_at():
    posterior = posterior_of(MLNPE, "multilevel")
    with pytest.warns(UserWarning, match=FAR):
        posterior.log_prob(torch.zeros(1, 2), x=FAR_X)
    both = torch.cat([NEAR_X, -FAR_X])
    with pytest.warns(UserWarning, match="1 of 2 observations x_o lie far outside"):
        posterior.sample_batched((3,), x=both, show_progress_bars=False)


def test_members_of_an_ensemble_look_too():
    inference = trainer(MFNPE, "transfer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble = train_ensemble(inference, 2, seed=0, train_options=FEW)
    assert warnings_of(ensemble.build_posterior(), FAR_X)


def test_rounds_look_at_their_observation():
    sims = simulations((100, 40))
    rounds = MFTSNPE(
        prior(),
        FAR_X,
        density_estimator="mdn",
        truncation=Truncation(num_samples=100),
        train_options=FEW,
    )
    rounds.append_lowfidelity_simulations(sims[0].theta, sims[0].x)
    rounds.append_simulations(sims[1].theta, sims[1].x)
    with pytest.warns(UserWarning, match="far outside of the training simulations"):
        rounds.train()
        rounds.build_posterior().sample((3,), show_progress_bars=False)


def test_the_distance_by_hand():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])  # quartiles 1 and 3
    found = TrainingRange.of(x)
    assert found.distances(torch.tensor([[9.0]])).item() == pytest.approx(5 * 1.349 / 2)
    assert found.distances(torch.tensor([[2.0]])).item() < 0
    assert found.message(torch.tensor([[4.5]])) is None
    assert found.message(torch.tensor([[1e3]])) is not None


@pytest.mark.parametrize("count", (50, 1_000))
@pytest.mark.parametrize("tails", ("normal", "Cauchy"))
def test_observations_like_the_simulations_are_rarely_far(tails, count):
    """One in 100 is claimed; 2 000 draws leave five standard errors below one in 40."""
    generator = torch.Generator().manual_seed(0)
    num_far = 0
    for _ in range(200):
        x = torch.randn(count + 10, 3, generator=generator)
        if tails == "Cauchy":
            x = x / torch.randn(count + 10, 3, generator=generator)
        inside = TrainingRange.of(x[:count])
        num_far += sum(inside.message(row[None]) is not None for row in x[count:])
    assert num_far < 2_000 / 40


def test_a_constant_feature_that_differs_is_far():
    x = torch.cat([torch.randn(50, 1), torch.full((50, 1), 2.0)], dim=1)
    inside = TrainingRange.of(x)
    assert inside.message(torch.tensor([[0.0, 2.0]])) is None
    assert "but 2 in all of them" in inside.message(torch.tensor([[0.0, 2.1]]))
