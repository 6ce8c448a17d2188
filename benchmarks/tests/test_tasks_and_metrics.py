"""Tasks and metrics against analytic results, and the command line."""

import numpy as np
import pytest
import torch
from sbi.inference import NPE, DirectPosterior, EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from scipy import integrate
from torch.distributions import MultivariateNormal

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import calibration, cost, demo
from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.methods import single
from sbi_multilevel_benchmarks.metrics import grid_kl, nlpd, summarize
from sbi_multilevel_benchmarks.records import over_seeds
from sbi_multilevel_benchmarks.registry import METHODS, get_task
from sbi_multilevel_benchmarks.run import check_method, fit
from sbi_multilevel_benchmarks.tasks import g_and_k_posterior, ou
from sbi_multilevel_benchmarks.tasks.camels import Camels
from sbi_multilevel_benchmarks.tasks.g_and_k import (
    GAndK,
    exact_log_prob,
    log_density,
    quantile,
)
from sbi_multilevel_benchmarks.tasks.toggle_switch import truncated_normal

EPOCHS = {"max_num_epochs": 5}
TASKS = ("camels", "camels-shuffled", "g-and-k", "g-and-k-useless")
TASKS += ("g-and-k-posterior", "toggle-switch", "ou", "ou-start", "ou-useless")
ESTIMATING = [m for m in METHODS if not hasattr(METHODS[m], "needs_observations")]
THETA = torch.tensor([1.0, 0.7, 1.5, 2.0], dtype=torch.float64)


# ------------------------------------------------------------- contract of tasks


@pytest.fixture
def spectra(tmp_path):
    """A file of random numbers with the format of the CAMELS data."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(0.6, 1.0, (60, 6)).astype(np.float32)
    low = theta[:, 1:2] + rng.normal(size=(60, 5))
    arrays = dict(theta=theta, x_low=low, x_high=1.1 * low + 0.1)
    names = np.array(["Omega_m", "sigma_8", "A", "B", "C", "D"])
    np.savez(tmp_path / "spectra.npz", theta_names=names, **arrays)
    return tmp_path / "spectra.npz"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name, spectra):
    task = get_task(name, spectra)
    counts = (30, 10, 6)[: len(task.num_simulations)]
    sims, again = task.simulate(counts, seed=1), task.simulate(counts, seed=1)
    assert sims.num_simulations == counts and len(task.costs) == len(counts)
    assert all(torch.equal(a.x, b.x) for a, b in zip(sims, again))
    assert torch.isfinite(task.prior.log_prob(sims[0].theta)).all()
    other = task.simulate(counts, seed=2)
    assert torch.equal(sims[0].x, other[0].x) == (name == "camels")
    assert sims[1].x_coarse is not None
    if name.endswith("useless"):
        more = task.simulate((2, 2_000), seed=1)[1]
        x_coarse, theta = more.x_coarse[:, 0], more.theta
        for column in (more.x[:, 0], *theta.T):
            assert abs(np.corrcoef(x_coarse, column)[0, 1]) < 4 / 2_000**0.5
        return
    correlation = np.corrcoef(sims[1].x.flatten(), sims[1].x_coarse.flatten())[0, 1]
    # level 0 of ou-start does not depend on the start
    assert correlation > (0.3 if name == "ou-start" else 0.5)
    theta, x = task.simulate_high(8, seed=1)
    assert x.shape[1:] == sims[0].x.shape[1:] and len(theta) == 8
    for level in range(len(counts)):
        same_theta, x_of_level = task.simulate_level(level, 8, seed=1)
        assert torch.equal(same_theta, theta)
        assert torch.equal(x_of_level, x) == (level == len(counts) - 1)
    network = task.build_network()(sims[0].theta, sims[0].x)
    if task.family == "npe":
        assert network.input_shape == sims[0].theta.shape[1:]
    else:
        assert network.input_shape == sims[0].x.shape[1:]


def test_unknown_tasks_and_missing_files_raise(monkeypatch, spectra):
    monkeypatch.delenv("SBI_MULTILEVEL_CAMELS", raising=False)
    with pytest.raises(ValueError, match="task must be one of"):
        get_task("gk")
    with pytest.raises(ValueError, match="--data FILE"):
        get_task("camels")
    with pytest.raises(ValueError, match="needs 70 simulations"):
        Camels(spectra).simulate((60, 10), 0)


# ------------------------------------------------------------- g-and-k


def test_g_and_k_density_is_the_derivative_of_its_distribution():
    z = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quantile(THETA, z).sum(), z)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = normal.log_prob(z.detach()) - slope.log()
    assert torch.allclose(log_density(THETA, z.detach()), expected, atol=1e-12)


def test_g_and_k_likelihood_integrates_to_one_and_inverts():
    def density(x):
        return exact_log_prob(THETA[None], torch.tensor([x])).exp().item()

    assert integrate.quad(density, -60, 400, limit=400)[0] == pytest.approx(1, abs=1e-3)
    z = torch.randn(50, dtype=torch.float64)
    densities = exact_log_prob(THETA[None], quantile(THETA, z))
    assert torch.allclose(densities[0], log_density(THETA, z), atol=1e-9)


class _ExactGAndK:
    """An estimator that is the exact density, times a factor."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def log_prob(self, x, theta):
        return exact_log_prob(theta, x.flatten()).T + self.shift


def test_kl_of_the_exact_density_and_of_a_scaled_one():
    task = GAndK()
    task.num_test, task.num_nodes = 2, 40
    exact = task.evaluate(_ExactGAndK(), torch.empty(0))
    assert np.allclose(exact["kl"], 0, atol=1e-3)
    assert np.allclose(exact["kl_grid"], 0, atol=1e-3)
    shifted = task.evaluate(_ExactGAndK(-0.3), torch.empty(0))
    assert np.allclose(shifted["kl"], 0.3, atol=1e-3)


def test_grid_kl_of_two_normals_is_known():
    x = torch.linspace(-15, 15, 5_000, dtype=torch.float64)
    normal, other = (torch.distributions.Normal(m, s) for m, s in ((0, 1), (1, 2)))
    expected = torch.distributions.kl_divergence(normal, other).item()
    value = grid_kl(normal.log_prob(x), other.log_prob(x))
    assert value == pytest.approx(expected, abs=1e-3)


def _exact_summaries(theta, octile):
    """Location, scale, skewness and kurtosis from octiles of a standard normal."""
    z = octile(torch.arange(1, 8, dtype=torch.float64) / 8)
    e = dict(enumerate(quantile(theta, z).tolist(), start=1))
    scale = e[6] - e[2]
    skewness, kurtosis = e[6] + e[2] - 2 * e[4], e[7] - e[5] + e[3] - e[1]
    return torch.tensor([e[4], scale, skewness / scale, kurtosis / scale])


def _cubic(u):
    v = 2 * u - 1
    return 2**0.5 * np.pi / 2 * (v + np.pi / 12 * v**3)


@pytest.mark.parametrize(
    ("simulator", "octile"),
    [
        (g_and_k_posterior.low_fidelity, _cubic),
        (g_and_k_posterior.high_fidelity, torch.special.ndtri),
    ],
)
def test_g_and_k_statistics_are_those_of_the_quantile_function(simulator, octile):
    thetas = torch.stack((THETA, torch.tensor([0.2, 2.0, 0.0, 1.7]))).double()
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    exact = torch.stack([_exact_summaries(theta, octile) for theta in thetas])
    found = simulator(thetas, u.expand(2, -1)).float()
    assert torch.allclose(found, exact, atol=1e-3)
    assert found[1, 2].abs() < 1e-3  # symmetric without g


def test_g_and_k_statistics_of_draws_are_near_those_of_the_distribution():
    generator = torch.Generator().manual_seed(0)
    noise = g_and_k_posterior.GAndKPosterior.noise(200, generator)
    assert noise.shape == (200, 1_000)
    x = g_and_k_posterior.high_fidelity(THETA.expand(200, -1), noise).float()
    exact = _exact_summaries(THETA, torch.special.ndtri)
    # of a median: 1 / (2 sqrt(m) p(x))
    density = log_density(THETA, torch.zeros((), dtype=torch.float64)).exp().item()
    error = 1 / (2 * 1_000**0.5 * density)
    assert x[:, 0].std().item() == pytest.approx(error, rel=0.2)
    # the bias of order 1 / m is far below the standard error of 200 simulations
    assert ((x.mean(dim=0) - exact).abs() < 4 * x.std(dim=0) / 200**0.5).all()


# ------------------------------------------------------------- other tasks


def test_ou_likelihood_is_that_of_the_gaussian_process():
    """The observed steps are jointly normal; mean and covariance by linear algebra."""
    theta = torch.tensor([[0.4, 1.2, 0.3]], dtype=torch.float64)
    gamma, mu, sigma = theta[0]
    decay = 1 - gamma * ou.STEP
    times = torch.tensor(ou.OBSERVED) + 1
    mean = mu + (ou.START - mu) * decay**times
    gap = (times[:, None] - times[None]).abs()
    shortest = torch.minimum(times[:, None], times[None])
    variance = sigma**2 * ou.STEP * (1 - decay ** (2 * shortest)) / (1 - decay**2)
    exact = MultivariateNormal(mean, variance * decay**gap)
    x = torch.randn(5, dtype=torch.float64) * 0.3 + 1
    value = ou.log_likelihood(theta, x)
    assert value.item() == pytest.approx(exact.log_prob(x).item(), abs=1e-8)


def test_ou_grid_posterior_recovers_theta_on_average():
    task = ou.OrnsteinUhlenbeck()
    theta, x = task.simulate_high(60, seed=0)
    draws = torch.stack([task.exact_posterior(row, 200, size=40) for row in x])
    ranks = (draws < theta[:, None]).float().mean(dim=1)
    # ranks of a calibrated posterior are uniform
    assert (ranks.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 60) ** 0.5


def test_ou_start_is_ou_at_its_start():
    theta = torch.tensor([[0.4, 1.2, 0.3], [0.9, 2.0, 0.5]])
    started = torch.cat((theta, torch.full((2, 1), ou.START)), dim=1)
    elsewhere = torch.cat((theta, torch.tensor([[0.5], [3.5]])), dim=1)
    noise = torch.randn(2, ou.NUM_STEPS)
    x = ou.process(theta, noise)
    assert torch.equal(ou.process(started, noise), x)
    # the start decays as the process without noise
    gap = (elsewhere[:, 3:] - ou.START) * (1 - ou.STEP * theta[:, :1]) ** (
        torch.tensor(ou.OBSERVED) + 1
    )
    assert torch.allclose(ou.process(elsewhere, noise) - x, gap, atol=1e-5)
    low = ou.stationary(theta, noise)
    assert torch.equal(ou.stationary(elsewhere, noise), low)
    values = ou.log_likelihood(theta, x[0])
    assert torch.equal(ou.log_likelihood(started, x[0]), values)


def test_ou_start_likelihood_is_that_by_hand():
    """One Euler step is normal; the other factors do not depend on the start."""
    theta = torch.tensor([[0.4, 1.2, 0.3, 2.0], [0.4, 1.2, 0.3, 3.5]]).double()
    x = torch.tensor([3.2, 2.9, 2.1, 1.3, 1.1], dtype=torch.float64)
    first, other = ou.log_likelihood(theta, x).tolist()
    means = [start + 0.4 * (1.2 - start) * 0.1 for start in (2.0, 3.5)]  # 1.968, 3.408
    deviations = [(3.2 - mean) ** 2 / (2 * 0.3**2 * 0.1) for mean in means]
    assert other - first == pytest.approx(deviations[0] - deviations[1])


def test_ou_start_posterior_recovers_theta_on_average():
    task = ou.StartedOrnsteinUhlenbeck()
    theta, x = task.simulate_high(20, seed=0)
    draws = torch.stack([task.exact_posterior(row, 100, size=24) for row in x])
    ranks = (draws < theta[:, None]).float().mean(dim=1)
    assert (ranks.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 20) ** 0.5
    assert (ranks.std(dim=0) - 12**-0.5).abs().max() < 0.12


def test_truncated_normal_has_the_scale_of_the_paper():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    far = truncated_normal(torch.tensor(50.0, dtype=torch.float64), 1.0, u)
    assert far.mean().item() == pytest.approx(50, abs=1e-3)
    assert far.std().item() == pytest.approx(2**-0.5, abs=1e-3)
    near = truncated_normal(torch.tensor(0.0, dtype=torch.float64), 1.0, u)
    assert near.min() >= 0
    assert near.mean().item() == pytest.approx(np.pi**-0.5, abs=1e-3)


def test_camels_tests_are_the_simulations_not_trained_on(spectra):
    task = Camels(spectra)
    seen = []

    class Recorder:
        def log_prob(self, theta, x):
            seen.append(x)
            return torch.zeros(theta.shape[:2])

        def sample(self, shape, x):
            return task.prior.sample((*shape, len(x)))

    sims = task.simulate((50, 10), seed=0)
    assert len(task.evaluate(Recorder(), sims[-1].x)["nlpd"]) == 50
    assert not (seen[0][:, None] == sims[-1].x[None]).all(-1).any()


# ------------------------------------------------------------- running


def _slow_if_variant(method):
    """Variants of the hybrid differ in a setting and train as many networks."""
    is_variant = method.startswith("hybrid-")
    return pytest.param(method, marks=pytest.mark.slow) if is_variant else method


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("method", map(_slow_if_variant, ESTIMATING))
def test_every_method_returns_an_estimator(method, monkeypatch):
    task = get_task("ou")
    monkeypatch.setattr(task, "paper_epochs", 2)
    monkeypatch.setattr(task, "oracle_size", 50)
    train = NPE.train
    monkeypatch.setattr(
        NPE, "train", lambda *args, **given: train(*args, **given | EPOCHS)
    )
    result = fit(method, task, (60, 20), seed=0)
    theta, x = task.simulate_high(5, seed=3)
    assert torch.isfinite(nlpd(result.evaluated, theta, x)).all()
    assert result.num_epochs > 0
    # of each level; both sides of pairs if both are used
    runs = {"high": (0, 20), "low": (60, 0), "oracle": (0, 50), "equal-cost": (0, 20)}
    runs |= {"high-ensemble": (0, 20), "equal-cost-0": (2080, 0)}
    runs["equal-cost-1"] = runs["equal-cost"]
    other = (60, 20) if method.startswith("mf") else (80, 20)
    assert result.runs == runs.get(method, other)


def test_equal_cost_has_the_numbers_of_the_paper(monkeypatch):
    """Of the toggle switch, Table 3 of Hikida et al. (2025)."""
    task = get_task("toggle-switch")
    levels = []
    for level, n in enumerate((10_000, 500, 100)):
        theta, x = torch.rand(n, 7), torch.rand(n, 1)
        x_coarse = torch.rand(n, 1) if level > 0 else None
        levels.append(LevelSimulations(level, theta, x, x_coarse))
    simulations = MultilevelSimulations(tuple(levels), task.costs)
    drawn = lambda level, n, seed: (torch.empty(n, 7), torch.empty(n, 1))
    monkeypatch.setattr(task, "simulate_level", drawn)
    count = lambda task, theta, x, level: (level, len(x))
    monkeypatch.setattr(single, "_train", count)
    methods = ("equal-cost-0", "equal-cost-1", "equal-cost")
    found = [METHODS[method](task, simulations, 0) for method in methods]
    assert found == [(0, 12_060), (1, 7_537), (2, 2_010)]


def test_a_level_that_the_task_does_not_have_raises(monkeypatch, spectra):
    monkeypatch.setitem(METHODS, "equal-cost-2", single.EqualCost(2))
    check_method("equal-cost-2", get_task("toggle-switch"))
    with pytest.raises(ValueError, match="level 2, but .* task='ou' is 1. Choose"):
        check_method("equal-cost-2", get_task("ou"))
    with pytest.raises(ValueError, match="num_simulations=70 of level 0 .* 60 of the"):
        Camels(spectra).simulate_level(0, 70, seed=0)


def test_the_command_line_writes_lines_and_prints_a_table(tmp_path, capsys, spectra):
    out = tmp_path / "deep" / "out.jsonl"
    options = ["--methods", "high", "ml", "--num-simulations", "40,10", "--seeds", "2"]
    given = ["camels", *options, "--data", str(spectra), "--out", str(out)]
    command_line.main(given)
    records = read_records(out)
    assert sorted((r["method"], r["seed"]) for r in records) == [
        (method, seed) for method in ("high", "ml") for seed in (0, 1)
    ]
    assert str(spectra) not in out.read_text()
    printed = capsys.readouterr().out
    means = [r["metrics"]["nlpd"]["mean"] for r in records if r["method"] == "ml"]
    assert f"| camels | 40 + 10 | ml | 2 | {over_seeds(means)}† |" in printed


def test_runs_with_the_same_seed_are_equal(tmp_path, spectra):
    values = []
    for name in ("a", "b"):
        options = [
            "camels",
            "--methods",
            "ml",
            "--num-simulations",
            "40,10",
            "--seeds",
            "1",
        ]
        out = tmp_path / f"{name}.jsonl"
        command_line.main([*options, "--data", str(spectra), "--out", str(out)])
        values.append(read_records(out)[0]["metrics"])
    assert values[0] == values[1]


def test_a_failure_record_has_no_path_of_the_data(tmp_path, spectra, monkeypatch):
    out = tmp_path / "out.jsonl"
    options = ["--methods", "high", "--num-simulations", "40,10", "--seeds", "1"]
    fit = "sbi_multilevel_benchmarks.run.fit"

    def fail(*given):
        raise OSError(f"{spectra} is gone")

    monkeypatch.setattr(fit, fail)
    with pytest.raises(SystemExit):
        command_line.main([
            "camels",
            *options,
            *("--data", str(spectra)),
            *("--out", str(out)),
        ])
    assert read_records(out)[0]["error"] == "OSError: FILE is gone"


class Gaussian:
    """q(theta | x) = N(x, scale**2) in each of the dimensions."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def log_prob(self, theta, x):
        return torch.distributions.Normal(x, self.scale).log_prob(theta).sum(dim=-1)

    def sample(self, shape, x):
        return x + self.scale * torch.randn(*shape, *x.shape)


def test_nlpd_is_normalized_within_the_prior():
    x = torch.tensor([[0.0, 0.0], [1.0, -0.5], [2.0, 0.0]])
    theta = torch.tensor([[0.5, 0.1], [-0.3, 0.9], [0.9, 0.0]])
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    normal = torch.distributions.Normal(x, 1.0)
    mass = (normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0))).prod(dim=1)
    num_samples = 20_000
    found = nlpd(Gaussian(), theta, x, prior, num_samples)
    raw = nlpd(Gaussian(), theta, x)
    assert torch.allclose(raw, -normal.log_prob(theta).sum(dim=1))
    standard_error = ((1 - mass) / mass / num_samples) ** 0.5
    assert ((found - raw - mass.log()).abs() < 4 * standard_error).all()
    assert (found < raw).all()


def test_nlpd_of_a_posterior_far_from_the_prior_is_finite():
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    theta, x = torch.zeros(1, 1), torch.full((1, 1), 30.0)
    gap = nlpd(Gaussian(), theta, x) - nlpd(Gaussian(), theta, x, prior, 100)
    assert gap.item() == pytest.approx(np.log(100), rel=1e-4)


@pytest.mark.parametrize("half_width", [2.0, 200.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_coverage_of_a_gaussian_posterior_is_known(scale, half_width):
    r"""In two dimensions :math:`1 - (1 - \alpha)^{s^2}`; the narrow prior truncates."""
    prior = BoxUniform(torch.full((2,), -half_width), torch.full((2,), half_width))
    theta = prior.sample((200,))
    x = theta + torch.randn(200, 2)
    found = calibration.calibration_of_network(Gaussian(scale), prior, theta, x)
    assert list(found) == ["coverage_50", "coverage_90"]
    for level, (value,) in zip((0.5, 0.9), found.values()):
        exact = 1 - (1 - level) ** scale**2
        if half_width > 100 or scale == 1:
            assert abs(value - exact) < 4 * (exact * (1 - exact) / 200) ** 0.5 + 0.005
        else:
            assert (value < level) == (scale < 1)


def test_coverage_without_samples_inside_the_prior_is_zero():
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    theta, x = torch.zeros(50, 1), torch.full((50, 1), 100.0)
    found = calibration.calibration_of_network(Gaussian(), prior, theta, x)
    assert found == {"coverage_50": [0.0], "coverage_90": [0.0]}


def test_coverage_of_a_posterior_and_of_its_ensemble_is_that_of_the_network():
    prior = BoxUniform(torch.full((2,), -20.0), torch.full((2,), 20.0))
    theta = torch.randn(60, 2)
    x = theta + torch.randn(60, 2)
    network = posterior_nn("maf")(theta, x).eval()  # not trained
    posterior = DirectPosterior(network, prior)
    ensemble = EnsemblePosterior([posterior, DirectPosterior(network, prior)])
    wanted = calibration.calibration_of_network(network, prior, theta, x)
    for each in (posterior, ensemble):
        found = calibration.calibration(each, theta, x)
        assert list(found) == ["sbc", "atc", "coverage_50", "coverage_90"]
        for name, (value,) in wanted.items():  # of other samples
            assert found[name][0] == pytest.approx(value, abs=0.1)


def test_summaries_are_mean_and_median():
    assert summarize([1.0, 2.0, 9.0]) == {"mean": 4.0, "median": 2.0}


def test_the_table_of_step_costs_ends_with_ratios():
    table = cost.step_costs(batch_sizes=(50,), models=("maf",))
    ratio = float(table.rows[-1][-1])
    assert 0 < ratio < 50


@pytest.mark.slow
def test_the_demo_prints_a_table_and_draws_a_figure(tmp_path, capsys):
    demo.main(["--out", str(tmp_path / "new" / "demo.png")])
    assert (tmp_path / "new" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert all(label in printed for label in demo.LABELS.values())


# ------------------------------------------------------------- real data


@pytest.mark.slow
def test_real_spectra_multilevel_beats_the_pairs_alone(camels_file):
    """980 N-body spectra and 20 pairs, against 20 high-fidelity spectra; 3 seeds."""
    task = Camels(camels_file, shuffle=True)
    errors = {"high": [], "ml": []}
    for seed in range(3):
        for method, values in errors.items():
            result = fit(method, task, (980, 20), seed)
            task_errors = task.evaluate(result.evaluated, result.trained_on)
            values.append(summarize(task_errors["nlpd"])["mean"])
    gap = np.array(errors["ml"]) - np.array(errors["high"])
    standard_error = gap.std(ddof=1) / len(gap) ** 0.5
    assert gap.mean() < 2 * standard_error
