"""One network in place of a hybrid mixture, and interrupted trainings of a hybrid."""

import math
import pickle
from dataclasses import replace

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch.distributions import biject_to, constraints

from sbi_multilevel import (
    HybridConfig,
    HybridNLE,
    HybridNPE,
    MultilevelSimulations,
    OneCycle,
)
from tests.hybrids import BRIEF, PRIOR, QUICK, make, simulated, trained

CONFIG = HybridConfig(num_members=2, level_maps=("paired",), distill=True)


def gaps(mixture, student, cls):
    """Log density of draws from the mixture, minus that under one network."""
    level = simulated(2, 2_000, seed=7)[1]
    given = level.x if cls is HybridNPE else level.theta
    torch.manual_seed(3)
    with torch.no_grad():
        drawn = mixture.sample((1,), given)
        return (mixture.log_prob(drawn, given) - student.log_prob(drawn, given))[0]


@pytest.mark.parametrize("cls", [HybridNPE, HybridNLE])
def test_one_network_resembles_the_mixture(cls):
    schedule = OneCycle(num_steps=150, fine_tuning_steps=60)
    config = replace(CONFIG, schedule=schedule)
    sims = simulated(500, 40)
    pair = [
        trained(cls, sims, config=replace(config, distill=distill), options={})
        for distill in (False, True)
    ]
    mixture, student = (each._neural_net for each in pair)
    assert len(mixture.members) > 1 and len(student.members) == 1
    found = pair[1].hybrid_summary.distillation
    assert found.is_used and "one network in place" in str(pair[1].hybrid_summary)
    assert pair[0].hybrid_summary.distillation is None
    # the weight of the prior stays, and the divergence is what was reported
    assert (student.prior is None) == (mixture.prior is None)
    if student.prior is not None:
        assert student.weights[-1] == pytest.approx(mixture.weights[-1].item())
    values = gaps(mixture, student, cls)
    error = values.std() / len(values) ** 0.5 + found.error
    assert abs(values.mean() - found.loss) < 5 * error + 0.02
    assert found.loss < 0.1


def test_the_mixture_is_kept_if_one_network_loses_too_much():
    inference = trained(config=replace(CONFIG, distill="auto"))
    found = inference.hybrid_summary.distillation
    assert found.is_used == (found.loss < 0.02)
    assert (len(inference._neural_net.members) == 1) == found.is_used


class _Outer(constraints.Constraint):
    """Points of [-1, 1] that are not near 0."""

    event_dim = 1

    def check(self, value):
        inside = (value.abs() > 0.3) & (value.abs() <= 1)
        return inside.all(dim=-1)


@biject_to.register(_Outer)
def _of_box(constraint):
    return biject_to(PRIOR.support)


class OuterPrior(BoxUniform):
    """Uniform on a part of a box, by whose transform parameters are unconstrained."""

    def __init__(self):
        super().__init__(-torch.ones(1), torch.ones(1))

    @property
    def support(self):
        return _Outer()

    def sample(self, sample_shape=()):
        theta = super().sample(sample_shape)
        return theta.sign() * (0.3 + 0.7 * theta.abs())

    def log_prob(self, value):
        inside = self.support.check(value)
        return torch.where(inside, -math.log(1.4), -math.inf)


@pytest.mark.parametrize("distill", [False, True])
def test_networks_may_leave_a_support_that_is_a_part_of_a_box(distill):
    prior, sims = OuterPrior(), simulated(300, 40)
    inside = [level[prior.support.check(level.theta)] for level in sims.levels]
    inference = HybridNPE(
        prior,
        "mdn",
        config=replace(CONFIG, distill=distill),
        show_progress_bars=False,
    ).append_multilevel_simulations(MultilevelSimulations(tuple(inside)))
    inference.train(**BRIEF)
    found = inference.hybrid_summary.distillation
    assert (found is not None and found.is_used) == distill
    posterior = inference.build_posterior()
    x_o = torch.tensor([[1.0, 1.0]])  # theta near 0
    drawn = inference._neural_net.sample((500,), x_o)[:, 0]
    assert not prior.support.check(drawn).all()
    samples = posterior.sample((200,), x=x_o, show_progress_bars=False)
    assert prior.support.check(samples).all()


def test_simulations_outside_of_the_support_are_refused():
    inference = HybridNPE(OuterPrior(), "mdn", config=CONFIG, show_progress_bars=False)
    inference.append_multilevel_simulations(simulated())
    with pytest.raises(ValueError, match="outside the support of the prior"):
        inference.train(**BRIEF)


def test_a_trained_hybrid_with_a_local_kernel_can_be_pickled():
    inference = make()
    inference.train(**BRIEF, calibration_kernel=lambda x: torch.ones(len(x)))
    loaded = pickle.loads(pickle.dumps(inference))
    assert str(loaded.hybrid_summary) == str(inference.hybrid_summary)
    with pytest.raises(ValueError, match="was pickled"):
        loaded.estimate_gain()


def test_without_lower_levels_nothing_is_distilled():
    alone = simulated()[1]
    inference = HybridNPE(PRIOR, "mdn", config=CONFIG, show_progress_bars=False)
    inference.append_lowfidelity_simulations(alone.theta, alone.x)
    high = simulated(seed=1)[1]
    inference = HybridNPE(PRIOR, "mdn", config=CONFIG, show_progress_bars=False)
    inference.append_multilevel_simulations(high.theta, high.x, level=0)
    inference.train(**BRIEF)
    assert inference.hybrid_summary.distillation is None


def test_settings_are_checked():
    with pytest.raises(ValueError, match="distill must be True, False"):
        HybridConfig(distill="always")


built = []


def build(theta, x):
    """Builds a network; the fourth build is interrupted."""
    built.append(len(theta))
    if len(built) == 4:
        raise KeyboardInterrupt
    return posterior_nn("mdn")(theta, x)


def test_an_interrupted_training_continues_with_the_missing_networks():
    built.clear()
    inference = make(density_estimator=build)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        inference.train(**BRIEF)
    done = len(built) - 1
    with pytest.raises(ValueError, match="before training"):
        inference.estimate_gain()
    inference.train(resume_training=True, **BRIEF)
    network, resumed = inference._neural_net, len(built) - done - 1

    built[:] = [0] * 4  # no build is interrupted
    fresh = make(density_estimator=build)
    torch.manual_seed(0)
    expected = fresh.train(**BRIEF)
    assert done == 3 and done + resumed == len(built) - 4
    for ours, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_resuming_with_other_simulations_is_refused():
    built.clear()
    inference = make(density_estimator=build)
    with pytest.raises(KeyboardInterrupt):
        inference.train(**BRIEF)
    inference.append_multilevel_simulations(simulated(50, 5, seed=3))
    with pytest.raises(ValueError, match="training began on"):
        inference.train(resume_training=True, **BRIEF)


def test_the_gain_needs_the_simulations_of_the_training():
    inference = make(config=replace(QUICK, level_maps=("none", "shift")))
    with pytest.raises(ValueError, match="before training"):
        inference.estimate_gain()
    inference.train(**BRIEF)
    network = inference._neural_net
    summary = inference.estimate_gain()
    assert summary is inference.hybrid_summary
    assert summary.outputs is not None and inference._neural_net is network
    inference.append_multilevel_simulations(simulated(50, 5, seed=3))
    with pytest.raises(ValueError, match="Call `train` again"):
        inference.estimate_gain()
