"""The transform of heavy tails."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, TransformedDistribution

from sbi_multilevel.level_maps.tail_transform import TailTransform

MAPS = TailTransform(
    torch.tensor([0.0, -2.0, 5.0], dtype=torch.float64),
    torch.tensor([1.0, 0.1, 30.0], dtype=torch.float64),
    torch.tensor([0.0, 0.3, 10.0], dtype=torch.float64),
)


def heavy(n, freedom=1.5):
    return torch.distributions.StudentT(freedom).sample((n, 1))


def test_normal_features_are_left_as_they_are():
    x = torch.randn(2_000, 3) * torch.tensor([1.0, 1e-3, 1e3]) + 7.0
    tails = TailTransform.fit([x])
    assert tails.is_identity
    assert torch.equal(tails(x), x) and torch.equal(tails.inv(x), x)
    assert torch.equal(tails.log_abs_det_jacobian(x, x), torch.zeros(2_000))


def test_only_heavy_tails_are_transformed():
    x = torch.cat([torch.randn(2_000, 1), heavy(2_000), torch.rand(2_000, 1)], dim=1)
    tails = TailTransform.fit([x])
    assert (tails.delta > 0).tolist() == [False, True, False]
    y = tails(x)
    assert not tails.is_identity
    assert torch.equal(y[:, [0, 2]], x[:, [0, 2]])
    kurtosis = lambda v: (((v - v.mean()) / v.std()) ** 4).mean()
    assert kurtosis(y[:, 1]) < 10 < 30 < kurtosis(x[:, 1])


def quantiles(n):
    """Quantiles of the normal distribution."""
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.distributions.Normal(0.0, 1.0).icdf(places)[:, None]


def of_the_law(z, delta):
    """Transformed by `delta` these are normal; their interquartile range is 1.349."""
    a = math.asinh(0.6745 * delta) / 0.6745
    return torch.sinh(a * z) / delta


@pytest.mark.parametrize("delta", (0.3, 1.0, 3.0, 10.0))
def test_delta_of_the_law_is_found(delta):
    z = torch.randn(5_000, 1, dtype=torch.float64)
    x = 4.0 + 2.5 * of_the_law(z, delta)
    tails = TailTransform.fit([x])
    if delta == 0.3:  # close to normal
        assert tails.is_identity
        return
    assert tails.delta.item() == delta
    assert tails.center.item() == pytest.approx(4.0, abs=0.15)
    assert tails.scale.item() == pytest.approx(2.5, rel=0.1)
    y = tails(x)
    quantiles = y.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    low, middle, high = (quantiles / y.std()).tolist()
    assert (low, middle, high) == pytest.approx((-1.645, 0.0, 1.645), abs=0.1)


def test_levels_count_equally_whatever_their_size():
    light, few = quantiles(40_000), of_the_law(quantiles(40), 3.0)
    assert TailTransform.fit([torch.cat([light, few])]).is_identity
    assert not TailTransform.fit([light, few]).is_identity


def test_constant_features_are_untouched():
    x = torch.cat([torch.full((500, 1), 0.1), heavy(500)], dim=1)
    tails = TailTransform.fit([x, x[:20]])
    y = x + torch.tensor([2.0, 0.0])
    assert torch.equal(tails(y)[:, 0], y[:, 0])
    assert torch.isfinite(tails.log_abs_det_jacobian(y, tails(y))).all()
    assert tails.delta.tolist()[0] == 0.0


finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=st.lists(finite, min_size=3, max_size=3))
def test_the_inverse_brings_x_back(values):
    x = torch.tensor([values], dtype=torch.float64)
    assert torch.allclose(MAPS.inv(MAPS(x)), x, rtol=1e-9, atol=1e-9)
    single = x.float()
    assert torch.allclose(MAPS.inv(MAPS(single)), single, rtol=3e-5, atol=1e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(low=finite, high=finite, feature=st.integers(0, 2))
def test_the_order_of_values_is_kept(low, high, feature):
    low, high = sorted((low, high))
    x = torch.tensor([[low] * 3, [high] * 3], dtype=torch.float64)
    y = MAPS(x)[:, feature]
    assert y[0] <= y[1]
    assert y[0] < y[1] or high - low < 1e-9 * (1 + abs(low))


def test_the_inverse_of_anything_is_finite():
    y = torch.tensor([[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]])
    assert torch.isfinite(MAPS.inv(y)).all()


def test_the_log_determinant_is_that_of_the_jacobian():
    x = torch.linspace(-50, 50, 41, dtype=torch.float64)[:, None].repeat(1, 3)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(MAPS, row)
        _, expected = torch.linalg.slogdet(jacobian)
        assert torch.allclose(
            MAPS.log_abs_det_jacobian(row, MAPS(row)), expected, atol=1e-10
        )


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_the_type_and_the_shape_of_x_are_kept(dtype):
    x = torch.randn(4, 5, 3, dtype=dtype)
    y = MAPS(x)
    log_det = MAPS.log_abs_det_jacobian(x, y)
    assert y.dtype == MAPS.inv(x).dtype == log_det.dtype == dtype
    assert y.shape == MAPS.inv(x).shape == x.shape
    assert log_det.shape == (4, 5)


def test_units_of_x_do_not_matter():
    x = heavy(1_000).double()
    first, second = TailTransform.fit([x]), TailTransform.fit([1e-4 * x - 3.0])
    assert torch.equal(first.delta, second.delta)
    assert torch.allclose(first(x), second(1e-4 * x - 3.0))


def test_a_few_discrete_values_have_no_tails():
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((2_000, 1), 0.45), generator=generator)
    assert TailTransform.fit([x]).is_identity


def test_it_is_a_transform_of_pytorch():
    normal = MultivariateNormal(torch.zeros(3), torch.eye(3))
    law = TransformedDistribution(normal, [MAPS.inv])
    x = law.sample((50,))
    expected = normal.log_prob(MAPS(x)) + MAPS.log_abs_det_jacobian(x, MAPS(x))
    assert torch.allclose(law.log_prob(x), expected, atol=1e-5)
    assert MAPS.bijective and MAPS.inv.inv is MAPS
    copy = pickle.loads(pickle.dumps(MAPS))
    assert torch.equal(copy(x), MAPS(x))
