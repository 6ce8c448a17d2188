"""Maps that tame heavy tails."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_multilevel.level_maps.tail_transform import TailTransform

MAPS = TailTransform(
    torch.tensor([0.0, -2.0, 5.0]),
    torch.tensor([1.0, 0.1, 30.0]),
    torch.tensor([0.0, 0.3, 10.0]),
)


def heavy(n, freedom=1.5):
    return torch.distributions.StudentT(freedom).sample((n, 1))


def test_normal_features_are_left_as_they_are():
    x = torch.randn(2_000, 3) * torch.tensor([1.0, 1e-3, 1e3]) + 7.0
    tails = TailTransform.fit([x])
    assert tails.is_identity
    assert torch.equal(tails(x), x) and torch.equal(tails.inverse(x), x)
    assert torch.equal(tails.log_det(x), torch.zeros(2_000))


def test_only_heavy_features_are_tamed():
    x = torch.cat([torch.randn(2_000, 1), heavy(2_000), torch.rand(2_000, 1)], dim=1)
    tails = TailTransform.fit([x])
    assert (tails.delta > 0).tolist() == [False, True, False]
    tamed = tails(x)
    assert not tails.is_identity
    assert torch.equal(tamed[:, [0, 2]], x[:, [0, 2]])
    kurtosis = lambda v: (((v - v.mean()) / v.std()) ** 4).mean()
    assert kurtosis(tamed[:, 1]) < 10 < 30 < kurtosis(x[:, 1])


def quantiles(n):
    """Of the normal distribution: rows without chance."""
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.distributions.Normal(0.0, 1.0).icdf(places)[:, None]


def of_the_law(z, delta):
    """Tamed by `delta`, these are normal: the interquartile range of x is 1.349."""
    a = math.asinh(0.6745 * delta) / 0.6745
    return torch.sinh(a * z) / delta


@pytest.mark.parametrize("delta", (0.3, 1.0, 3.0, 10.0))
def test_rows_of_the_law_the_map_stands_for_choose_it(delta):
    z = torch.randn(5_000, 1, dtype=torch.float64)
    x = 4.0 + 2.5 * of_the_law(z, delta)
    tails = TailTransform.fit([x])
    if delta == 0.3:  # close to normal
        assert tails.is_identity
        return
    assert tails.delta.item() == delta
    assert tails.centre.item() == pytest.approx(4.0, abs=0.15)
    assert tails.scale.item() == pytest.approx(2.5, rel=0.1)
    tamed = tails(x)
    quantiles = tamed.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    low, middle, high = (quantiles / tamed.std()).tolist()
    assert (low, middle, high) == pytest.approx((-1.645, 0.0, 1.645), abs=0.1)


def test_a_heavy_level_of_few_rows_counts_as_much_as_a_light_one_of_many():
    light, few = quantiles(40_000), of_the_law(quantiles(40), 3.0)
    assert TailTransform.fit([torch.cat([light, few])]).is_identity
    assert not TailTransform.fit([light, few]).is_identity


def test_constant_features_are_untouched():
    x = torch.cat([torch.full((500, 1), 0.1), heavy(500)], dim=1)
    tails = TailTransform.fit([x, x[:20]])
    y = x + torch.tensor([2.0, 0.0])
    assert torch.equal(tails(y)[:, 0], y[:, 0])
    assert torch.isfinite(tails.log_det(y)).all()
    assert tails.delta.tolist()[0] == 0.0


finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=st.lists(finite, min_size=3, max_size=3))
def test_the_inverse_brings_x_back(values):
    x = torch.tensor([values], dtype=torch.float64)
    assert torch.allclose(MAPS.inverse(MAPS(x)), x, rtol=1e-9, atol=1e-9)
    single = x.float()
    assert torch.allclose(MAPS.inverse(MAPS(single)), single, rtol=3e-5, atol=1e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(low=finite, high=finite, feature=st.integers(0, 2))
def test_the_order_of_values_is_kept(low, high, feature):
    low, high = sorted((low, high))
    x = torch.tensor([[low] * 3, [high] * 3], dtype=torch.float64)
    tamed = MAPS(x)[:, feature]
    assert tamed[0] <= tamed[1]
    assert tamed[0] < tamed[1] or high - low < 1e-9 * (1 + abs(low))


def test_the_inverse_of_anything_is_finite():
    y = torch.tensor([[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]])
    assert torch.isfinite(MAPS.inverse(y)).all()


def test_log_det_is_the_derivative():
    x = torch.linspace(-50, 50, 41, dtype=torch.float64)[:, None].repeat(1, 3)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(MAPS.forward, row)
        _, expected = torch.linalg.slogdet(jacobian)
        assert torch.allclose(MAPS.log_det(row), expected, atol=1e-10)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_the_type_and_the_shape_of_x_are_kept(dtype):
    x = torch.randn(4, 5, 3, dtype=dtype)
    assert MAPS(x).dtype == MAPS.inverse(x).dtype == MAPS.log_det(x).dtype == dtype
    assert MAPS(x).shape == MAPS.inverse(x).shape == x.shape
    assert MAPS.log_det(x).shape == (4, 5)


def test_maps_are_part_of_the_state():
    copy = TailTransform(torch.zeros(3), torch.ones(3), torch.ones(3))
    copy.load_state_dict(MAPS.state_dict())
    x = torch.randn(9, 3)
    assert torch.equal(copy(x), MAPS(x))


def test_units_of_x_do_not_matter():
    x = heavy(1_000).double()
    first, second = TailTransform.fit([x]), TailTransform.fit([1e-4 * x - 3.0])
    assert torch.equal(first.delta, second.delta)
    assert torch.allclose(first(x), second(1e-4 * x - 3.0))


def test_a_few_discrete_values_have_no_tails():
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((2_000, 1), 0.45), generator=generator)
    assert TailTransform.fit([x]).is_identity


def test_a_device_without_double_precision_has_single():
    def to_mps(each):
        if each.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return each.clone()

    tails = deepcopy(MAPS)
    tails._apply(to_mps)
    assert {each.dtype for each in tails.buffers()} == {torch.float32}
    x = torch.randn(9, 3)
    assert torch.allclose(tails(x), MAPS(x), atol=1e-5)
    assert torch.allclose(tails.inverse(tails(x)), x, atol=1e-4)
    assert tails.log_det(x).dtype == torch.float32
