"""Losses of ratio estimation agree with those of sbi, and telescope."""

import math

import pytest
import torch
from sbi.inference import BNRE, NRE_A, NRE_B, NRE_C
from torch.nn.functional import softplus

from sbi_multilevel.losses.contrastive import (
    balance_penalties,
    binary_loss,
    independent_loss,
    log_posterior_ratio,
    softmax_loss,
)
from sbi_multilevel.training.common_noise import (
    Contrasts,
    split_terms,
    with_common_noise,
)
from sbi_multilevel.utils.seeds import seeded
from tests.linear_gaussian import SilentTracker, prior, simulations


class _FixedLogits:
    """Stands in for the classifier of a trainer of sbi, whose loss is to be known."""

    def __init__(self, *logits):
        self.logits = list(logits)

    def __call__(self, theta, x):
        return self.logits.pop(0).reshape(-1)


def loss_of_sbi(cls, logits, **arguments):
    trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
    trainer._neural_net = _FixedLogits(*logits)
    theta, x = torch.zeros(len(logits[0]), 2), torch.zeros(len(logits[0]), 2)
    return trainer._loss(theta, x, **arguments)


def logits_of(n, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, count, generator=generator)


def test_nre_a_is_the_loss_of_sbi():
    logits = logits_of(7, 2)
    expected = loss_of_sbi(NRE_A, [logits], num_atoms=2)
    torch.testing.assert_close(binary_loss(logits).mean(), expected)


@pytest.mark.parametrize("atoms", (2, 6))
def test_nre_b_is_the_loss_of_sbi(atoms):
    logits = logits_of(7, atoms)
    expected = loss_of_sbi(NRE_B, [logits], num_atoms=atoms)
    torch.testing.assert_close(softmax_loss(logits).mean(), expected)


@pytest.mark.parametrize(("classes", "gamma"), [(2, 1.0), (3, 0.5), (5, 4.0)])
def test_nre_c_is_the_loss_of_sbi(classes, gamma):
    logits = logits_of(7, 2 * classes)
    own, apart, beside = logits.split([1, classes, classes - 1], dim=1)
    of_sbi = [torch.cat([own, apart], dim=1), torch.cat([own, beside], dim=1)]
    expected = loss_of_sbi(NRE_C, of_sbi, num_atoms=classes + 1, gamma=gamma)
    torch.testing.assert_close(independent_loss(logits, gamma).mean(), expected)


def test_bnre_is_the_loss_of_sbi():
    logits = logits_of(7, 2)
    expected = loss_of_sbi(BNRE, [logits], num_atoms=2, regularization_strength=30.0)
    found = binary_loss(logits) + balance_penalties({0: logits}, {0: 1.0}, 30.0)[0]
    torch.testing.assert_close(found.mean(), expected)


def test_the_penalty_of_bnre_is_the_square_of_the_telescoping_balance():
    weights = {0: 1.0, 1: 1.0, 2: -1.0}
    logits = {m: logits_of(m + 2, 2, seed=m).requires_grad_() for m in weights}
    penalties = balance_penalties(logits, weights, 3.0)
    found = sum(w * penalties[m].mean() for m, w in weights.items())
    balances = {m: (each.sigmoid().sum(dim=1) - 1).mean() for m, each in logits.items()}
    expected = 3 * sum(w * balances[m] for m, w in weights.items()) ** 2
    torch.testing.assert_close(found, expected)
    for each in logits.values():
        slopes = (
            torch.autograd.grad(value, each, retain_graph=True)[0]
            for value in (found, expected)
        )
        torch.testing.assert_close(*slopes)


def test_losses_at_known_logits():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    # the own theta is three times as likely as the other one
    assert softmax_loss(logits).item() == pytest.approx(math.log(4 / 3))
    half = (softplus(torch.tensor(-math.log(3.0))) + math.log(2)) / 2
    assert binary_loss(logits).item() == pytest.approx(float(half))
    assert independent_loss(logits, 1.0).item() == pytest.approx(
        math.log(2) / 2 + math.log(4 / 3) / 2
    )


def test_a_normalized_ratio_does_not_depend_on_a_factor_and_is_bounded():
    own, others = torch.tensor([0.3, -1.0]), logits_of(2, 50)
    plain = log_posterior_ratio(own, others)
    scaled = log_posterior_ratio(own + 7, others + 7)
    torch.testing.assert_close(plain, scaled)
    sure = log_posterior_ratio(torch.full((1,), 1e3), torch.zeros(1, 50))
    assert sure.item() == pytest.approx(math.log(51))


# ---------------------------------------------------------------- contrasts


def test_contrasts_are_never_the_own_parameters():
    theta = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    contrasts = Contrasts.of(theta)
    assert len(contrasts) == 2
    torch.manual_seed(0)
    drawn = contrasts.draw(theta, 200)
    assert drawn.shape == (4, 200, 1)
    assert not (drawn == theta[:, None]).any()
    for own, others in zip(theta, drawn):
        expected = {value for value in (0.0, 1.0, 2.0) if value != own.item()}
        assert set(others.flatten().tolist()) == expected


def test_one_parameter_has_no_contrast():
    with pytest.raises(ValueError, match="compares at least two parameters"):
        Contrasts.of(torch.ones(5, 2))


# -------------------------------------------------------- common random numbers


def test_both_sides_of_a_pair_have_the_same_random_numbers():
    # rows of level 0, then three pairs of level 1 and two of level 2
    parts = split_terms([torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4])])
    torch.manual_seed(0)
    of_term, again = (
        with_common_noise(parts, [0, 1, 1, 2, 2], lambda part: torch.rand(len(part[0])))
        for _ in range(2)
    )
    assert torch.equal(of_term[1], of_term[2])
    assert torch.equal(of_term[3], of_term[4])
    different = torch.cat(
        [of_term[m] for m in (0, 1, 3)] + [again[m] for m in (0, 1, 3)]
    )
    assert len(set(different.tolist())) == 14


def test_terms_keep_the_order_of_the_batch():
    values, marks = torch.arange(6.0), torch.tensor([1, 0, 2, 1, 2, 0])
    parts = split_terms([values, marks])
    assert {m: part[0].tolist() for m, part in parts.items()} == {
        0: [1, 5],
        1: [0, 3],
        2: [2, 4],
    }


# ------------------------------------------------- the telescoping loss of ratios


def losses_of(classifier, contrasts, count, same_noise=True):
    """Losses of NRE-B of fine and coarse sides of pairs, at fixed weights."""
    pairs = simulations((10, 10, count), seed=7)[2]
    assert pairs.x_coarse is not None
    marks = torch.arange(2).repeat_interleave(count)
    x = torch.cat([pairs.x, pairs.x_coarse])
    parts = split_terms([pairs.theta.repeat(2, 1), x, marks])

    def evaluate(part):
        own, x = part[:2]
        every = torch.cat([own[:, None], contrasts.draw(own, 4)], dim=1)
        given = x[:, None].expand(-1, 5, -1)
        return softmax_loss(classifier(torch.cat([every, given], dim=2))[..., 0])

    levels = [2, 2] if same_noise else [2, 1]
    with torch.no_grad():
        found = with_common_noise(parts, levels, evaluate)
    return found[0], found[1]


def test_the_telescoping_loss_of_ratios_is_unbiased_and_has_a_small_variance():
    torch.manual_seed(0)
    classifier = torch.nn.Sequential(
        torch.nn.Linear(4, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)
    )
    for parameter in classifier.parameters():
        parameter.data.mul_(2)
    contrasts = Contrasts.of(prior().sample((5_000,)))
    count = 4_000
    fine, coarse = losses_of(classifier, contrasts, count)
    # base: independent simulations of the level below, with contrasts of their own
    _, base = losses_of(classifier, contrasts, count, same_noise=False)
    telescoping = base.mean() + (fine - coarse).mean()
    direct, _ = losses_of(classifier, contrasts, count, same_noise=False)
    terms = (base, fine - coarse, direct)
    error = math.sqrt(sum(float(each.var()) / count for each in terms))
    assert abs(float(telescoping - direct.mean())) < 4 * error

    independent = losses_of(classifier, contrasts, count, same_noise=False)
    assert (fine - coarse).var() < 0.2 * (independent[0] - independent[1]).var()


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ("cpu", pytest.param("cuda", marks=gpu)))
def test_a_block_with_its_own_seed_restores_the_generators(device):
    torch.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    with seeded(1):
        inside = torch.rand(3, device=device)
    assert torch.equal(inside, expected)
    assert torch.equal(torch.rand(3, device=device), expected)
