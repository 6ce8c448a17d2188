"""Gradients of all terms from one backward pass, against separate passes."""

from copy import deepcopy

import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import nn, tensor

from sbi_multilevel.losses.gradients import flat_gradients
from sbi_multilevel.losses.layers import LayerGradients

SIZES = (7, 4, 4)
MARKS = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
WEIGHTS = (1.0, 1.0, -1.0)


def values_of(losses):
    parts = losses.split(list(SIZES))
    return [w * part.mean() for w, part in zip(WEIGHTS, parts, strict=True)]


def both_ways(network, loss):
    """Gradients by layer after the comparison of the first step, and those expected."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    layers = LayerGradients.of(network, parameters, len(SIZES))
    assert layers is not None
    for _ in range(2):
        assert layers.reads(MARKS, [0, 1, 2])
        with layers.watch():
            losses = loss()
        found = layers(values_of(losses), parameters)
        if layers.is_separable is False:
            break
    return layers, found, flat_gradients(values_of(loss()), parameters)


def test_a_linear_layer_by_hand():
    network = nn.Linear(2, 1)
    x = torch.arange(30.0).reshape(15, 2)
    layers, found, _ = both_ways(network, lambda: network(x)[:, 0])
    # the gradient of the mean of w x + b is the mean of x, and 1
    means = [part.mean(dim=0) for part in x.split(list(SIZES))]
    by_hand = [[w * m[0], w * m[1], w] for w, m in zip(WEIGHTS, means, strict=True)]
    assert layers.is_separable
    assert torch.allclose(found, tensor(by_hand))


@pytest.mark.parametrize("model", ("maf", "nsf", "zuko_nsf", "mdn"))
def test_flows_and_mixtures(model):
    theta, x = torch.randn(15, 3), torch.randn(15, 4)
    network = posterior_nn(model)(theta, x)
    with torch.no_grad():
        for parameter in network.parameters():  # also those that begin at zero
            parameter += 0.05 * torch.randn_like(parameter)
    layers, found, expected = both_ways(network, lambda: network.loss(theta, x))
    assert layers.is_separable
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


def test_frozen_and_convolutional_layers_and_layers_used_twice():
    network = nn.Sequential(
        nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 12)
    )
    twice, frozen = network[4], network[3]
    frozen.bias.requires_grad_(False)
    x = torch.randn(15, 1, 6)
    layers, found, expected = both_ways(
        network, lambda: twice(torch.tanh(network(x))).square().sum(dim=1)
    )
    assert layers.is_separable
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_outputs_that_are_changed_in_place():
    network = nn.Linear(2, 2)
    x = torch.randn(15, 2)

    def loss():
        y = network(x)
        y[:, :1] /= 3
        return torch.relu_(y).sum(dim=1)

    layers, found, expected = both_ways(network, loss)
    assert layers.is_separable and torch.allclose(found, expected, atol=1e-6)


def test_rows_that_interact_are_found_at_the_first_step():
    linear = nn.Linear(2, 2)
    x = torch.randn(15, 2)

    def loss():
        y = linear(x)
        return (y - y.mean(dim=0)).square().sum(dim=1)

    layers, found, expected = both_ways(linear, loss)
    assert layers.is_separable is False
    assert torch.equal(found, expected)
    assert not layers.reads(MARKS, [0, 1, 2])


def test_layers_of_several_rows_for_each_simulation():
    linear = nn.Linear(2, 1)
    x = torch.randn(15, 3, 2)
    layers, found, expected = both_ways(linear, lambda: linear(x).sum(dim=(1, 2)))
    assert layers.is_separable is False and torch.equal(found, expected)


def test_unknown_layers_and_unsorted_batches():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert LayerGradients.of(network, [*network.parameters()], 3) is None
    layers = LayerGradients.of(network[0], [*network[0].parameters()], 3)
    assert layers is not None and not layers.reads(MARKS.flip(0), [0, 1, 2])
    assert layers.reads(MARKS.flip(0), [2, 1, 0])


def test_nothing_stays_on_the_network_and_copies_start_unchecked():
    network = nn.Linear(2, 1)
    layers, *_ = both_ways(network, lambda: network(torch.randn(15, 2))[:, 0])
    assert not network._forward_hooks
    assert deepcopy(layers).is_separable is None
