"""Mutual information against closed forms, and what is made of it."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from torch.distributions import MultivariateNormal

from sbi_multilevel.diagnostics import (
    Information,
    information,
    informational_r2,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics import critic as critics
from sbi_multilevel.diagnostics.critic import Critic, contributions, train_critic
from sbi_multilevel.diagnostics.information import differential_entropy


def normals(rho, n, d, seed=0):
    """d normal pairs of correlation rho, each."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def exact_normal(rho, d=1):
    return -d / 2 * math.log(1 - rho**2)


@pytest.fixture
def short(monkeypatch):
    """The critic learns little beyond its start, which does for normal rows."""
    monkeypatch.setattr(critics, "_MOST_STEPS", 20)


# --- the estimate -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "d", "n"),
    ((0.5, 1, 1_000), (0.9, 1, 1_500), (-0.8, 1, 1_500), (0.6, 4, 1_500)),
)
def test_correlated_normals(rho, d, n):
    found = mutual_information(*normals(rho, n, d))
    assert abs(found.nats - exact_normal(rho, d)) < 4 * found.error
    assert 0 < found.error < 0.1 and (found.num_rows, found.dim) == (n, d)
    assert found.share == pytest.approx(rho**2, abs=0.1)


def test_a_lower_bound_where_rows_are_few():
    for seed in range(2):
        found = mutual_information(*normals(0.9, 100, 4, seed), seed=seed)
        exact = exact_normal(0.9, 4)
        assert 0.5 * exact < found.nats < exact + 4 * found.error


@pytest.mark.parametrize(("d", "n"), ((1, 100), (4, 1_000), (10, 100)))
def test_independence(d, n):
    found = mutual_information(*normals(0.0, n, d))
    assert abs(found.nats) <= 4 * found.error + 0.02
    assert found.share < 0.05


def test_rows_that_were_trained_on_would_claim_much():
    """What the held-out folds are for."""
    x, y = normals(0.0, 60, 10)
    torch.manual_seed(0)
    critic = Critic(x, y)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    average = None
    for _ in range(100):
        average = critics._epoch(critic, (x, y), optimizer, average)
    with torch.no_grad():
        seen = contributions(critic(x, y)).mean()
    assert seen > 1
    assert mutual_information(x, y).nats < 0.1


def test_no_row_is_judged_by_a_critic_that_has_seen_it(monkeypatch):
    seen = []

    def memory(x, y):
        """Is sure of the pairs it has seen, and indifferent to all others."""
        seen.append(len(x))

        def critic(a, b):
            knows_x = (a[:, None] == x).all(dim=2).float()
            knows_y = (b[:, None] == y).all(dim=2).float()
            return 5 * knows_x @ knows_y.T

        return critic

    monkeypatch.setattr(information, "train_critic", memory)
    found = mutual_information(*normals(0.9, 50, 2), num_folds=5)
    assert found.nats == pytest.approx(0.0, abs=1e-6) and seen == [40] * 5


def mirrored(n, scale=0.3, seed=0):
    """y follows x or -x by chance: no correlation, and much information."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, 1, generator=generator)
    sign = 2 * torch.randint(2, (n, 1), generator=generator) - 1
    return x, sign * x + scale * noise


def exact_mirrored(scale=0.3):
    """On a grid: y is normal, and a mixture of two normals given x."""
    x, y = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(-7, 7, 1_121))
    density = (norm.pdf(y, x, scale) + norm.pdf(y, -x, scale)) / 2 + 1e-300
    ratio = np.log(density) - norm.logpdf(y, 0, math.hypot(1, scale))
    return (norm.pdf(x) * density * ratio).sum() / 80**2  # nodes 1 / 80 apart


def test_dependence_without_correlation():
    """The network finds what the normal part of the critic cannot."""
    x, y = mirrored(1_000)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.1
    found, exact = mutual_information(x, y), exact_mirrored()
    assert 0.8 * exact < found.nats < exact + 4 * found.error


def test_maps_of_single_features_change_nothing(short):
    x, y = normals(0.8, 80, 2)
    found = mutual_information(x, y)
    assert mutual_information(x.exp(), 5 + y**3) == found
    assert found.nats > 4 * found.error


def test_features_that_are_constant_tell_nothing(short):
    x, y = normals(0.8, 60, 1)
    with_constant = torch.cat([x, torch.ones(60, 1)], dim=1)
    assert mutual_information(with_constant, y) == mutual_information(x, y)
    assert mutual_information(torch.cat([x, x + y], dim=1), y).dim == 1
    assert mutual_information(torch.ones(60, 1), y).nats == 0


def test_seeds_decide_and_nothing_leaks(short):
    x, y = normals(0.8, 40, 2)
    state = torch.random.get_rng_state()
    assert mutual_information(x, y, seed=1) == mutual_information(x, y, seed=1)
    assert mutual_information(x, y, seed=1) != mutual_information(x, y, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    (
        (torch.randn(30), torch.randn(30, 1), {}, r"must have shapes \(n, d_x\)"),
        (torch.randn(30, 1), torch.randn(31, 1), {}, r"\(30, 1\) and \(31, 1\)"),
        (torch.randn(19, 1), torch.randn(19, 1), {}, "x has 19 rows, too few"),
        (torch.randn(30, 1), torch.full((30, 1), torch.nan), {}, "holds NaN or inf"),
        (torch.randn(30, 1), torch.randn(30, 1), {"num_folds": 1}, "num_folds=1 must"),
        (torch.randn(30, 1), torch.randn(30, 1), {"num_folds": 8}, "num_folds=8 must"),
    ),
)
def test_bad_arguments(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(x, y, **options)


# --- the critic ---------------------------------------------------------------------


def test_the_bound_by_hand():
    log2 = math.log(2)
    table = torch.tensor([[log2, 0.0], [math.log(3), 2 * log2]])
    # mean of log 2 and log 4, minus log of the mean of 1 and 3
    values = contributions(table)
    assert values.mean().item() == pytest.approx(1.5 * log2 - log2)
    # row 0 is in 1 and 3 of a mean of 2, as is row 1
    assert values.tolist() == pytest.approx([0.0, log2], abs=1e-6)


def test_a_constant_critic_bounds_by_zero():
    assert contributions(torch.full((5, 5), 3.0)).tolist() == pytest.approx([0.0] * 5)


def test_contributions_give_the_error_of_the_bound():
    """Their spread is that of the bound over data sets, at a fixed critic."""
    rho, n = 0.6, 200

    def table(seed):
        x, y = normals(rho, n, 1, seed)
        # the exact log ratio, up to a constant
        return (rho * x @ y.T - rho**2 / 2 * (x**2 + y.T**2)) / (1 - rho**2)

    found = [contributions(table(seed)) for seed in range(200)]
    spread = np.std([float(values.mean()) for values in found], ddof=1)
    claimed = np.mean([float(values.std() / math.sqrt(n)) for values in found])
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(400))
    assert np.mean([float(v.mean()) for v in found]) == pytest.approx(
        exact_normal(rho), abs=4 * spread / math.sqrt(200)
    )


def test_it_starts_as_the_ratio_of_normal_densities():
    x, y = normals(0.7, 300, 3)
    y = y[:, :2] + 0.3 * x[:, 1:]
    covariance = LedoitWolf().fit(torch.cat([x, y], 1).numpy()).covariance_
    covariance = torch.from_numpy(covariance).float()
    parts = (slice(None), slice(3), slice(3, None))
    joint, of_x, of_y = (
        MultivariateNormal(torch.zeros(len(c)), c)
        for c in (covariance[part, part] for part in parts)
    )
    exact = joint.log_prob(torch.cat([x, y], 1)) - of_x.log_prob(x) - of_y.log_prob(y)
    with torch.no_grad():
        start = Critic(x, y)(x, y).diagonal()
    assert torch.allclose(start - start[0], exact - exact[0], atol=1e-3)


def test_all_pairs_at_once_are_each_pair_alone():
    x, y = normals(0.7, 50, 3)
    torch.manual_seed(0)
    critic = train_critic(x, y)
    with torch.no_grad():
        table = critic(x, y)
        assert torch.allclose(table[4, 7], critic(x[4:5], y[7:8])[0, 0], atol=1e-5)


def gradient_of(value, critic):
    return torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)


@pytest.mark.parametrize("factor", (None, 1.0, 4.0))
def test_the_moving_average_corrects_the_gradient(factor):
    """One step of gradient descent, beside the gradient by hand."""
    x, y = normals(0.7, 40, 2)
    torch.manual_seed(0)
    critic = Critic(x, y)
    with torch.no_grad():  # off the start, where some gradients vanish
        for parameter in critic.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    table = critic(x, y)
    mean = critics.off_diagonal(table).exp().mean()
    average = None if factor is None else factor * mean.detach()
    # where there was none, it is the mean itself: the gradient of the bound
    weight = 0.99 * (factor or 1.0) + 0.01
    expected = gradient_of(
        table.diagonal().mean() - mean / (weight * mean.detach()), critic
    )
    if factor is None:
        bound = gradient_of(contributions(critic(x, y)).mean(), critic)
        for one, two in zip(expected, bound):
            assert torch.allclose(one, two, atol=1e-5)
    before = copy.deepcopy(list(critic.parameters()))
    optimizer = torch.optim.SGD(critic.parameters(), 1e-2)
    torch.manual_seed(1)
    average = critics._epoch(critic, (x, y), optimizer, average)
    assert average.item() == pytest.approx(weight * mean.item(), rel=1e-5)
    for old, new, step in zip(before, critic.parameters(), expected):
        assert torch.allclose(new - old, 1e-2 * step, atol=1e-6)


def test_a_critic_that_does_harm_is_none():
    """Beside 20 rows of noise in 12 features the bound of T = 0 is better."""
    torch.manual_seed(0)
    critic = train_critic(*normals(0.0, 25, 12))
    with torch.no_grad():
        assert (critic(*normals(0.5, 9, 12)) == 0).all()


def test_critics_are_cut_off():
    x, y = normals(0.99, 60, 4)
    torch.manual_seed(0)
    critic = train_critic(x, y)
    with torch.no_grad():
        far = critic(10 * x, 10 * y)
        assert far.max() == critic.ceiling
        assert critic(x[:12], y[:12]).max() <= critic.ceiling


# --- what is made of it -------------------------------------------------------------


@pytest.mark.parametrize("rho", (0.0, 0.3, -0.9, 0.999))
@pytest.mark.parametrize("d", (1, 5))
def test_equal_canonical_correlations_give_their_square(rho, d):
    assert informational_r2(exact_normal(rho, d), d) == pytest.approx(rho**2)


def test_the_share_of_the_entropy_power():
    """Normal x and y of any covariance: N is the d-th root of a determinant."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    covariance = root @ root.T
    a, b, c = covariance[:2, :2], covariance[2:, 2:], covariance[:2, 2:]
    conditional = a - c @ torch.linalg.solve(b, c.T)
    ratio = (conditional.det() / a.det()) ** 0.5
    nats = 0.5 * torch.log(a.det() * b.det() / covariance.det()).item()
    assert informational_r2(nats, dim=2) == pytest.approx(1 - ratio.item())


def test_the_share_has_both_ends():
    assert informational_r2(-0.1, 1) == 0 and informational_r2(0.0, 3) == 0
    assert informational_r2(math.inf, 3) == 1
    assert 0 < informational_r2(0.01, 1) < informational_r2(0.02, 1) < 1


@pytest.mark.parametrize(("d", "scale"), ((1, 1.0), (3, 1.0), (2, 0.01)))
def test_entropy_of_normals(d, scale):
    x = scale * np.random.default_rng(0).normal(size=(3_000, d))
    exact = d * (0.5 * math.log(2 * math.pi * math.e) + math.log(scale))
    # the log density has variance d / 2; neighbours add about as much
    assert differential_entropy(x) == pytest.approx(exact, abs=4 * math.sqrt(d / 3_000))


def test_entropy_of_a_cube_and_its_units():
    x = np.random.default_rng(0).uniform(size=(2_000, 2))
    assert abs(differential_entropy(x)) < 0.1
    shift = differential_entropy(1_000 * x) - differential_entropy(x)
    assert shift == pytest.approx(2 * math.log(1_000))
    assert differential_entropy(np.zeros((50, 2))) == -math.inf


def test_the_published_coefficient_depends_on_units_and_may_not_exist(short):
    x, y = normals(0.8, 500, 1)
    nats = mutual_information(x, y).nats
    assert mutual_information(1_000 * x, y).nats == nats
    units = [differential_entropy(scale * x.numpy()) for scale in (1_000, 1.0, 0.01)]
    values = [uncertainty_coefficient(nats, entropy) for entropy in units]
    assert values[0] < 0.1 < 0.3 < values[1] and math.isnan(values[2])
    assert uncertainty_coefficient(-0.1, 1.0) == 0


def test_an_estimate_reads_well():
    text = str(Information(exact_normal(0.8), 0.05, 200, 1))
    assert text == "0.51 ± 0.05 nats from 200 rows (64% of the entropy power)"
