"""Simulations that are appended later: new, repeated, or refused."""

import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    HybridNLE,
    HybridNPE,
    LevelSimulations,
    MultilevelSimulations,
)
from sbi_multilevel.training.repeats import count_repeats
from tests.hybrids import BRIEF, make, simulated, trained

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


def same_weights(first, second):
    pairs = zip(first._neural_net.state_dict().values(), second.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


# ------------------------------------------------------------- training from scratch


@pytest.mark.parametrize("cls", (HybridNPE, HybridNLE))
def test_a_second_training_is_that_of_a_new_trainer_with_all_simulations(cls):
    more, plain = simulated(50, 9, seed=1), simulated(50, 5, seed=2)[1]
    inference = trained(cls)
    fresh = make(cls)
    for each in (inference, fresh):
        each.append_multilevel_simulations(more)
        each.append_simulations(plain.theta, plain.x)
        torch.manual_seed(4)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*with and without x_coarse")
            each.train(**BRIEF)
    assert inference.estimate_gain().effective_sample_size.num_high == 34
    assert same_weights(inference, fresh._neural_net)


def test_resuming_is_refused_with_a_remedy_that_works():
    inference = trained()
    with pytest.raises(ValueError, match=r"Leave it out: `train\(\)` trains from"):
        inference.train(resume_training=True, **BRIEF)
    inference.train(**BRIEF)


def test_draws_from_a_proposal_are_not_taken_for_draws_from_the_prior():
    inference = trained()
    proposal = inference.build_posterior().set_default_x(torch.zeros(2))
    more = simulated()[1]
    inference.append_simulations(more.theta + 1e-3, more.x, proposal=proposal)
    with pytest.raises((ValueError, AssertionError)):
        inference.train(**BRIEF)


def test_other_methods_ask_as_sbi_does():
    inference = make(MFNPE, config=None)
    inference.train(**BRIEF)
    with pytest.raises(ValueError, match="force_first_round_loss"):
        inference.train(**BRIEF)


# ----------------------------------------------------------------- from a pickle


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize("cls", (HybridNPE, HybridNLE, MFNPE, MFNLE))
def test_a_trainer_from_a_pickle_names_why_it_cannot_train(cls):
    inference = make(cls, config=None)
    copy = pickle.loads(pickle.dumps(inference))
    copy.append_multilevel_simulations(simulated(seed=1))
    with pytest.raises(ValueError, match=rf"pickle.*new trainer, `{cls.__name__}\("):
        copy.train(**BRIEF)
    assert copy.multilevel_simulations.num_simulations == (400, 40)


# ------------------------------------------------------------- repeats


@pytest.mark.parametrize("cls", (HybridNPE, HybridNLE))
def test_repeated_simulations_are_reported(cls):
    inference = make(cls)
    with pytest.warns(
        UserWarning, match="200 of 200 simulations of level 0, 20 of 20 simulations"
    ):
        inference.append_multilevel_simulations(simulated())
    high = simulated()[1]
    with pytest.warns(UserWarning, match="20 of 20 simulations of level 1 .*`seed=`"):
        inference.append_simulations(high.theta, high.x)
    low = simulated(seed=3)[0]
    theta, x = (
        torch.cat((a[:7], b))
        for a, b in zip((simulated()[0].theta, simulated()[0].x), (low.theta, low.x))
    )
    with pytest.warns(UserWarning, match="7 of 207 simulations of level 0"):
        inference.append_multilevel_simulations(theta, x, level=0)


@pytest.mark.parametrize("cls", (MFNPE, MFNLE))
def test_new_simulations_and_replicates_of_theta_are_silent(cls):
    inference = make(cls)
    low, high = simulated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.append_multilevel_simulations(simulated(seed=1))
        inference.append_multilevel_simulations(low.theta, low.x + 1, level=0)
        inference.append_simulations(high.theta, high.x + 1)
        # simulations of another level are no repeats
        inference.append_simulations(low.theta, low.x)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=9),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=9),
)
def test_repeats_are_counted_as_python_would(new, known):
    def level(pairs):
        theta, x = torch.tensor(pairs, dtype=torch.float32).T
        return LevelSimulations.trusted(0, theta[:, None], x.reshape(-1, 1, 1))

    assert count_repeats(level(new), [level(known)]) == sum(p in known for p in new)
    assert count_repeats(level(new), []) == 0
    halves = [level(known[:1]), level(known[1:])]
    assert count_repeats(level(new), halves) == sum(p in known for p in new)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
def test_a_list_of_levels_is_named_as_what_it_is(cls):
    inference = make(cls)
    parts = [(level.theta, level.x) for level in simulated()]
    with pytest.raises(
        ValueError, match="theta is a list of 2 elements.*simulate_mult"
    ):
        inference.append_multilevel_simulations(parts)
    with pytest.raises(ValueError, match="theta is a Tensor, x is None and level is 1"):
        inference.append_multilevel_simulations(simulated()[1].theta, level=1)


@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
@pytest.mark.parametrize(
    ("theta", "x", "named"),
    (
        (torch.zeros(9), torch.randn(9, 2), r"theta of level 2 .*\(n, 1\)"),
        (torch.zeros(9, 2), torch.randn(9, 2), r"theta of level 2 has shape \(2,\)"),
        (torch.zeros(9, 1), torch.randn(9, 3), r"x of level 2 has shape \(3,\)"),
    ),
)
def test_simulations_that_do_not_fit_the_levels_are_refused_at_once(
    cls, theta, x, named
):
    inference = make(cls, simulations=MultilevelSimulations(tuple(simulated())))
    inference._appended.low_fidelity.add(1)
    with pytest.raises(ValueError, match=named):
        inference.append_simulations(theta, x)
    assert len(inference._theta_roundwise) == 2


@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
def test_simulations_alone_are_taken_as_sbi_takes_them(cls):
    inference = cls(show_progress_bars=False)
    level = simulated()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            inference.append_simulations(level.theta, level.x)
    assert len(inference._theta_roundwise) == 2
