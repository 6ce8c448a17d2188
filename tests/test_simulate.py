"""Running simulators: pairing, seeds, workers, cost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils import BoxUniform
from scipy.stats import uniform

from sbi_multilevel import simulate_multilevel, vectorize_simulator
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.simulation import table
from sbi_multilevel.simulation.filling import RunOptions
from tests.two_levels import PRIOR, coarse, fine, normal_noise


def seeded_coarse(theta, seed):
    return theta.numpy() + np.random.default_rng(seed).normal(size=2)


def seeded_fine(theta, seed):
    return theta.numpy() + 1.1 * np.random.default_rng(seed).normal(size=2)


KINDS = {
    "sampler": dict(simulators=(coarse, fine), noise=normal_noise),
    "seeds": dict(
        simulators=(
            vectorize_simulator(seeded_coarse),
            vectorize_simulator(seeded_fine),
        )
    ),
}


def run(kind="sampler", n=(50, 20), **options):
    arguments = {**KINDS[kind], "prior": PRIOR, "show_progress_bars": False}
    return simulate_multilevel(num_simulations=n, **{**arguments, **options})


def assert_same(a, b):
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left.theta, right.theta)
        assert torch.equal(left.x, right.x)
        if left.is_paired:
            assert torch.equal(left.x_coarse, right.x_coarse)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**40),
)
def test_simulations_do_not_depend_on_the_batch_size(kind, batch_size, seed):
    assert_same(
        run(kind, seed=seed), run(kind, seed=seed, simulation_batch_size=batch_size)
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_simulations_do_not_depend_on_the_workers(kind):
    assert_same(run(kind), run(kind, num_workers=2, simulation_batch_size=7))


def test_more_simulations_repeat_the_first_ones():
    few, many = run(n=(50, 20)), run(n=(2_500, 33))
    for a, b in zip(few, many):
        assert torch.equal(a.theta, b.theta[: len(a)])
        assert torch.equal(a.x, b.x[: len(a)])


def test_levels_simulations_and_seeds_differ():
    sims = run(n=(20, 20))
    assert not torch.equal(sims[0].theta, sims[1].theta)
    assert len(torch.unique(sims[0].x - sims[0].theta, dim=0)) == 20
    assert not torch.equal(sims[0].x, run(n=(20, 20), seed=1)[0].x)


def test_pairs_share_theta_and_noise():
    pairs = run(n=(2, 500))[1]
    noise = pairs.x_coarse - pairs.theta
    rest = (pairs.x - pairs.x_coarse) / 0.1
    assert (pairs.x - pairs.theta - noise - 0.1 * rest).abs().max() < 1e-5
    assert 0.8 < rest.std() < 1.2 and 0.8 < noise.std() < 1.2


def test_theta_follows_the_prior():
    theta = run(n=(4_000, 2))[0].theta
    standard_error = (1 / 3) ** 0.5 / 4_000**0.5
    assert theta.mean(dim=0).abs().max() < 4 * standard_error
    assert theta.abs().max() <= 1


def test_the_global_random_state_is_not_changed():
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3), np.random.seed(3)
    run()
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


def test_a_simulator_may_overwrite_its_input():
    def destructive(theta, noise):
        x = theta + noise[:, :2]
        theta.zero_(), noise.zero_()
        return x

    assert_same(run(simulators=(coarse, destructive)), run(simulators=(coarse, coarse)))


def test_numpy_priors_are_seeded():
    prior = [BoxUniform(torch.zeros(1), torch.ones(1)) for _ in range(2)]
    assert_same(run(prior=prior), run(prior=prior))
    assert_same(run(prior=_ScipyPrior()), run(prior=_ScipyPrior()))


class _ScipyPrior:
    def sample(self, shape=()):
        return torch.as_tensor(uniform.rvs(size=(*shape, 2)), dtype=torch.float32)

    def log_prob(self, theta):
        return torch.zeros(theta.shape[:-1])


def test_cost_is_measured_or_given(clock):
    assert run(costs=(1, 10)).total_cost == 50 + 20 * 11

    def timed(simulator, seconds):
        def simulate(theta, noise):
            clock.sleep(seconds * len(theta))
            return simulator(theta, noise)

        return simulate

    simulators = timed(coarse, 0.5), timed(fine, 2.0)
    measured = run(simulators=simulators, simulation_batch_size=10).costs
    assert measured == pytest.approx((0.5, 2.0))


def test_noise_may_be_several_tensors():
    def noise(n, generator):
        return torch.randn(n, 2, generator=generator), torch.rand(
            n, generator=generator
        )

    def simulator(theta, noise):
        return theta + noise[0] * noise[1].unsqueeze(1)

    options = dict(simulators=(simulator, simulator), noise=noise)
    with pytest.warns(UserWarning, match="identical to x"):
        a = run(**options)
    with pytest.warns(UserWarning, match="identical to x"):
        assert_same(a, run(simulation_batch_size=3, **options))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(n=(10,)), "2 levels, num_simulations 1"),
        (dict(n=(10, 1)), "at least 2"),
        (dict(seed=-1), "seed"),
        (dict(seed=1.5), "seed"),
        (dict(simulation_batch_size=0), "simulation_batch_size"),
        (dict(costs=(1.0,)), "costs"),
    ],
)
def test_bad_arguments_raise_with_their_name(options, named):
    with pytest.raises(ValueError, match=named):
        run(**options)


def test_failed_simulations_are_dropped_with_a_warning():
    def failing(theta, noise):
        x = fine(theta, noise)
        return torch.where(theta[:, :1] > 0.9, torch.nan, x)

    with pytest.warns(UserWarning, match="simulations of level 1: NaN or inf"):
        sims = run(simulators=(coarse, failing), n=(50, 200))
    assert sims[1].theta[:, 0].max() <= 0.9


def test_growth_in_memory_that_was_interrupted_can_be_repeated(monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    options = RunOptions((50, 50), show_progress_bars=False)
    growing = GrowingSimulations((coarse, fine), PRIOR, normal_noise, 0, None, options)
    growing.simulate((40, 20))
    with monkeypatch.context() as patch:
        patch.setattr(table, "simulation_seeds", killed)
        with pytest.raises(KeyboardInterrupt):
            growing.simulate((100, 50))
    assert growing.existing() == (40, 20)
    for n in ((60, 20), (120, 30)):  # fewer, then more than before the interrupt
        assert_same(growing.simulate(n), run(n=n))


def test_progress_bars_and_summary_are_shown(capfd):
    def sometimes(theta, noise):
        return torch.where(theta[:, :1] > 0.9, torch.nan, fine(theta, noise))

    with pytest.warns(UserWarning, match="NaN or inf"):
        run(
            simulators=(coarse, sometimes),
            n=(60, 40),
            costs=(1, 10),
            show_progress_bars=True,
            simulation_batch_size=20,
        )
    out, err = capfd.readouterr()
    assert "Level 0: 100%" in err and "60/60" in err
    assert "Level 1: 100%" in err and "40/40" in err and "bad=" in err
    assert "Cost: 100%" in err and "500/500" in err  # 60 * 1 + 40 * (10 + 1)
    (line,) = out.strip().splitlines()
    assert line.startswith("level 0: 60 ok, ") and " invalid, " in line


def test_no_progress_bars_are_shown_by_request(capfd):
    run()
    assert capfd.readouterr() == ("", "")
