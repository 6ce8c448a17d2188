"""Mutual information against closed forms, and what is made of it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sbi_multilevel.diagnostics import (
    Information,
    information,
    informational_r2,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics import critic as critics
from sbi_multilevel.diagnostics.critic import Critic, contributions
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
    ((-0.9, 1, 1_500), (0.6, 4, 1_500)),
)
def test_correlated_normals(rho, d, n):
    found = mutual_information(*normals(rho, n, d))
    assert abs(found.nats - exact_normal(rho, d)) < 4 * found.error
    assert 0 < found.error < 0.1 and (found.num_rows, found.dim) == (n, d)
    assert found.share == pytest.approx(rho**2, abs=0.1)


def test_a_lower_bound_where_rows_are_few():
    # rows of which a network would learn too much
    found = mutual_information(*normals(0.9, 100, 4, seed=2), seed=2)
    exact = exact_normal(0.9, 4)
    assert 0.4 * exact < found.nats < exact + 4 * found.error


@pytest.mark.parametrize(("d", "n"), ((1, 1_000), (10, 100)))
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
    for _ in range(60):
        average = critics._epoch(critic, (x, y), optimizer, average)
    with torch.no_grad():
        seen = contributions(critic(x, y)).mean()
    assert seen > 1
    assert mutual_information(x, y).nats < 0.3


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


def test_dependence_without_correlation(monkeypatch):
    """The network finds what the normal part of the critic cannot."""
    monkeypatch.setattr(critics, "_MOST_STEPS", 800)
    x, y = mirrored(1_000)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.2
    found, exact = mutual_information(x, y), exact_mirrored()
    assert 0.8 * exact < found.nats < exact + 4 * found.error


def test_maps_of_single_features_change_nothing(short):
    x, y = normals(0.8, 80, 2)
    found = mutual_information(x, y)
    assert mutual_information(x.exp(), y**3) == found
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
