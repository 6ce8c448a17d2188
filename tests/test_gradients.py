"""Gradient rules, against vectors computed by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.nn import Parameter

from sbi_multilevel.losses.gradients import (
    ADJUSTMENTS,
    adjusted_step,
    assign_gradient,
    combine,
    flat_gradients,
    project,
    rescale,
)


def test_rescale_by_hand():
    assert torch.allclose(
        rescale(tensor([3.0, 4.0]), tensor([0.0, -2.0])), tensor([0.0, -5.0])
    )
    assert torch.equal(rescale(tensor([3.0, 4.0]), torch.zeros(2)), torch.zeros(2))
    assert torch.equal(rescale(torch.zeros(2), tensor([0.0, -2.0])), torch.zeros(2))


def test_project_by_hand():
    # <g0, gc> = -4: g0 + 4/8 gc and gc + 4/4 g0, both from the unprojected pair
    base, correction = project(tensor([2.0, 0.0]), tensor([-2.0, 2.0]))
    assert torch.allclose(base, tensor([1.0, 1.0]))
    assert torch.allclose(correction, tensor([0.0, 2.0]))
    aligned = tensor([2.0, 0.0]), tensor([1.0, 2.0])
    assert all(torch.equal(a, b) for a, b in zip(project(*aligned), aligned))
    assert torch.equal(
        project(torch.zeros(2), tensor([1.0, 1.0]))[1], tensor([1.0, 1.0])
    )


@pytest.mark.parametrize("ratio", (0.1, 1.0, 5.0))
def test_project_stands_still_wherever_base_and_correction_oppose(ratio):
    base = tensor([1.0, -2.0, 0.5])
    stationary = torch.stack([base, torch.zeros(3), -ratio * base])
    assert torch.allclose(
        combine(stationary, "project").direction, torch.zeros(3), atol=1e-6
    )
    step = combine(stationary, "none").direction
    assert torch.allclose(step, (1 - ratio) * base, atol=1e-6)


GRADIENTS = tensor([
    [2.0, 0.0],  # g0
    [-3.0, 4.0],  # g+ of level 1, length 5
    [0.0, -2.0],  # g- of level 1, length 2
    [0.0, 1.0],  # g+ of level 2, length 1
    [4.0, -3.0],  # g- of level 2, length 5
])
BY_HAND = {
    # g0 + (-3, 4) + (0, -2) + (0, 1) + (4, -3)
    "none": (3.0, 0.0),
    # gc = (1, 0), no conflict with g0
    "project": (3.0, 0.0),
    # g-: (0, -5) and (0.8, -0.6); gc = (-2.2, -0.6)
    "rescale": (-0.2, -0.6),
    # <g0, gc> = -4.4, |gc|^2 = 5.2, |g0|^2 = 4
    "rescale_project": (
        2.0 - 2.2 * 4.4 / 5.2 - 2.2 + 2.0 * 4.4 / 4.0,
        -0.6 * 4.4 / 5.2 - 0.6,
    ),
}


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_combine_by_hand(adjustment):
    expected = tensor(BY_HAND[adjustment])
    assert torch.allclose(combine(GRADIENTS, adjustment).direction, expected, atol=1e-6)


def test_one_level_has_nothing_to_adjust():
    for adjustment in ADJUSTMENTS:
        assert torch.equal(combine(GRADIENTS[:1], adjustment).direction, GRADIENTS[0])


vectors = st.lists(
    st.floats(-10, 10, allow_nan=False, width=32), min_size=3, max_size=3
).map(tensor)


@settings(max_examples=100, deadline=None)
@given(base=vectors, correction=vectors)
def test_projected_parts_never_conflict(base, correction):
    base, correction = base.double(), correction.double()
    new_base, new_correction = project(base, correction)
    scale = base.norm() * correction.norm() + 1e-12
    assert torch.dot(new_base, correction) >= -1e-9 * scale
    assert torch.dot(new_correction, base) >= -1e-9 * scale


@settings(max_examples=100, deadline=None)
@given(fine=vectors, coarse=vectors)
def test_rescaled_length_is_that_of_the_fine_gradient(fine, coarse):
    result = rescale(fine, coarse)
    if coarse.norm() > 0:
        assert torch.allclose(result.norm(), fine.norm(), rtol=1e-4, atol=1e-5)
        assert torch.dot(result, coarse) >= 0


def test_flat_gradients_and_back():
    a, b, unused = (
        Parameter(tensor([[1.0, 2.0]])),
        Parameter(tensor(3.0)),
        Parameter(torch.ones(2)),
    )
    values = [(a.sum() * b), (a**2).sum()]
    gradients = flat_gradients(values, [a, b, unused])
    assert torch.equal(
        gradients, tensor([[3.0, 3.0, 3.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0, 0.0]])
    )
    assign_gradient(gradients[0], [a, b, unused])
    assert torch.equal(a.grad, tensor([[3.0, 3.0]])) and b.grad == 3.0


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_the_direction_of_a_step_is_that_of_the_combined_terms(adjustment):
    weight = Parameter(tensor([1.0, 1.0]))
    values = [(row * weight).sum() for row in GRADIENTS]
    gradient = adjusted_step(values, [weight], adjustment).direction
    assert torch.allclose(gradient, tensor(BY_HAND[adjustment]), atol=1e-6)
