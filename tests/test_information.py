"""Mutual information and its normalizations agree with closed forms."""

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
from tests.errors import is_ours


def normals(rho, n, d, seed=0):
    """d independent normal pairs of correlation rho."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def exact_normal(rho, d=1):
    return -d / 2 * math.log(1 - rho**2)


@pytest.fixture
def short(monkeypatch):
    """Few training steps; the initial critic is sufficient for normal variables."""
    monkeypatch.setattr(critics, "_MAX_STEPS", 20)


# --- the estimate -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "d", "n"),
    ((-0.9, 1, 1_500), (0.6, 4, 1_500)),
)
def test_the_estimate_for_correlated_normals(rho, d, n):
    found = mutual_information(*normals(rho, n, d))
    assert abs(found.nats - exact_normal(rho, d)) < 4 * found.error
    assert 0 < found.error < 0.1 and (found.num_pairs, found.dim) == (n, d)
    assert found.informational_r2 == pytest.approx(rho**2, abs=0.1)


def test_the_estimate_is_a_lower_bound_for_few_pairs():
    found = mutual_information(*normals(0.9, 100, 4, seed=2), seed=2)
    exact = exact_normal(0.9, 4)
    assert 0.4 * exact < found.nats < exact + 4 * found.error


@pytest.mark.parametrize(("d", "n"), ((1, 1_000), (10, 100)))
def test_the_estimate_for_independent_normals(d, n):
    found = mutual_information(*normals(0.0, n, d))
    assert abs(found.nats) <= 4 * found.error + 0.02
    assert found.informational_r2 < 0.05


def test_the_bound_on_training_data_is_too_large():
    """Reason for cross-fitting."""
    x, y = normals(0.0, 60, 10)
    torch.manual_seed(0)
    critic = Critic(x, y)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    average = None
    for _ in range(60):
        average = critics._epoch(critic, (x, y), optimizer, average)
    with torch.no_grad():
        in_sample = contributions(critic(x, y)).mean()
    assert in_sample > 1
    assert mutual_information(x, y).nats < 0.3


def test_each_pair_is_evaluated_by_a_critic_of_other_folds(monkeypatch):
    counts = []

    def memory(x, y):
        """T = 5 for training pairs, and 0 otherwise."""
        counts.append(len(x))

        def critic(a, b):
            equal_x = (a[:, None] == x).all(dim=2).float()
            equal_y = (b[:, None] == y).all(dim=2).float()
            return 5 * equal_x @ equal_y.T

        return critic

    monkeypatch.setattr(information, "train_critic", memory)
    found = mutual_information(*normals(0.9, 50, 2))
    assert found.nats == pytest.approx(0.0, abs=1e-6) and counts == [40] * 5


def mirrored(n, scale=0.3, seed=0):
    """y is x or -x with equal probability, plus noise: dependent, uncorrelated."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, 1, generator=generator)
    sign = 2 * torch.randint(2, (n, 1), generator=generator) - 1
    return x, sign * x + scale * noise


def exact_mirrored(scale=0.3):
    """Integral on a grid: y given x is a mixture of two normals."""
    x, y = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(-7, 7, 1_121))
    density = (norm.pdf(y, x, scale) + norm.pdf(y, -x, scale)) / 2 + 1e-300
    ratio = np.log(density) - norm.logpdf(y, 0, math.hypot(1, scale))
    return (norm.pdf(x) * density * ratio).sum() / 80**2  # nodes 1 / 80 apart


def test_the_estimate_for_dependent_uncorrelated_variables(monkeypatch):
    """The network learns what the normal part of the critic cannot."""
    monkeypatch.setattr(critics, "_MAX_STEPS", 800)
    x, y = mirrored(1_000)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.2
    found, exact = mutual_information(x, y), exact_mirrored()
    assert 0.8 * exact < found.nats < exact + 4 * found.error


def test_monotone_maps_of_features_have_no_effect(short):
    x, y = normals(0.8, 80, 2)
    found = mutual_information(x, y)
    assert mutual_information(x.exp(), y**3) == found
    assert found.nats > 4 * found.error


def test_constant_features_have_no_effect(short):
    x, y = normals(0.8, 60, 1)
    with_constant = torch.cat([x, torch.ones(60, 1)], dim=1)
    assert mutual_information(with_constant, y) == mutual_information(x, y)
    assert mutual_information(torch.cat([x, x + y], dim=1), y).dim == 1
    assert mutual_information(torch.ones(60, 1), y).nats == 0


def test_results_depend_on_the_seed_and_leave_the_global_generator(short):
    x, y = normals(0.8, 40, 2)
    state = torch.random.get_rng_state()
    assert mutual_information(x, y, seed=1) == mutual_information(x, y, seed=1)
    assert mutual_information(x, y, seed=1) != mutual_information(x, y, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    (
        (torch.randn(30), torch.randn(30, 1), r"must have shapes \(n, d_x\)"),
        (torch.randn(30, 1), torch.randn(31, 1), r"\(30, 1\) and \(31, 1\)"),
        (torch.randn(19, 1), torch.randn(19, 1), "x has 19 samples, too few"),
        (torch.randn(30, 1), torch.full((30, 1), torch.nan), "x or y has NaN or inf"),
    ),
)
def test_invalid_arguments_are_rejected(x, y, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(x, y)


# --- normalizations -----------------------------------------------------------------


def test_tensors_and_arrays_have_the_same_estimate(short):
    x, y = normals(0.8, 40, 2)
    found = mutual_information(x, y)
    assert mutual_information(x.numpy(), y.numpy()) == found
    assert mutual_information(x.clone().requires_grad_(), y.double()) == found


@pytest.mark.parametrize("name", ("x", "y"))
def test_arguments_of_other_types_are_refused_by_name(name):
    given = {"x": torch.randn(30, 1), "y": torch.randn(30, 1), name: [[1.0]] * 30}
    with pytest.raises(TypeError, match=f"^{name} must be a `torch.Tensor`") as caught:
        mutual_information(**given)
    assert is_ours(caught.value)


@pytest.mark.parametrize("rho", (0.0, 0.3, -0.9, 0.999))
@pytest.mark.parametrize("d", (1, 5))
def test_r2_is_the_square_of_equal_canonical_correlations(rho, d):
    assert informational_r2(exact_normal(rho, d), d) == pytest.approx(rho**2)


def test_r2_is_the_share_of_the_entropy_power():
    """For normal variables N is the d-th root of the determinant of the covariance."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    covariance = root @ root.T
    a, b, c = covariance[:2, :2], covariance[2:, 2:], covariance[:2, 2:]
    conditional = a - c @ torch.linalg.solve(b, c.T)
    ratio = (conditional.det() / a.det()) ** 0.5
    nats = 0.5 * torch.log(a.det() * b.det() / covariance.det()).item()
    assert informational_r2(nats, dim=2) == pytest.approx(1 - ratio.item())


def test_r2_lies_between_zero_and_one():
    assert informational_r2(-0.1, 1) == 0 and informational_r2(0.0, 3) == 0
    assert informational_r2(math.inf, 3) == 1
    assert 0 < informational_r2(0.01, 1) < informational_r2(0.02, 1) < 1


@pytest.mark.parametrize(("d", "scale"), ((1, 1.0), (3, 1.0), (2, 0.01)))
def test_the_entropy_of_normals(d, scale):
    x = scale * np.random.default_rng(0).normal(size=(3_000, d))
    exact = d * (0.5 * math.log(2 * math.pi * math.e) + math.log(scale))
    # the log density has variance d / 2, and distances to neighbors a similar one
    assert differential_entropy(x) == pytest.approx(exact, abs=4 * math.sqrt(d / 3_000))


def test_the_entropy_of_a_cube_depends_on_units():
    x = np.random.default_rng(0).uniform(size=(2_000, 2))
    assert abs(differential_entropy(x)) < 0.1
    shift = differential_entropy(1_000 * x) - differential_entropy(x)
    assert shift == pytest.approx(2 * math.log(1_000))
    assert differential_entropy(np.zeros((50, 2))) == -math.inf


def test_the_uncertainty_coefficient_depends_on_units_and_may_be_undefined(short):
    x, y = normals(0.8, 500, 1)
    nats = mutual_information(x, y).nats
    assert mutual_information(1_000 * x, y).nats == nats
    units = [differential_entropy(scale * x.numpy()) for scale in (1_000, 1.0, 0.01)]
    values = [uncertainty_coefficient(nats, entropy) for entropy in units]
    assert values[0] < 0.1 < 0.3 < values[1] and math.isnan(values[2])
    assert uncertainty_coefficient(-0.1, 1.0) == 0


def test_the_text_of_an_estimate():
    text = str(Information(exact_normal(0.8), 0.05, 200, 1))
    assert text == "0.51 ± 0.05 nats from 200 pairs (64% of the entropy power)"
