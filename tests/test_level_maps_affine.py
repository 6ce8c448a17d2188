"""Affine maps between levels."""

import pytest
import torch

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.level_maps import (
    AffineMap,
    Moments,
    fit_alignments,
    standardize_to,
)
from tests.linear_gaussian import simulations

PLACES = [(0, False), (1, False), (1, True), (2, False), (2, True)]


def affine_levels():
    """Three levels of which each is an affine map of the one below."""
    theta, x = torch.rand(50, 2), torch.randn(50, 3)
    scales = torch.tensor([2.0, -0.5, 1.0]), torch.tensor([0.1, 3.0, 7.0])
    one = scales[0].abs() * x + 1.0
    two = scales[1] * one - 4.0
    return MultilevelSimulations((
        LevelSimulations(0, theta, x),
        LevelSimulations(1, theta[:9], one[:9], x[:9]),
        LevelSimulations(2, theta[:2], two[:2], one[:2]),
    )), two


def test_affine_maps_are_found_from_two_pairs():
    sims, two = affine_levels()
    aligned = fit_alignments("affine", sims, PLACES)
    for place, (level, coarse) in zip(aligned, PLACES):
        own = sims[level]
        theta, x = place(own.theta, own.x_coarse if coarse else own.x)
        assert theta is own.theta
        assert torch.allclose(x, two[: len(x)], rtol=1e-4, atol=1e-3)


def test_affine_alignment_uses_one_map_a_level():
    sims = simulations()
    aligned = dict(zip(PLACES, fit_alignments("affine", sims, PLACES)))
    x = torch.randn(7, 2)
    for level in (0, 1):
        fine, coarse = aligned[level, False], aligned[level + 1, True]
        assert torch.equal(fine(x, x)[1], coarse(x, x)[1])
    assert torch.equal(aligned[2, False](x, x)[1], x)


def test_standardize_gives_all_levels_the_moments_of_the_highest():
    sims = simulations()
    top = sims[-1]
    for place, (level, coarse) in zip(
        fit_alignments("standardize", sims, PLACES), PLACES
    ):
        own = sims[level]
        theta, x = place(own.theta, own.x_coarse if coarse else own.x)
        for value, target in ((theta, top.theta), (x, top.x)):
            assert torch.allclose(value.mean(0), target.mean(0), atol=1e-4)
            assert torch.allclose(value.std(0), target.std(0), atol=1e-4)


def test_no_alignment_leaves_simulations_as_they_are():
    sims = simulations()
    for place in fit_alignments(None, sims, PLACES):
        theta, x = place(sims[0].theta, sims[0].x)
        assert theta is sims[0].theta and x is sims[0].x


@pytest.mark.parametrize("constant", ("source", "target"))
@pytest.mark.parametrize(("n", "value"), ((9, 5.0), (7, 0.1), (400, 0.1)))
def test_constant_features_are_shifted_not_scaled(constant, n, value):
    """The mean of equal numbers is rounded, and another one on another processor."""
    own = {"source": torch.randn(n, 1), "target": 3 * torch.randn(n, 1) + 1}
    own[constant][:] = value
    move = AffineMap.between(**own)
    moved = move(own["source"])
    assert move.scale == 1
    assert torch.allclose(moved.mean(0), own["target"].mean(0), atol=1e-5)


def test_standardize_to_gives_the_moments_asked_for():
    sims = simulations()
    (align,) = standardize_to(Moments.of(sims[0].x), sims, levels=[1])
    theta, x = align(sims[1].theta, sims[1].x)
    assert theta is sims[1].theta
    assert torch.allclose(x.mean(0), sims[0].x.mean(0), atol=1e-5)
    assert torch.allclose(x.std(0), sims[0].x.std(0), atol=1e-5)


def test_weighted_moments():
    x = torch.randn(50, 3)
    weights = torch.randint(0, 4, (50,)).float()
    repeated = x.repeat_interleave(weights.long(), dim=0)
    moments = Moments.of(x, weights)
    assert torch.allclose(moments.mean, repeated.mean(0), atol=1e-5)
    assert torch.allclose(moments.std, repeated.std(0, correction=0), atol=1e-5)
    images = x.reshape(50, 3, 1)
    moments = Moments.of(images, weights)
    assert moments.mean.shape == moments.std.shape == ()
    assert torch.allclose(moments.mean, repeated.mean(), atol=1e-5)
    assert torch.allclose(Moments.of(images).std, x.std())
