"""The plasticity task: rules, prior, mean field and spiking network."""

import importlib.util
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sbi.inference import DirectPosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform, mcmc_transform
from scipy.integrate import solve_ivp

from sbi_multilevel.estimators.transformed import unconstrained
from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.papers.experiment import Sweep
from sbi_multilevel_benchmarks.papers.neuroscience import PlausibleShare
from sbi_multilevel_benchmarks.papers.pictures import Trained
from sbi_multilevel_benchmarks.plasticity import mean_field as mf
from sbi_multilevel_benchmarks.plasticity import parameters as p
from sbi_multilevel_benchmarks.plasticity.config import NetworkConfig
from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.tasks import plasticity as task_module

HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_ZARR = importlib.util.find_spec("zarr") is not None
needs_zarr = pytest.mark.skipif(not HAS_ZARR, reason="zarr is not installed")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
BOX = BoxUniform(p.LOW, p.HIGH)
SHORT = NetworkConfig(settle_seconds=0.2, record_seconds=0.2)


def theta_of(**values):
    """A theta of zeros but for the given parameters; time constants are 20 ms."""
    theta = torch.zeros(1, 24)
    for i, name in enumerate(p.PARAMETERS):
        theta[0, i] = values.get(name, 0.02 if name.startswith("tau") else 0.0)
    return theta


# ------------------------------------------------------------- prior


def test_the_prior_is_uniform_where_the_mean_field_is_plausible():
    prior = task_module.PlasticityTask.prior
    theta = prior.sample((20, 100))
    assert theta.shape == (20, 100, 24) and theta.dtype == torch.float32
    flat = theta.reshape(-1, 24)
    rates = mf.fixed_point(flat)
    assert ((rates > 1) & (rates < 50)).all() and mf.is_stable(flat, rates).all()
    values = prior.log_prob(theta)
    assert values.shape == (20, 100) and (values == values[0, 0]).all()
    volume = (p.HIGH - p.LOW).double().log().sum()
    expected = -volume - np.log(task_module.SHARE)
    assert values[0, 0].item() == pytest.approx(expected.item(), abs=1e-4)
    others = BOX.sample((20_000,))
    inside = mf.is_plausible(others)
    assert 0 < inside.sum() < len(others)
    assert torch.equal(prior.log_prob(others).isfinite(), inside)
    assert torch.equal(prior.support.check(others), inside)
    assert not prior.log_prob(p.HIGH[None] + 1).isfinite().any()


def test_the_share_of_the_box_is_that_of_uniform_draws():
    count = sum(mf.is_plausible(BOX.sample((100_000,))).sum().item() for _ in range(10))
    error = (task_module.SHARE / 1_000_000) ** 0.5
    assert count / 1_000_000 == pytest.approx(task_module.SHARE, abs=4.5 * error)


def test_the_prior_has_the_transform_of_its_box():
    theta = task_module.PlasticityTask.prior.sample((50,))
    restricted = mcmc_transform(task_module.PlasticityTask.prior)
    assert torch.allclose(restricted(theta), mcmc_transform(BOX)(theta))
    with pytest.raises(ValueError, match="share=0"):
        p.RestrictedUniform(p.LOW, p.HIGH, mf.is_plausible, 0)


# ------------------------------------------------------------- mean field


def test_drifts_are_zero_at_the_fixed_point():
    theta = task_module.PlasticityTask.prior.sample((500,))
    drifts = mf.drifts(theta, mf.fixed_point(theta))
    assert drifts[:, :2].abs().max() < 1e-6 and drifts[:, 2:].abs().min() > 1e-6


def test_level_0_is_the_stable_fixed_point_or_a_bound():
    theta = BOX.sample((20_000,))
    rates, fixed = mf.steady_rates(theta), mf.fixed_point(theta)
    assert rates.min() == 1 and rates.max() == 50
    inside = ((rates > 1) & (rates < 50)).all(dim=1)
    assert torch.allclose(rates[inside], fixed[inside])
    plausible = ((fixed > 1) & (fixed < 50)).all(dim=1)
    stable = mf.is_stable(theta, fixed)[:, :2].all(dim=1)
    assert torch.equal(inside, plausible & stable)
    assert inside[mf.is_plausible(theta)].all()


def test_each_rule_opposes_changes_of_the_rate_that_it_controls():
    """Above the rate at which a drift is 0, E weights shrink and I weights grow."""
    theta = task_module.PlasticityTask.prior.sample((500,))
    rates, columns = mf.steady_rates(theta), mf.by_rule(theta)
    slope = mf.slopes(theta)
    alpha, beta = columns["alpha"], columns["beta"]
    other = rates[:, [0, 0, 1, 1]]
    zeros = -alpha * other / (beta + slope * other)
    own = -(alpha + beta) / slope  # of rules within a population
    zeros[:, 0], zeros[:, 3] = own[:, 0], own[:, 3]
    assert (zeros > 0).all()
    for rule, (population, sign) in enumerate(((0, -1), (1, -1), (0, 1), (1, 1))):
        for factor in (0.5, 1.0, 2.0):
            moved = rates.clone()
            moved[:, population] = factor * zeros[:, rule]
            drift = sign * mf.drifts(theta, moved)[:, rule]
            if factor == 1:
                assert drift.abs().max() < 1e-6 * moved.max()
            else:
                assert ((drift > 0) == (factor > 1)).all()


def test_stable_rules_have_the_signs_of_the_theory():
    theta = task_module.PlasticityTask.prior.sample((500,))
    columns, slopes = mf.by_rule(theta), mf.slopes(theta)
    assert ((columns["alpha"] + columns["beta"])[:, 0] > 0).all()
    assert (slopes[:, 0] < 0).all() and (columns["alpha"][:, 1] > 0).all()
    # the values of appendix G.3
    fixed = mf.with_fixed(theta[:1], 0)
    assert mf.slopes(fixed).flatten().tolist() == pytest.approx([-0.07] * 4)
    rates = mf.fixed_point(fixed)
    assert rates.flatten().tolist() == pytest.approx([1 / 0.07] * 2, rel=1e-5)
    assert mf.is_stable(fixed, rates).tolist() == [[True, True, False, False]]


def relax(theta, start, jacobian, seconds=2_000.0):
    """Rates at the end of the averaged dynamics of the weights of EE and EI.

    Rates are linear in the weights, with a given matrix of derivatives.
    """

    def slope(t, weights):
        rates = torch.as_tensor(start[:2] + jacobian @ weights)[None]
        return mf.drifts(theta, rates)[0, :2].numpy()

    def escapes(t, weights):
        rates = start[:2] + jacobian @ weights
        return min(rates.min() - 0.1, 100 - rates.max())

    escapes.terminal = True
    options = dict(method="LSODA", rtol=1e-8, events=escapes)
    weights = solve_ivp(slope, (0, seconds), np.zeros(2), **options).y[:, -1]
    return start[:2] + jacobian @ weights


@pytest.mark.parametrize("coupling", [0.2, 0.8])
def test_averaged_dynamics_are_stable_where_the_theory_says(coupling):
    """Weights begin near the fixed point: they return to it, or leave."""
    jacobian = np.array([[1.0, -coupling], [coupling, 1.0]])
    theta = BOX.sample((40_000,))
    fixed = mf.fixed_point(theta)
    theta = theta[((fixed > 3) & (fixed < 30)).all(dim=1)][:40]
    seen = []
    for row in theta.split(1):
        rates = mf.fixed_point(row)
        columns, slopes = mf.by_rule(row), mf.slopes(row)
        s = (columns["alpha"] + columns["beta"])[0, 0].item()
        r_e, r_i = rates[0].tolist()
        k = -(columns["beta"][0, 1] + slopes[0, 1] * r_e).item()
        m = -columns["beta"][0, 1].item() * r_i / r_e
        drift = np.array([[-s, 0.0], [m, -k]])
        speeds = np.linalg.eigvals(drift @ jacobian).real
        trace = -(s + coupling * m + k)
        is_stable = s * k > 0 and trace < 0
        assert (speeds.max() < 0) == is_stable
        if s * k > 0 and s > 0:
            assert mf.is_stable(row, rates)[0, :2].all()
        if np.abs(speeds).min() < 0.05:  # slow, or near the border
            continue
        start = rates[0].numpy() * np.array([1.01, 0.99])
        end = relax(row, start, jacobian)
        assert np.allclose(end, rates[0], rtol=1e-3) == is_stable
        seen.append(is_stable)
    assert 5 < sum(seen) < len(seen) - 5


def test_levels_with_fewer_parameters_do_not_depend_on_the_others():
    theta = task_module.PlasticityTask.prior.sample((200,))
    for num_free in (3, 6, 12):
        other = theta.clone()
        other[:, num_free:] = BOX.sample((200,))[:, num_free:]
        rates = mf.steady_rates(theta, num_free)
        assert torch.equal(rates, mf.steady_rates(other, num_free))
        assert rates.isfinite().all() and len(rates[:, 0].unique()) > 20
    e_rates = [mf.steady_rates(theta, n)[:, 0] for n in (6, 12)]
    assert torch.equal(*e_rates)


# ------------------------------------------------------------- the task


def test_importing_the_task_does_not_import_numba():
    code = (
        "import sys, sbi_multilevel_benchmarks.tasks.plasticity;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_invalid_arguments_raise(monkeypatch):
    for options in ({"num_excitatory": 100}, {"num_excitatory": 514}):
        with pytest.raises(ValueError, match="a multiple of 4 in 412 to 4096"):
            NetworkConfig(**options)
    with pytest.raises(ValueError, match="record_seconds=0"):
        NetworkConfig(record_seconds=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install numba"):
        task_module.PlasticityTask()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="3, 6 or 12"):
        task_module.PlasticityTask(num_low=4)
    with pytest.raises(TypeError, match="not known"):
        task_module.PlasticityTask().reference(0)


@pytest.fixture
def task(monkeypatch):
    """The task with a network that is replaced by a function of theta and noise."""

    def rates(theta, seed, config):
        inside = 10 + 5 * np.tanh(theta[2:4]) + seed / 2**62
        return inside if theta[14] > -1 else np.array([0.5, 3.0])

    def spiking_rates(theta, seeds, config):
        rows = [rates(t.numpy(), s, config) for t, s in zip(theta, seeds.tolist())]
        return torch.as_tensor(np.stack(rows), dtype=torch.float32)

    monkeypatch.setattr(task_module, "spiking_rates", spiking_rates)
    find = importlib.util.find_spec

    def find_spec(name, *package):
        return name if name == "numba" else find(name, *package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return task_module.PlasticityTask(num_observations=4)


@pytest.fixture
def half(task, monkeypatch):
    """The task with half of the box as the prior, which is drawn faster."""
    prior = p.RestrictedUniform(p.LOW, p.HIGH, lambda theta: theta[:, 2] > 0, 0.5)
    monkeypatch.setattr(task_module.PlasticityTask, "prior", prior)
    return task


@pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")
def test_the_task_keeps_the_contract(task):
    sims, again = (task.simulate((50, 20), seed=1) for _ in range(2))
    assert sims.num_simulations == (50, 20)
    for level, same in zip(sims, again):
        assert torch.equal(level.x, same.x) and torch.equal(level.theta, same.theta)
        assert task.prior.log_prob(level.theta).isfinite().all()
        assert ((level.x >= 1) & (level.x <= 50)).all()
    high = sims[1]
    assert torch.equal(high.x_coarse, mf.steady_rates(high.theta).float())
    assert not torch.equal(task.simulate((50, 20), seed=2)[1].x, high.x)
    assert task.simulate((50, 30), seed=1)[1].theta[:20].equal(high.theta)
    # both levels are drawn independently
    assert not (sims[0].theta[:, None] == high.theta).all(dim=2).any()
    low, _ = task.simulate_level(0, 50, seed=1)
    assert not (low[:, None] == sims[0].theta).all(dim=2).any()
    assert "_observed" not in vars(task)  # not at construction
    assert task.observations.shape == (4, 2) and task.true_theta.shape == (4, 24)
    theta, x = task.simulate_high(4, seed=10_000)
    assert torch.equal(theta, task.true_theta) and torch.equal(x, task.observations)
    low = task_module.PlasticityTask.prior.sample((40,))
    share = (low[:, 14] > -1).float().mean().item()
    assert task.plausible_share(low) == pytest.approx(share)
    network = task.build_network()(sims[0].theta, sims[0].x)
    samples = network.sample((100,), task.observations[:1])[:, 0]
    assert BOX.log_prob(samples).isfinite().all()


@needs_zarr
def test_networks_are_kept_in_a_folder(half, tmp_path, monkeypatch):
    in_memory = half.simulate_high(10, seed=3)
    first = task_module.PlasticityTask(folder=tmp_path).simulate_high(20, seed=3)
    monkeypatch.setattr(task_module, "spiking_rates", None)  # not run again
    again = task_module.PlasticityTask(folder=tmp_path, num_low=6)
    few = half.simulate_level(0, 5, seed=0)[1], again.simulate_level(0, 5, seed=0)[1]
    assert not torch.equal(*few)  # mean fields are not kept
    for other in (in_memory, again.simulate_high(10, seed=3)):
        assert all(a[:10].equal(b) for a, b in zip(first, other))


def test_posteriors_are_evaluated_in_the_box(half):
    theta, x = half.simulate_high(20, seed=3)
    network = unconstrained(posterior_nn("mdn", num_components=2), half.prior)(theta, x)
    with seeded(0):
        errors = half.evaluate(DirectPosterior(network, half.prior), x)
    assert len(errors["inside"]) == len(errors["nltp"]) == 4
    assert min(errors["inside"]) > 0.5 and max(errors["inside"]) < 1
    exact = -network.log_prob(half.true_theta[None], half.observations)[0]
    assert torch.tensor(errors["nltp"]).allclose(exact, rtol=1e-4)


def test_the_share_of_plausible_samples_is_a_row_of_a_table(half, monkeypatch):
    build = unconstrained(posterior_nn("mdn"), half.prior)
    monkeypatch.setattr(task_module.PlasticityTask, "build_network", lambda _: build)
    sweep = Sweep("plasticity", ("high",), ((200, 20),))
    (table,) = PlausibleShare(sweep, num_samples=40)("smoke", []).tables.values()
    ((method, share),) = table.rows
    trained = Trained.all_of(sweep, "smoke")[0].posterior
    with seeded(0):
        theta = half.in_box(trained).sample((40,), x=half.observations[:1])
    assert method == "high, 200 + 20"
    assert share == f"{(theta[:, 14] > -1).float().mean():.2f} ± 0.00"


# ------------------------------------------------------------- the network


def dense(start, target, weight, num_targets):
    """A matrix of synapses, from each source to each target."""
    matrix = np.zeros((len(start) - 1, num_targets))
    matrix[np.repeat(np.arange(len(start) - 1), np.diff(start)), target] = weight
    return matrix


def reference_rates(seed, config, step=2e-4):
    """Rates of the same synapses without plasticity, by matrices, and other input.

    Voltages relax to the momentary equilibrium with the momentary time constant.
    """
    from sbi_multilevel_benchmarks.plasticity import state

    rng = np.random.default_rng(seed)
    n_e, n = config.num_excitatory, config.num_neurons
    synapses = state.connect(config, rng)
    weights = dense(synapses.start, synapses.target, synapses.weight, n)
    inputs = dense(*state.connect_inputs(config, rng), 0.075, n)
    settle, seconds = config.settle_seconds, config.record_seconds
    v, rise = np.full(n, -70.0), np.zeros(n)
    ampa, nmda, gaba = np.zeros((3, n))
    late, counts = [np.zeros(n, bool)] * round(8e-4 / step), np.zeros(2)
    for now in range(round((settle + seconds) / step)):
        share = 0.3 / 1.3
        g = share * ampa + (1 - share) * nmda
        total = 1 + g + gaba
        equilibrium = (-70 - 80 * gaba) / total
        v = equilibrium + (v - equilibrium) * np.exp(-step * total / 0.020)
        nmda = nmda + (ampa - nmda) * (1 - np.exp(-step / 0.1))
        ampa = ampa * np.exp(-step / 0.005)
        gaba = gaba * np.exp(-step / 0.010)
        rise = rise * np.exp(-step / 0.005)
        fired = v > -50 + rise
        v[fired], rise[fired] = -70, 100
        late.append(fired)
        arrived = late.pop(0)
        if arrived.any():
            e, i = arrived[:n_e], arrived[n_e:]
            ampa = ampa + weights[:n_e][e].sum(axis=0)
            gaba = gaba + weights[n_e:][i].sum(axis=0)
        sources = rng.integers(5_000, size=rng.poisson(5_000 * 10 * step))
        ampa = ampa + inputs[sources].sum(axis=0)
        if now * step >= settle:
            counts += fired[:n_e].sum(), fired[n_e:].sum()
    return counts / (n_e, n - n_e) / seconds


@needs_numba
@pytest.mark.slow
def test_a_network_without_plasticity_has_the_rates_of_another_simulation():
    from sbi_multilevel_benchmarks.plasticity.network import network_rates

    config = NetworkConfig(
        settle_seconds=0.5,
        record_seconds=2.0,
        learning_rate=0.0,
        initial_weights=(0.01, 0.01, 0.1, 0.1),
    )
    theta = np.zeros(24) + 0.02
    found = np.mean([network_rates(theta, seed, config) for seed in range(3)], axis=0)
    expected = np.mean([reference_rates(seed, config) for seed in range(3)], axis=0)
    assert np.allclose(found, expected, rtol=0.06)


@needs_numba
def test_drifts_are_those_of_poisson_spike_trains():
    from sbi_multilevel_benchmarks.plasticity.network import weights_after
    from sbi_multilevel_benchmarks.plasticity.state import connect

    config = NetworkConfig(learning_rate=1e-3, initial_weights=(10.0,) * 4)
    rng = np.random.default_rng(0)
    synapses = connect(config, rng)
    source = np.repeat(np.arange(640), np.diff(synapses.start))
    kinds = 2 * (source >= 512) + (synapses.target >= 512)
    rates = np.repeat([8.0, 14.0], [512, 128])
    theta = BOX.sample((1,))
    settle, steps, changes = 4_000, 10_000, []
    for _ in range(12):
        spikes = rng.random((settle + steps, 640)) < rates * 1e-4
        before, after = (
            weights_after(theta[0].numpy(), spikes[:stop], synapses, config)
            for stop in (settle, settle + steps)
        )
        means = [(after - before)[kinds == kind].mean() for kind in range(4)]
        changes.append(np.array(means) / (steps * 1e-4) / 1e-3)
    found, error = np.mean(changes, axis=0), np.std(changes, axis=0, ddof=1) / 12**0.5
    expected = mf.drifts(theta, torch.tensor([[8.0, 14.0]]))[0].numpy()
    # traces in steps are lower by half a step, at most 0.5 % of a time constant
    assert (np.abs(found - expected) < 4 * error + 0.005 * np.abs(expected)).all()


@needs_numba
def test_simulations_are_functions_of_theta_and_seed():
    theta = task_module.PlasticityTask.prior.sample((3,))
    seeds = torch.tensor([1, 2, 3])
    x = task_module.spiking_rates(theta, seeds, SHORT)
    alone = task_module.spiking_rates(theta[1:], seeds[1:], SHORT)
    assert torch.equal(x[1:], alone)
    other = task_module.spiking_rates(theta, seeds + 3, SHORT)
    assert not torch.equal(x, other) and x.shape == (3, 2)


@needs_numba
def test_runaway_excitation_ends_the_run():
    theta = theta_of(alpha_EE=2.0, beta_EE=2.0, alpha_IE=-2.0, alpha_EI=-2.0)
    config = replace(SHORT, settle_seconds=50.0)
    rates = task_module.spiking_rates(theta, torch.tensor([0]), config)
    assert rates.isnan().all()


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("target", [4.0, 8.0])
def test_the_rule_of_vogels_reaches_its_target(target):
    rule = {"alpha_IE": -2 * target * 0.02, "gamma_IE": 1.0, "kappa_IE": 1.0}
    config = NetworkConfig(settle_seconds=20.0, record_seconds=5.0)
    rates = task_module.spiking_rates(theta_of(**rule), torch.tensor([0]), config)
    # correlations of I and E spikes shift the rate by a few percent
    assert rates[0, 0].item() == pytest.approx(target, rel=0.15)


@needs_numba
def test_each_size_is_registered():
    for name, size in (("plasticity", 12), ("plasticity-low-6", 6)):
        assert len(get_task(name).parameters[0]) == size
    assert get_task("plasticity-full").config.num_excitatory == 4_096
