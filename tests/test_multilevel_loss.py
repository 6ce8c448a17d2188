"""The multilevel loss, against sums by hand."""

import torch
from torch import tensor

from sbi_multilevel.losses.gradients import multilevel_loss, term_means

# level 0, fine and coarse of level 1, fine and coarse of level 2
WEIGHTS = {0: 1.0, 1: 1.0, 2: -1.0, 3: 1.0, 4: -1.0}


def test_term_means():
    losses, term = tensor([1.0, 3.0, 5.0, 9.0]), tensor([0, 2, 0, 2])
    means = term_means(losses, term, 3)
    assert means[0] == 3 and means[2] == 6 and means[1].isnan()


def test_the_loss_is_equation_2_by_hand():
    losses = tensor([1.0, 2.0, 6.0, 10.0, 4.0, 8.0, 5.0, 7.0])
    term = tensor([0, 0, 0, 1, 1, 2, 2, 3])
    losses, term = torch.cat([losses, tensor([0.5])]), torch.cat([term, tensor([4])])
    # 9/3 + (14/2 - 13/2) + (7 - 0.5)
    assert multilevel_loss(losses, term, WEIGHTS) == 10.0
    order = torch.randperm(9)
    assert multilevel_loss(losses[order], term[order], WEIGHTS) == 10.0


def test_the_loss_of_some_terms_leaves_out_the_others():
    losses, term = tensor([4.0, 2.0, 3.0]), tensor([3, 4, 3])
    assert multilevel_loss(losses, term, {3: 1.0, 4: 0.5}) == 3.5 + 1.0


def test_the_expectation_is_the_loss_of_the_highest_level():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, generator=generator)
    base, pairs = noise[:100_000], noise[100_000:]
    losses = torch.cat([base**2, (pairs + 0.5) ** 2, pairs**2])
    term = torch.arange(3).repeat_interleave(100_000)
    loss = multilevel_loss(losses, term, {0: 1.0, 1: 1.0, 2: -1.0})
    assert abs(loss - 1.25) < 0.02


def test_gradients_have_the_signs_of_the_terms():
    losses = tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    loss = multilevel_loss(losses, tensor([0, 0, 1, 2]), {0: 1.0, 1: 1.0, 2: -1.0})
    (gradient,) = torch.autograd.grad(loss, losses)
    assert torch.equal(gradient, tensor([0.5, 0.5, 1.0, -1.0]))
