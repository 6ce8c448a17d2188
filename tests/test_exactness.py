"""The multilevel loss and its gradient against a linear-Gaussian truth.

A small Gaussian network is trained on the three-level problem of `linear_gaussian`;
loss and gradient of the trainer are compared with sums written out by hand.
"""

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn

from sbi_multilevel import MLNLE, MLNPE, MultilevelConfig
from sbi_multilevel.level_maps import fit_alignments
from sbi_multilevel.losses.gradients import ADJUSTMENTS, adjusted_step, combine
from tests.linear_gaussian import (
    SIMULATORS,
    SilentTracker,
    noise,
    prior,
    simulations,
)

NETWORKS = {MLNPE: posterior_nn, MLNLE: likelihood_nn}
OPTIONS = dict(num_components=1, hidden_features=4)
NUM_BATCHES = 600
FULL_BATCH = dict(training_batch_size=10_000, max_num_epochs=1)


def trained(cls, config, sims=None):
    """A trainer after one epoch of training, at weights that no longer move."""
    trainer = cls(
        prior(),
        density_estimator=NETWORKS[cls]("mdn", **OPTIONS),
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_multilevel_simulations(sims or simulations())
    trainer.train(**FULL_BATCH)
    return trainer


def loss_args(trainer):
    if isinstance(trainer, MLNLE):
        return None
    from sbi.inference.trainers._contracts import LossArgsNPE

    return LossArgsNPE(calibration_kernel=lambda x: torch.ones(len(x)))


def mean_loss(trainer, theta, x):
    """Mean of -log q, in the form sbi's posteriors use, not its trainers."""
    if isinstance(trainer, MLNPE):
        return -trainer._neural_net.log_prob(theta.unsqueeze(0), x).mean()
    return -trainer._neural_net.log_prob(x.unsqueeze(0), theta).mean()


def terms_by_hand(trainer, sims, move):
    """base, fine 1, -coarse 1, fine 2, -coarse 2."""
    yield mean_loss(trainer, sims[0].theta, move(sims[0].x, 0))
    for level in (1, 2):
        rows = sims[level]
        yield mean_loss(trainer, rows.theta, move(rows.x, level))
        yield -mean_loss(trainer, rows.theta, move(rows.x_coarse, level - 1))


def gradient_of(value, trainer):
    parameters = list(trainer._neural_net.parameters())
    parts = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([
        torch.zeros(p.numel()) if g is None else g.reshape(-1)
        for p, g in zip(parameters, parts)
    ])


@pytest.mark.parametrize("min_for_separate_passes", (1, 10**6))
@pytest.mark.parametrize("alignment", (None, "affine"))
@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
def test_loss_and_gradient_equal_those_by_hand(
    cls, adjustment, alignment, min_for_separate_passes, monkeypatch
):
    monkeypatch.setattr(
        "sbi_multilevel.training.epochs._MIN_FOR_SEPARATE_PASSES",
        min_for_separate_passes,
    )
    config = MultilevelConfig(
        adjustment=adjustment, alignment=alignment, early_stopping=False
    )
    sims = simulations()
    trainer = trained(cls, config, sims)
    maps = fit_alignments(alignment, sims, [(level, False) for level in range(3)])

    def move(x, level):
        return maps[level](x, x)[1]

    by_hand = list(terms_by_hand(trainer, sims, move))
    gradients = torch.stack([
        gradient_of(value, trainer) for value in terms_by_hand(trainer, sims, move)
    ])
    loader, _ = trainer.get_dataloaders(training_batch_size=10_000)
    (batch,) = loader
    values = trainer._plan.running._term_values(batch)
    assert torch.allclose(torch.stack(values), torch.stack(by_hand), atol=1e-5)
    parameters = list(trainer._neural_net.parameters())
    gradient = adjusted_step(values, parameters, adjustment).direction
    assert torch.allclose(gradient, combine(gradients, adjustment).direction, atol=1e-5)
    if adjustment == "none":
        assert torch.allclose(gradient, gradients.sum(dim=0), atol=1e-5)


def test_validation_loss_is_the_telescoping_sum_of_the_held_out_simulations():
    sims = simulations()
    trainer = trained(MLNPE, MultilevelConfig(stopping="telescoping"), sims)
    _, loader = trainer.get_dataloaders(
        training_batch_size=7, validation_fraction=0.3, resume_training=False
    )
    trainer._neural_net.eval()
    held_out = sims.select(trainer._plan.split.validation)
    assert held_out.num_simulations == (120, 18, 12)
    expected = sum(terms_by_hand(trainer, held_out, lambda x, level: x))
    value = trainer._validate_epoch(loader, loss_args(trainer))
    assert value == pytest.approx(expected.item(), abs=1e-5)


def fresh_batch(counts, generator):
    """A new batch of all terms, `(theta, x, prior mask, weight, term)`."""
    parts = []
    for level, count in enumerate(counts):
        theta, u = torch.randn(count, 2, generator=generator), noise(count, generator)
        parts.append((theta, SIMULATORS[level](theta, u)))
        if level > 0:
            parts.append((theta, SIMULATORS[level - 1](theta, u)))
    theta, x = (torch.cat(column) for column in zip(*parts))
    sizes = torch.tensor([len(part) for part, _ in parts])
    term = torch.repeat_interleave(torch.arange(len(parts)), sizes)
    mask = torch.ones(len(theta), 1, dtype=torch.bool)
    return theta, x, mask, torch.ones(len(theta)), term


@pytest.mark.parametrize("cls", (MLNPE, MLNLE))
def test_the_plain_multilevel_gradient_is_unbiased_and_less_variable(cls):
    trainer = trained(cls, MultilevelConfig(adjustment="none"))
    parameters = list(trainer._neural_net.parameters())
    generator = torch.Generator().manual_seed(0)
    multilevel, single = [], []
    for _ in range(NUM_BATCHES):
        batch = fresh_batch((200, 16, 8), generator)
        values = trainer._plan.running._term_values(batch)
        multilevel.append(adjusted_step(values, parameters, "none").direction)
        theta = torch.randn(8, 2, generator=generator)
        x = SIMULATORS[2](theta, noise(8, generator))
        single.append(gradient_of(mean_loss(trainer, theta, x), trainer))
    multilevel, single = torch.stack(multilevel), torch.stack(single)
    variances = multilevel.var(dim=0), single.var(dim=0)
    standard_error = ((variances[0] + variances[1]) / NUM_BATCHES).sqrt()
    difference = (multilevel.mean(dim=0) - single.mean(dim=0)).abs()
    assert (difference <= 5 * standard_error + 1e-5).all()
    # as many high-fidelity simulations in both: the multilevel gradient varies far less
    assert variances[0].sum() < 0.25 * variances[1].sum()
