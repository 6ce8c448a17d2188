"""States of rounds: pickled, saved, loaded, resumed, and shared by observations."""

import pickle

import pytest
import torch

from sbi_multilevel import Truncation
from tests.interrupted import Killed, killing
from tests.rounds import (
    BOTH,
    COARSE,
    EXPECTED_WARNINGS,
    FINE,
    RUN,
    X_O,
    hybrid,
    multilevel,
    samples,
    step,
    truncating,
    with_slow,
)

pytestmark = EXPECTED_WARNINGS
OTHER = torch.tensor([-0.6, 0.2])


@with_slow
def test_rounds_can_be_pickled_between_steps(make):
    inference = make()
    step(inference)
    copy = pickle.loads(pickle.dumps(inference))
    assert torch.equal(samples(copy), samples(inference))
    for each in (inference, copy):
        step(each, seed=1)
    assert torch.equal(samples(copy), samples(inference))


@with_slow
def test_observations_share_the_first_round(make):
    first, alone = make(), make(x_o=OTHER)
    for each in (first, alone):
        step(each)
    before = samples(first)
    shared = first.for_observation(OTHER)
    assert torch.equal(shared.x_o, OTHER.unsqueeze(0))
    assert torch.equal(samples(shared), samples(alone))
    proposed = [step(each, seed=1) for each in (shared, alone)]
    assert all(map(torch.equal, *proposed))
    assert torch.equal(samples(shared), samples(alone))
    assert str(shared.summary) == str(alone.summary)
    assert torch.equal(samples(first), before) and len(first.summary["failures"]) == 1


@pytest.mark.parametrize("is_shared", (True, False))
def test_a_run_after_a_round_by_hand_resumes(is_shared, tmp_path):
    path, first = tmp_path / "run.pt", hybrid(x_o=X_O if is_shared else OTHER)
    step(first)

    def begun():
        copied = pickle.loads(pickle.dumps(first))
        return copied.for_observation(OTHER) if is_shared else copied

    options = {"simulation_batch_size": (200, 5), "checkpoint": path, **RUN}
    numbers = (150, 36)
    with pytest.raises(Killed):
        begun().run((COARSE, killing(FINE, 4)), numbers, **options)
    resumed, whole = begun(), begun()
    counts = [0]

    def fine(theta, noise):
        counts[-1] += len(theta)
        return FINE(theta, noise)

    resumed.run((COARSE, fine), numbers, **options)
    counts.append(0)
    whole.run((COARSE, fine), numbers, **RUN, simulation_batch_size=(200, 5))
    assert counts[0] < counts[1]
    assert str(resumed.summary) == str(whole.summary)
    assert torch.equal(samples(resumed), samples(whole))
    with pytest.raises(ValueError, match="x_o"):
        hybrid().run((COARSE, FINE), numbers, **options)


def test_later_rounds_are_those_of_one_observation():
    first = hybrid()
    with pytest.raises(RuntimeError, match=r"round 1, and nothing was trained yet"):
        first.for_observation(OTHER)
    step(first)
    second = first.for_observation(OTHER)
    second.propose((2, 1))
    with pytest.raises(RuntimeError, match=r"round 2.* Call `for_observation` after"):
        second.for_observation(X_O)
    step(second, seed=1)
    with pytest.raises(RuntimeError, match="round 3, later rounds are those of one"):
        second.for_observation(X_O)
    with pytest.raises(ValueError, match="has shape"):
        first.for_observation(torch.zeros(3))
    with pytest.raises(ValueError, match="NaN or inf"):
        first.for_observation(torch.tensor([0.0, torch.nan]))
    with pytest.warns(UserWarning, match="far outside of the training simulations"):
        first.for_observation(torch.tensor([0.4, 80.0]))


@with_slow
@pytest.mark.parametrize("after", (2, 4))
def test_an_interrupted_run_resumes(make, after, tmp_path):
    path = tmp_path / "run.pt"
    options = {"simulation_batch_size": (200, 5), "checkpoint": path, **RUN}
    fine = killing(FINE, after)
    with pytest.raises(Killed):
        make().run((COARSE, fine), (200, 20), 2, **options)
    resumed, whole = make(), make()
    resumed.run(*BOTH, num_rounds=2, **options)
    whole.run(*BOTH, num_rounds=2, **RUN, simulation_batch_size=(200, 5))
    assert torch.equal(samples(resumed), samples(whole))
    assert str(resumed.summary) == str(whole.summary)


@with_slow
def test_a_saved_state_is_loaded_as_it_was(make, tmp_path):
    inference = make()
    step(inference)
    inference.propose((3, 2))
    inference.save(tmp_path / "state.pt")
    loaded = make().load(tmp_path / "state.pt")
    assert torch.equal(samples(loaded), samples(inference))
    theta = torch.rand(500, 2) * 2 - 1
    regions = [each._state.prior.contains(theta) for each in (loaded, inference)]
    assert torch.equal(*regions)
    for ours, theirs in zip(loaded.propose((4, 2)), inference.propose((4, 2))):
        assert torch.equal(ours, theirs)


@truncating
def test_a_state_can_be_saved_and_loaded_again(make, tmp_path):
    path, truncation = tmp_path / "state.pt", Truncation(1e-3, 2_000, max_draws=50_000)
    inference, loaded, again = (make(truncation=truncation) for _ in range(3))
    step(inference)
    inference.save(path)
    loaded.load(path).save(path)
    again.load(path)
    assert torch.equal(samples(again), samples(inference))
    assert again.truncated_prior.max_draws == 50_000


def test_a_state_of_other_settings_is_refused(tmp_path):
    inference = hybrid()
    step(inference)
    inference.save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        hybrid(seed=2).load(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="method was HybridNPE, is MLNPE"):
        multilevel().load(tmp_path / "state.pt")
    torch.save({"settings": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="fits is missing"):
        hybrid().load(tmp_path / "other.pt")


def test_a_state_of_a_version_that_could_not_widen_is_loaded(tmp_path):
    path, inference = tmp_path / "state.pt", hybrid()
    step(inference)
    inference.save(path)
    state = torch.load(path, weights_only=True)
    config = state["settings"]["config"]
    state["settings"]["config"] = config.replace(", widen=False", "")
    assert state["settings"]["config"] != config
    torch.save(state, path)
    assert torch.equal(samples(hybrid().load(path)), samples(inference))
