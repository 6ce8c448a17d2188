"""Synthetic tasks: exact densities, deviations of the low fidelity, a run."""

import math

import numpy as np
import pytest
import torch
from sbi.inference import NPE
from scipy import stats
from torch.distributions import MultivariateNormal, Normal

from sbi_multilevel_benchmarks.registry import TASKS, get_task
from sbi_multilevel_benchmarks.run import Run, run_one
from sbi_multilevel_benchmarks.tasks import synthetic, synthetic_grid

KINDS = (*synthetic.KINDS, "grid")
NAMES = [f"{half}-{kind}" for half in synthetic.HALVES for kind in KINDS]


def draws(task, n=2_000):
    return task.prior.sample((n,)), task.noise(n, torch.Generator().manual_seed(0))


def unbent(level, x):
    bend = getattr(level, "bend", 0.0)
    return torch.sinh(bend * x) / bend if bend else x


def log_likelihood(level, theta, x):
    """Log density of y at each theta, from the simulator without noise."""
    noise = torch.cat((torch.zeros(len(theta), 10), torch.ones(len(theta), 3)), dim=1)
    mean, y = level(theta, noise).double(), x.double()
    mean, y = unbent(level, mean), unbent(level, y)
    if getattr(level, "is_heavy", False):
        shape = level.scale**2 * np.eye(len(x))
        found = stats.multivariate_t(shape=shape, df=3).logpdf((y - mean).numpy())
        return torch.as_tensor(found).reshape(-1)
    return Normal(mean, level.scale).log_prob(y).sum(dim=1)


# ------------------------------------------------------------- contract


def test_both_halves_have_all_kinds():
    found = [n for n in TASKS if n.startswith(("synthetic-", "validation-"))]
    assert sorted(found) == sorted(NAMES) and len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")
def test_every_task_keeps_the_contract(name):
    task = get_task(name)
    assert task.num_simulations == (5_000, 50)
    sims, again = task.simulate((30, 10), seed=1), task.simulate((30, 10), seed=1)
    assert sims.num_simulations == (30, 10)
    assert all(torch.equal(a.x, b.x) for a, b in zip(sims, again))
    assert not torch.equal(sims[0].x, task.simulate((30, 10), seed=2)[0].x)
    low, high = task.simulators
    theta, noise = draws(task)
    assert torch.isfinite(low(theta, noise)).all() and high(theta, noise).shape[1] <= 10
    network = task.build_network()(theta, high(theta, noise))
    samples = network.sample((100,), high(theta[:1], noise[:1]))[:, 0]
    assert torch.isfinite(task.prior.log_prob(samples)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_halves_differ(kind):
    parts = [get_task(f"{half}-{kind}") for half in synthetic.HALVES]
    sizes = [task.prior.event_shape for task in parts]
    assert sizes[0] != sizes[1]
    if kind != "grid":
        (_, one), (_, other) = (task.simulators for task in parts)
        assert one.matrix.shape != other.matrix.shape and one.scale != other.scale


@pytest.mark.parametrize("name", NAMES)
def test_levels_share_their_noise(name):
    task = get_task(name)
    theta, noise = draws(task)
    same = theta[:1].expand(len(theta), -1)
    low, high = (simulator(same, noise) for simulator in task.simulators)
    both = torch.corrcoef(torch.cat((low, high), dim=1).T)
    shared = both[: low.shape[1], low.shape[1] :].diagonal().abs()
    assert shared.min() > 0.5


@pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")
def test_simulations_can_be_unpaired():
    paired, unpaired = (
        get_task(f"validation-half:paired={value}").simulate((30, 10), seed=1)
        for value in ("yes", "no")
    )
    assert paired[1].is_paired and not unpaired[1].is_paired
    assert all(torch.equal(a.x, b.x) for a, b in zip(paired, unpaired))
    assert not (unpaired[1].theta[:, None] == unpaired[0].theta).any()
    with pytest.raises(ValueError, match="'yes' or 'no'"):
        get_task("synthetic-half:paired=maybe")


# ------------------------------------------------------------- exact densities


@pytest.mark.parametrize("name", NAMES)
def test_densities_agree_with_importance_sampling(name):
    task = get_task(name)
    theta, noise = draws(task, 3)
    theta = (theta + task.prior.mean) / 2  # where the prior has more draws
    x, prior = task.simulators[1](theta, noise), task.prior.sample((400_000,))
    for theta_o, x_o, found in zip(theta, x, task.log_posterior(theta, x)):
        values = log_likelihood(task.simulators[1], prior, x_o)
        effective = 1 / torch.softmax(values, dim=0).square().sum()
        assert effective > 100
        expected = task.prior.log_prob(theta_o) - torch.logsumexp(values, dim=0)
        expected += log_likelihood(task.simulators[1], theta_o[None], x_o)[0]
        expected += math.log(len(prior))
        assert abs(found - expected) < 5 / effective.sqrt()


@pytest.mark.parametrize("kind", ["biased", "reversed", "half"])
def test_densities_are_those_of_the_conjugate_normal(kind):
    task = get_task(f"synthetic-{kind}")
    theta, x = task.simulate_high(20, seed=5)
    high = task.simulators[1]
    matrix, y = high.matrix.double(), unbent(high, x.double())
    precision = torch.eye(5).double() + matrix.T @ matrix / high.scale**2
    mean = torch.linalg.solve(precision, matrix.T @ y.T).T / high.scale**2
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    if not high.is_uniform:
        expected = posterior.log_prob(theta.double())
    else:
        phi = Normal(0.0, 1.0).icdf(theta.double())
        # the Jacobian of the quantile function is 1 / density
        log_density = Normal(0.0, 1.0).log_prob(phi).sum(dim=1)
        expected = posterior.log_prob(phi) - log_density
    assert torch.allclose(task.log_posterior(theta, x), expected, atol=1e-6)


@pytest.mark.parametrize("is_heavy", [False, True])
@pytest.mark.parametrize("is_uniform", [False, True])
def test_densities_integrate_to_one(is_uniform, is_heavy):
    matrix = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, 1.1]])
    options = {"is_uniform": is_uniform, "is_heavy": is_heavy}
    level = synthetic.LinearLevel(matrix, 0.5, bend=0.4, **options)
    low, high = (0.0, 1.0) if is_uniform else (-6.0, 6.0)
    cells = low + (high - low) * (torch.arange(80).double() + 0.5) / 80
    points = torch.cartesian_prod(cells, cells)
    for x in (torch.tensor([0.5, -0.2, 1.0]), torch.tensor([3.0, 3.0, -3.0])):
        density = level.log_posterior(points, x.expand(len(points), -1)).exp()
        total = density.mean().item() * (high - low) ** 2
        assert total == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["synthetic-grid", "validation-grid"])
def test_a_finer_grid_gives_the_same_density(name):
    task = get_task(name)
    theta, x = task.simulate_high(50, seed=5)
    solver = task.simulators[1]
    shape = tuple(round(1.5 * size) for size in solver.grid_shape)
    finer = synthetic_grid.replace(solver, grid_shape=shape)
    gap = task.log_posterior(theta, x) - finer.log_posterior(theta, x)
    assert gap.abs().max() < 0.01


class Exact:
    """The exact posterior of a linear kind with a normal prior and noise."""

    def __init__(self, level):
        matrix = level.matrix / level.scale
        self.precision = torch.eye(matrix.shape[1]) + matrix.T @ matrix
        self.weights = torch.linalg.solve(self.precision, matrix.T / level.scale)

    def _at(self, x):
        return MultivariateNormal(x @ self.weights.T, precision_matrix=self.precision)

    def sample(self, shape, x):
        return self._at(x).sample(shape)

    def log_prob(self, theta, x):
        return self._at(x).log_prob(theta)


def test_the_exact_posterior_has_no_excess_and_is_calibrated():
    task = get_task("validation-biased")
    found = task.evaluate(Exact(task.simulators[1]), torch.empty(0))
    names = ["nltp", "excess", "nltp_exact", "sbc", "coverage_50", "coverage_90"]
    assert list(found) == names and task.metric == "nltp"
    assert len(found["nltp"]) == 500 and max(map(abs, found["excess"])) < 1e-3
    assert max(found["sbc"]) < 1.63 / 200**0.5  # 1 % of calibrated posteriors
    assert found["coverage_50"][0] == pytest.approx(0.5, abs=0.12)
    assert found["coverage_90"][0] == pytest.approx(0.9, abs=0.07)


# ------------------------------------------------------------- deviations


HALF = pytest.mark.parametrize("half", synthetic.HALVES)


def levels(half, kind):
    """Both simulators, theta, noise, and outputs of both before g."""
    task = get_task(f"{half}-{kind}")
    theta, noise = draws(task)
    y = [unbent(each, each(theta, noise)) for each in task.simulators]
    return *task.simulators, theta, noise, *y


@HALF
@pytest.mark.parametrize("kind", ["biased", "heavy-both", "nearly-exact"])
def test_gains_and_offsets_are_wrong(half, kind):
    low, high, _, _, y_low, y_high = levels(half, kind)
    assert torch.allclose(y_low, low.gain * y_high + low.offset, atol=1e-4)
    assert (low.gain != 1).all() and (low.offset != 0).all()
    gap = (y_low - y_high).square().mean().sqrt() / high.scale
    assert gap < 0.2 if kind == "nearly-exact" else gap > 0.5


@HALF
def test_some_signs_are_reversed(half):
    *_, y_low, y_high = levels(half, "reversed")
    count = synthetic.HALVES[half].num_reversed
    assert torch.equal(y_low[:, :count], -y_high[:, :count])
    assert torch.equal(y_low[:, count:], y_high[:, count:])
    assert 0 < count < y_low.shape[1]


@HALF
def test_half_of_the_parameters_have_no_effect(half):
    low, high, theta, noise, *_ = levels(half, "half")
    for first, is_same in ((theta.shape[1] // 2, True), (0, False)):
        changed = theta.clone()
        changed[:, first:] = 0.9
        assert torch.equal(low(theta, noise), low(changed, noise)) == is_same
        assert not torch.equal(high(theta, noise), high(changed, noise))


@HALF
@pytest.mark.parametrize("kind", ["heavy", "heavy-both"])
def test_noise_is_heavy(half, kind):
    _, high, theta, _, y_low, y_high = levels(half, kind)
    y = y_low if kind == "heavy" else y_high
    residuals = (y - theta @ high.matrix.T) / high.scale
    values = [stats.kstest(column, stats.t(3).cdf).pvalue for column in residuals.T]
    assert min(values) > 0.01 / len(values)
    largest = (y_high - theta @ high.matrix.T).abs().max() / high.scale
    assert (largest > 6) == (kind == "heavy-both")


@HALF
def test_the_low_fidelity_has_squares(half):
    low, high, theta, noise, *_ = levels(half, "misleading")
    assert torch.equal(low(theta, noise), low(-theta, noise))
    assert not torch.equal(high(theta, noise), high(-theta, noise))


@HALF
def test_noise_is_three_times_as_large(half):
    _, high, theta, _, y_low, y_high = levels(half, "noisier")
    mean = theta @ high.matrix.T
    assert torch.allclose(y_low - mean, 3 * (y_high - mean), atol=1e-4)


@HALF
def test_the_coarse_grid_has_an_error_of_first_order(half):
    task = get_task(f"{half}-grid")
    theta, noise = draws(task)
    low, high = task.simulators
    gap = (low(theta, noise) - high(theta, noise)).abs().amax(dim=1) / high.scale
    assert gap.median() > 0.3
    theta, steps = theta.double(), high.num_steps
    one, two, four = (high.solution(theta, k * steps) for k in (1, 2, 4))
    ratio = (one - two).norm() / (two - four).norm()
    assert ratio.item() == pytest.approx(2, abs=0.3)


def test_solutions_are_those_in_closed_form():
    theta, t = torch.tensor([[0.3, -0.5, 0.4]]).double(), torch.arange(1, 9) / 2
    found = synthetic_grid.logistic(theta[:, :2], 8_000)[0].float()
    assert torch.allclose(found, 1 / (1 + 4 * torch.exp(-1.8 * t)), atol=1e-3)
    found = synthetic_grid.oscillator(theta, 8_000)[0].float()
    decay = 0.25 / 2  # half of the damping
    frequency = (1.65**2 - decay**2) ** 0.5
    waves = torch.cos(frequency * t), torch.sin(frequency * t) * decay / frequency
    assert torch.allclose(found, 1.2 * torch.exp(-decay * t) * sum(waves), atol=5e-3)


# ------------------------------------------------------------- a run


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("method", ["high", "hybrid"])
def test_a_run_has_the_metrics_of_the_task(method, monkeypatch):
    train, few = NPE.train, {"max_num_epochs": 2}
    monkeypatch.setattr(
        NPE, "train", lambda *args, **given: train(*args, **given | few)
    )
    name = "synthetic-misleading:paired=no"
    record = run_one(Run(name, method, (60, 20), seed=0))
    found = {key: value["mean"] for key, value in record["metrics"].items()}
    assert record["task"] == name and record["metric"] == "nltp"
    assert found["excess"] == pytest.approx(found["nltp"] - found["nltp_exact"])
    assert found["excess"] > 0 and {"sbc", "coverage_50", "coverage_90"} <= set(found)
