"""Tasks that evaluate posteriors, and their exact posteriors."""

import importlib.util
import os
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.distributions import MultivariateNormal, Normal

from sbi_multilevel_benchmarks.metrics import nltp, nrmse
from sbi_multilevel_benchmarks.posterior_task import sample_density
from sbi_multilevel_benchmarks.registry import TASKS, get_task
from sbi_multilevel_benchmarks.tasks import blob, sbibm
from sbi_multilevel_benchmarks.tasks import ou_transfer as ou

DENSITY_TASKS = ("camels", "g-and-k", "toggle-switch", "ou", "ou-useless")
DENSITY_TASKS += ("camels-shuffled", "g-and-k-useless")
DENSITY_TASKS += ("g-and-k-posterior", "ou-start", "drift-diffusion")
# of test_plasticity.py and test_matter_power.py, whose simulators are slow, and of
# test_synthetic.py
OTHERS = ("plasticity", "matter-power", "synthetic-", "validation-")
POSTERIOR_TASKS = [
    name for name in TASKS if name not in DENSITY_TASKS and not name.startswith(OTHERS)
]
UNKNOWN = ("blob", "l5pc", "lotka-volterra")  # posteriors
EXACT = [name for name in POSTERIOR_TASKS if name not in UNKNOWN]
UNPAIRED = ("ou2-published", "ou-reverse")
# level 0 of some tasks is very different from level 1
UNLIKE = pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")


@pytest.fixture(autouse=True)
def seed():
    """Tests are seeded."""
    torch.manual_seed(0)


@pytest.fixture
def task(request):
    """A task with two observations and few samples; skipped without its files."""
    name = request.param
    if name in ("slcp", "sir") and importlib.util.find_spec("sbibm") is None:
        pytest.skip("sbibm is not installed")
    if name == "l5pc" and importlib.util.find_spec("jaxley") is None:
        pytest.skip("jaxley is not installed")
    if name == "ou2-published" and not os.environ.get(ou.DATA_VARIABLE):
        pytest.skip(f"{ou.DATA_VARIABLE} is not set")
    built = get_task(name)
    built.num_samples = 300
    built.observations = built.observations[:2]
    built.true_theta = built.true_theta[:2]
    return built


class Stub:
    """A posterior that returns given samples of each observation in turn."""

    def __init__(self, samples):
        self._samples = iter(samples)

    def sample(self, sample_shape, x, show_progress_bars=True):
        return next(self._samples)[: sample_shape[0]]


# ------------------------------------------------------------- contract of tasks


@UNLIKE
@pytest.mark.parametrize("task", POSTERIOR_TASKS, indirect=True)
def test_posterior_tasks_keep_the_contract(task):
    counts = (1_000, 50) if task.name == "ou2-published" else (30, 10)
    sims, again = (task.simulate(counts, seed=1) for _ in range(2))
    assert sims.num_simulations == counts and len(task.costs) == 2
    for level, same in zip(sims, again):
        assert torch.equal(level.x, same.x) and torch.equal(level.theta, same.theta)
        assert torch.isfinite(level.x).all()
        assert torch.isfinite(task.prior.log_prob(level.theta)).all()
        assert level.x.shape[1:] == task.observations.shape[1:]
    other = task.simulate(counts, seed=2)
    assert torch.equal(sims[0].x, other[0].x) == (task.name == "ou2-published")
    assert (sims[1].x_coarse is None) == (task.name in UNPAIRED)
    assert torch.isfinite(task.prior.log_prob(task.true_theta)).all()
    theta, x = task.simulate_high(8, seed=1)
    assert x.shape == (8, *task.observations.shape[1:]) and len(theta) == 8
    theta, x = task.simulate_level(0, 8, seed=1)
    assert x.shape == (8, *task.observations.shape[1:])
    assert theta.shape == (8, *task.true_theta.shape[1:])


@UNLIKE
@pytest.mark.parametrize("task", POSTERIOR_TASKS, indirect=True)
def test_the_network_stays_inside_the_prior(task):
    counts = (1_000, 50) if task.name == "ou2-published" else (100, 10)
    rows = task.simulate(counts, seed=1)[0]
    with warnings.catch_warnings():  # of sbi, on counts that are all 0
        warnings.simplefilter("ignore", UserWarning)
        network = task.build_network()(rows.theta[:100], rows.x[:100])
    network.loss(rows.theta[:20], rows.x[:20]).mean().backward()
    samples = network.sample((200,), task.observations[:1])[:, 0]
    assert torch.isfinite(task.prior.log_prob(samples)).all()


@pytest.mark.parametrize("task", EXACT, indirect=True)
@pytest.mark.slow
def test_metrics_of_the_exact_posterior_are_better_than_those_of_the_prior(task):
    exact = [task.reference(i) for i in range(2)]
    assert all(torch.isfinite(task.prior.log_prob(rows)).all() for rows in exact)
    if hasattr(task, "exact_posterior"):  # other samples than the reference
        fresh = [task.exact_posterior(x, 300, seed=5) for x in task.observations]
    else:
        fresh = [rows[-300:] for rows in exact]
    good = task.evaluate(Stub(fresh), torch.empty(0))
    bad = task.evaluate(Stub([task.prior.sample((300,))] * 2), torch.empty(0))
    assert list(good) == ["c2st", "mmd", "nrmse"]
    assert all(len(values) == 2 for values in good.values())
    assert max(good["c2st"]) < 0.58 and min(bad["c2st"]) > 0.65
    assert max(good["mmd"]) < min(bad["mmd"])
    assert np.isfinite(good["nrmse"]).all()


def test_a_blob_is_evaluated_by_its_true_parameters():
    task = get_task("blob")
    task.num_samples = 50

    class Prior:
        def sample(self, sample_shape, x, show_progress_bars=True):
            return task.prior.sample(sample_shape)

        def log_prob(self, theta, x):
            return task.prior.log_prob(theta)

    errors = task.evaluate(Prior(), torch.empty(0))
    assert list(errors) == ["nltp", "nrmse"] and len(errors["nrmse"]) == 100
    # two independent draws of a uniform are 1 / sqrt(6) apart in the mean square
    assert np.mean(errors["nrmse"]) == pytest.approx(6**-0.5, abs=0.03)
    assert np.allclose(errors["nltp"], np.log(256 * 256 * 1.8))
    with pytest.raises(TypeError, match="not known"):
        task.reference(0)


def test_tasks_raise_on_invalid_arguments(monkeypatch, tmp_path):
    monkeypatch.delenv(ou.DATA_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="--data FILE"):
        get_task("ou2-published")
    with pytest.raises(ValueError, match="2, 3 or 4"):
        ou.OUTransfer(5)
    with pytest.raises(ValueError, match="sigma must stay positive"):
        ou.OUPerturbed(-1.0)
    with pytest.raises(ValueError, match="8 to 256"):
        blob.GaussianBlob(size=300)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sbibm._folder.cache_clear()
    with pytest.raises(ValueError, match="pip install --no-deps sbibm==1.1.0"):
        sbibm.read_table("slcp", 0, "no-such-file")


# ------------------------------------------------------------- metrics


def test_nrmse_depends_on_the_spread_and_the_range():
    truth = torch.tensor([[0.0, 0.0], [2.0, 10.0]])
    off = truth.unsqueeze(1) + torch.tensor([1.0, 5.0])
    assert torch.allclose(nrmse(off.expand(-1, 7, -1), truth), torch.full((2,), 0.5))
    spread = truth.unsqueeze(1) + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.allclose(nrmse(spread, truth), torch.full((2,), 0.25))
    with pytest.raises(ValueError, match="at least 2"):
        nrmse(off[:1], truth[:1])


def test_nltp_evaluates_one_observation_at_a_time():
    class Posterior:
        def log_prob(self, theta, x, norm_posterior=True):
            assert theta.shape == (1, 2) and x.shape == (1, 3) and not norm_posterior
            return Normal(x[:, :2], 1.0).log_prob(theta).sum(dim=1)

    theta, x = torch.randn(4, 2), torch.randn(4, 3)
    expected = -Normal(x[:, :2], 1.0).log_prob(theta).sum(dim=1)
    assert torch.allclose(nltp(Posterior(), theta, x), expected)


# ------------------------------------------------------------- Ornstein-Uhlenbeck


@pytest.mark.parametrize("num_parameters", [2, 3, 4])
def test_ou_likelihood_is_that_of_the_simulator(num_parameters):
    """The simulator is linear in its noise: its mean and covariance are exact."""
    task = ou.OUTransfer(num_parameters)
    theta = task.prior.sample((1,)).double()
    zero = torch.zeros(1, ou.NUM_STEPS + 1, dtype=torch.float64)
    mean = ou.process(theta, zero)[0]
    units = torch.eye(ou.NUM_STEPS + 1, dtype=torch.float64)
    factor = ou.process(theta.expand(len(units), -1), units) - mean
    exact = MultivariateNormal(mean, factor.T @ factor)
    x = mean + 0.1 * torch.randn(10, dtype=torch.float64)
    value = ou.process_log_likelihood(theta, x)
    assert value.item() == pytest.approx(exact.log_prob(x).item(), abs=1e-7)


def test_independent_draws_have_their_moments():
    theta = torch.tensor([[1.5, 0.4, 0.9]]).expand(20_000, -1)
    noise = ou.OUTransfer.noise(20_000, torch.Generator().manual_seed(0))
    x = ou.independent(theta, noise)
    assert torch.allclose(x.mean(dim=0), torch.full((10,), 1.5), atol=0.02)
    assert torch.allclose(torch.cov(x.T), 0.16 * torch.eye(10), atol=0.01)
    assert torch.equal(x, ou.independent(theta[:, :2], noise))
    single = ou.independent_log_likelihood(theta[:1], x[0])
    assert single.item() == pytest.approx(Normal(1.5, 0.4).log_prob(x[0]).sum().item())


def test_perturbed_levels_share_their_noise():
    theta, noise = torch.tensor([[1.0, 0.3]]), torch.randn(1, ou.NUM_STEPS + 1)
    low, high = ou.OUPerturbed(0.0).simulators
    assert torch.equal(low(theta, noise), high(theta, noise))
    low, _ = ou.OUPerturbed(0.2, reversed_order=True).simulators
    shifted = ou.process(theta + torch.tensor([0.0, 0.2]), noise)
    assert torch.equal(low(theta, noise).flip(1), shifted)


@UNLIKE
def test_simulations_of_a_useless_level_have_the_moments_of_the_process():
    task = ou.OUUseless()
    rows = task.simulate((2, 4_000), seed=0)[1]
    for moment, atol in ((torch.mean, 0.1), (torch.std, 0.1)):
        low, high = moment(rows.x_coarse, dim=0), moment(rows.x, dim=0)
        assert torch.allclose(low, high, atol=atol)
    both = torch.cat((rows.theta, rows.x, rows.x_coarse), dim=1)
    cross = torch.corrcoef(both.T)[:12, 12:]
    assert cross.abs().max() < 5 / 4_000**0.5


def test_reverse_levels_have_their_own_parameters():
    task = ou.OUReverse()
    low, high = task.simulate_levels((20, 10), seed=0)
    assert low.theta.shape == (20, 3) and high.theta.shape == (10, 2)
    assert torch.equal(task.simulate((20, 10), seed=0)[0].theta, low.theta[:, :2])


@pytest.mark.parametrize("task", ["ou2", "ou3", "ou4", "ou-reverse"], indirect=True)
def test_exact_posteriors_agree_with_importance_weights(task):
    x = task.observations[0]
    samples = task.exact_posterior(x, 4_000)
    draws = task.prior.sample((1_000_000,))
    weights = torch.softmax(task.log_likelihood(draws.double(), x.double()), dim=0)
    effective = 1 / weights.square().sum()
    assert effective > 300
    mean = (weights[:, None] * draws).sum(dim=0)
    square = (weights[:, None] * (draws - mean) ** 2).sum(dim=0)
    error = (square * (1 / effective + 1 / 4_000)).sqrt()
    assert ((samples.mean(dim=0) - mean).abs() < 4 * error).all()
    # the spread of a spread estimate is at most about as large as that of a mean
    assert ((samples.std(dim=0) - square.sqrt()).abs() < 6 * error).all()


def test_a_grid_that_is_too_coarse_raises():
    def spikes(points):
        return 1e5 * torch.cos(1_000 * points[:, 0])

    with pytest.raises(ValueError, match="Raise size"):
        sample_density(spikes, torch.zeros(1), torch.ones(1), 100, size=5)


@pytest.mark.parametrize("task", ["ou2-published"], indirect=True)
def test_published_simulations_have_published_numbers_only(task):
    sims = task.simulate((10_000, 100), seed=0)
    assert sims.num_simulations == (10_000, 100)
    with pytest.raises(ValueError, match=r"\[50, 100, 1000\]"):
        task.simulate((10_000, 60), seed=0)


@pytest.mark.parametrize("task", ["ou2-published"], indirect=True)
def test_published_posteriors_have_another_offset_than_simulations(task):
    task = ou.OUPublished()
    rows = task.simulate((1_000, 1_000), seed=0)[1]
    assert (rows.x[:, 0] - rows.theta[:, 0]).mean().item() == pytest.approx(
        3.0, abs=0.1
    )

    def of_offset(offset, x_o):
        """Posterior mean of mu in the likelihood of the reference code."""

        def log_likelihood(theta):
            mu, sigma = theta.unbind(dim=1)
            scale = sigma * (1 - np.exp(-1.0)) ** 0.5
            total = Normal(mu + offset, 1.0).log_prob(x_o[0])
            for before, value in zip(x_o[:-1], x_o[1:]):
                mean = mu + (before - mu) * np.exp(-0.5)
                total = total + Normal(mean, scale).log_prob(value)
            return total

        low, high = torch.tensor(ou.LOW[:2]), torch.tensor(ou.HIGH[:2])
        return sample_density(log_likelihood, low, high, 2_000, 150)[:, 0].mean()

    gaps = {2.0: [], 3.0: []}
    for i, x_o in enumerate(task.observations):
        published = task.reference(i)[:, 0]
        for offset, values in gaps.items():
            gap = published.mean() - of_offset(offset, x_o.double())
            values.append((gap / published.std()).item())
    assert abs(np.mean(gaps[2.0])) < 0.05 and np.mean(gaps[3.0]) > 0.15


# ------------------------------------------------------------- SLCP and SIR


def test_slcp_likelihood_is_multivariate_normal():
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor([[0.5, -1.0, 1.2, -0.8, 0.9]], dtype=torch.float64)
    noise = sbibm.SLCP.noise(20_000, generator).double()
    scales = theta[0, 2:4] ** 2
    off = torch.tanh(theta[0, 4]) * scales.prod()
    eye = torch.eye(2, dtype=torch.float64)
    covariance = torch.diag(scales**2 + 1e-6) + off * (1 - eye)
    exact = MultivariateNormal(theta[0, :2], covariance)
    x = sbibm.points(theta, noise[:1])[0]
    value = sbibm.slcp_log_likelihood(theta, x)
    assert value.item() == pytest.approx(exact.log_prob(x.reshape(4, 2)).sum().item())
    many = sbibm.centered_points(theta.expand(20_000, -1), noise).reshape(-1, 2)
    ratio = torch.cov(many.T) / covariance
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=0.05)
    shift = sbibm.points(theta, noise[:1]) - sbibm.centered_points(theta, noise[:1])
    assert torch.allclose(shift, theta[:, :2].repeat(1, 4))


def test_sir_solution_is_that_of_scipy():
    theta = torch.cat((sbibm.SIR.prior.sample((5,)), torch.tensor([[1.6, 0.1]])))
    values = sbibm.infected(theta, sbibm.DAYS_LOW[:6])

    for (rate, recovery), row in zip(theta.double().tolist(), values):

        def slope(t, y, rate=rate, recovery=recovery):
            new = rate * y[0] * y[1]
            return [-new, new - recovery * y[1]]

        days, start = sbibm.DAYS_LOW[:6], [1 - 1e-6, 1e-6]
        options = dict(t_eval=days, rtol=1e-10, atol=1e-14)
        exact = solve_ivp(slope, (0, 160), start, **options).y[1]
        assert np.allclose(row, exact, atol=1e-4)


def test_sir_counts_are_binomial():
    theta = torch.tensor([[0.4, 0.125]]).expand(5_000, -1)
    noise = sbibm.SIR.noise(5_000, torch.Generator().manual_seed(0))
    noise[0] = 0.0
    x, low = sbibm.counts(theta, noise), sbibm.sparse_counts(theta, noise)
    p = sbibm.infected(theta[:1], sbibm.DAYS_HIGH)[0]
    error = (1_000 * p * (1 - p) / 5_000).sqrt()
    assert ((x.mean(dim=0) - 1_000 * p).abs() < 4.5 * error).all()
    assert x.min() >= 0 and low.min() >= 0
    # day 160 five times, each with its own draw
    assert (low[:, 5] != low[:, 9]).any()
    assert low[:, 5:].mean(dim=0).std() < 1


@pytest.mark.parametrize("task", ["slcp", "sir"], indirect=True)
def test_reference_samples_are_likelier_than_the_prior(task):
    likelihoods = {"slcp": sbibm.slcp_log_likelihood, "sir": sbibm.sir_log_likelihood}
    log_likelihood = likelihoods[task.name]
    for i, x in enumerate(task.observations):
        exact = log_likelihood(task.reference(i)[:200], x)
        drawn = log_likelihood(task.prior.sample((200,)), x)
        assert exact.median() > torch.quantile(drawn, 0.98)


@pytest.mark.parametrize("task", ["sir"], indirect=True)
def test_sir_references_agree_with_importance_weights(task):
    samples, x = task.reference(0).double(), task.observations[0]
    # proposals around the samples, so that enough of them count
    centre, spread = samples.log().mean(dim=0), 1.5 * samples.log().T.cov()
    proposal = MultivariateNormal(centre, spread)
    logs = proposal.sample((20_000,))
    prior = Normal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2]))
    log_weights = sbibm.sir_log_likelihood(logs.exp(), x) - proposal.log_prob(logs)
    weights = torch.softmax(log_weights + prior.log_prob(logs).sum(dim=1), dim=0)
    assert 1 / weights.square().sum() > 5_000
    mean = (weights[:, None] * logs.exp()).sum(dim=0)
    error = samples.std(dim=0) * (1 / 5_000 + 1 / len(samples)) ** 0.5
    assert ((mean - samples.mean(dim=0)).abs() < 5 * error).all()


# ------------------------------------------------------------- blobs


def test_blobs_of_both_levels_lie_at_the_same_place():
    task = blob.GaussianBlob()
    theta = torch.tensor([[60.0, 180.0, 1.5]]).expand(40, -1)
    noise = task.noise(40, torch.Generator().manual_seed(0))
    pixels = torch.arange(32) + 0.5
    for simulator in task.simulators:
        dark = (0.9 - simulator(theta, noise)).mean(dim=0).clamp_min(0.1) - 0.1
        x = (dark.sum(dim=0) * pixels).sum() / dark.sum()
        y = (dark.sum(dim=1) * pixels).sum() / dark.sum()
        # pixel 60 of 256 has its middle at 60.5 / 8
        assert x.item() == pytest.approx(60.5 / 8, abs=0.35)
        assert y.item() == pytest.approx(180.5 / 8, abs=0.35)


def test_blob_pixels_are_binomial():
    task = blob.GaussianBlob(size=256)
    theta = torch.tensor([[0.0, 0.0, 2.0]])
    noise = task.noise(1, torch.Generator().manual_seed(0))
    image = task.large(theta, noise)[0, 128:, 128:]
    assert image.mean().item() == pytest.approx(0.9, abs=0.001)
    assert image.std().item() == pytest.approx((0.09 / 255) ** 0.5, rel=0.03)
    assert task.small(theta, noise).shape == (1, 256, 256)
    rows = torch.cat([theta, theta + 3]), task.noise(2, torch.Generator())
    alone = task.large(rows[0][1:], tuple(part[1:] for part in rows[1]))
    assert torch.equal(task.large(*rows)[1:], alone)
